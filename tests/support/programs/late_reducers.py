import copyreg
import sys
from multiprocessing.reduction import register

from prefork_executor import PreforkExecutor


class Late:
    pass


class Meta(type):
    pass


class Named(metaclass=Meta):
    pass


class Copied:
    pass


def late():
    return "late"


def find(name):
    return f"found {name}"


def echo(thing):
    return thing


copyreg.pickle(Meta, lambda kind: (find, (kind.__name__,)))
copyreg.pickle(Copied, lambda copied: (find, ("a copy",)))

if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:
        print(type(executor.submit(echo, Late()).result()).__name__)
        register(Late, lambda thing: (late, ()))
        print(executor.submit(echo, Late()).result())
        print(executor.submit(lambda thing: thing, Named).result())
        print(executor.submit(lambda thing: thing, Copied()).result())
