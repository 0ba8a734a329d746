import sys

from prefork_executor import PreforkExecutor


class Bad:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


def same(thing):
    return thing


if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:
        # Submitted as the pool starts, when it is not known what it holds.
        bad = executor.submit(same, Bad(ValueError("bad")))
        print(executor.submit(same, 1).result(), bad.exception())
        try:
            print(repr(executor.submit(same, Bad(SystemExit("bad"))).exception()))
        except SystemExit as error:
            print("SystemExit('bad')")
        print(executor.submit(same, 2).result())
