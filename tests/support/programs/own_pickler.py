import multiprocessing
import multiprocessing.reduction


class Pickler(multiprocessing.reduction.ForkingPickler):
    def reducer_override(self, thing):
        return (int, (7,)) if isinstance(thing, Number) else NotImplemented


class Reduction(multiprocessing.reduction.AbstractReducer):
    ForkingPickler = Pickler


class Number:
    pass


class Special(Number):
    pass


context = multiprocessing.get_context("fork")
context.reducer = Reduction()

from prefork_executor import PreforkExecutor


def give():
    return [Special()]


if __name__ == "__main__":
    with PreforkExecutor(1, "fork") as executor:
        print(executor.submit(abs, Special()).result())
        print(executor.submit(lambda x: x, Special()).result())
        print(executor.submit(give).result())
