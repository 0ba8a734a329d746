import sys

from prefork_executor import PreforkExecutor


class Nosy:
    def __reduce__(self):
        asides.append(executor.submit(same, 1))
        return Nosy, ()


def same(thing):
    return thing


def kind(thing):
    return type(thing).__name__


if __name__ == "__main__":
    asides = []
    with PreforkExecutor(1, sys.argv[1]) as executor:
        # The first of them as the pool starts.
        for _ in range(3):
            print(executor.submit(kind, Nosy()).result())
        print({aside.result() for aside in asides})
