"""The same, the executor made by kedro itself."""

from kedro.io import SharedMemoryDataCatalog
from kedro.pipeline import node, pipeline
from kedro.runner import ParallelRunner


def plus_one(x: int) -> int:
    return x + 1


def add(x: int, y: int) -> int:
    print("sum", x + y, flush=True)
    return x + y


if __name__ == "__main__":
    catalog = SharedMemoryDataCatalog()
    catalog["x"] = 1
    nodes = [node(plus_one, "x", "b"), node(plus_one, "x", "c"), node(add, ["b", "c"], "d")]
    ParallelRunner(max_workers=2).run(pipeline(nodes), catalog)
    print("done")
