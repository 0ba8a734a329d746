import gc
import sys
import weakref

import tblib.pickling_support

from prefork_executor import PreforkExecutor


class Plain:
    pass


class Refusing(Exception):
    def __reduce__(self):
        raise SystemExit("not by pickle")


class Shared(Exception):
    pass


tblib.pickling_support.install()


def refuse():
    raise Refusing("asked", SystemExit(3))


def chained():
    cause = Shared("first")
    try:
        raise cause
    except Shared:
        raise LookupError(cause) from cause


if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:
        refused = executor.submit(refuse).exception()
        print(type(refused) is Refusing, refused.args[0], repr(refused.args[1]))
        failing, neighbour = executor.submit(chained), executor.submit(Plain)
        error, result = failing.exception(), weakref.ref(neighbour.result())
        del neighbour
        gc.disable()
        while result() is not None:
            executor.submit(int).result()
        print(error.__cause__, error.args[0].__traceback__)
