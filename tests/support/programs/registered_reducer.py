import sys
from multiprocessing.reduction import register

from prefork_executor import PreforkExecutor, yell


class Handle:
    def __init__(self, value):
        self.value = value

    def __getstate__(self):
        raise TypeError("by its registered reducer only")


def rebuild(value):
    handle = Handle.__new__(Handle)
    handle.value = f"reduced {value}"
    return handle


register(Handle, lambda handle: (rebuild, (handle.value,)))


def take(handle):
    return handle.value


def give(value):
    yell(Handle(f"yelled {value}"))
    return Handle(value)


def fail(value):
    raise LookupError(Handle(value))


def show(pid, handle):
    print(handle.value)


if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1], on_yell=show) as executor:
        print(executor.submit(take, Handle(1)).result())
        print(executor.submit(lambda handle: take(handle), Handle(2)).result())
        print(executor.submit(give, 3).result().value)
        print(executor.submit(fail, 4).exception().args[0].value)
