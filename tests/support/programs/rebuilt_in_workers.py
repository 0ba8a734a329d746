import os
import sys

from prefork_executor import PreforkExecutor


class Rebuilt:
    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return rebuild, (self.how,)


def rebuild(how):
    is_caller = os.environ["CALLER"] == str(os.getpid())
    print("rebuilt in", "the caller" if is_caller else "a worker", flush=True)
    if how == "exit":
        sys.exit("in unpickling")
    return how


class Plain:
    def __init__(self, x):
        self.x = x


def same(thing):
    return thing


def value_of(plain):
    return type(plain) is Plain and plain.x


def main():
    os.environ["CALLER"] = str(os.getpid())
    with PreforkExecutor(1, sys.argv[1]) as executor:
        given = [Rebuilt(7)]
        first = executor.submit(same, given)
        exits = executor.submit(same, Rebuilt("exit"))
        plain = Plain(1)
        both = executor.submit(value_of, plain)
        by_value = executor.submit(lambda plain: value_of(plain) + 1, plain)
        mapped = executor.map(value_of, [plain, plain], chunksize=2)
        plain.x = 100
        given.append(8)
        print(first.result(), type(exits.exception()).__name__)
        print(both.result(), by_value.result(), list(mapped))


if __name__ == "__main__":
    main()
