"""`ParallelRunner` runs the nodes of a pipeline, the data in a manager's process; the executor
is ours, and kedro asks for its class."""

from concurrent.futures import ProcessPoolExecutor

from kedro.io import SharedMemoryDataCatalog
from kedro.pipeline import node, pipeline
from kedro.runner import ParallelRunner


class Runner(ParallelRunner):
    def _get_executor(self, max_workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(max_workers)


def plus_one(x: int) -> int:
    return x + 1


def add(x: int, y: int) -> int:
    print("sum", x + y, flush=True)
    return x + y


if __name__ == "__main__":
    catalog = SharedMemoryDataCatalog()
    catalog["x"] = 1
    nodes = [node(plus_one, "x", "b"), node(plus_one, "x", "c"), node(add, ["b", "c"], "d")]
    Runner(max_workers=2).run(pipeline(nodes), catalog)
    print("done")
