"""A pipeline of functions is mapped over arrays, in chunks, by an executor that is handed over."""

from concurrent.futures import ProcessPoolExecutor

import numpy as np
from pipefunc import Pipeline, pipefunc


@pipefunc(output_name="y", mapspec="x[i] -> y[i]")
def twice(x: int) -> int:
    return 2 * x


@pipefunc(output_name="z", mapspec="y[i], w[j] -> z[i, j]")
def product(y: int, w: int) -> int:
    return y * w


@pipefunc(output_name="total")
def total(z: np.ndarray) -> int:
    return int(z.sum())


if __name__ == "__main__":
    pipeline = Pipeline([twice, product, total])
    inputs = {"x": list(range(8)), "w": [1, 2, 3]}
    with ProcessPoolExecutor(2) as executor:
        found = pipeline.map(inputs, executor=executor, chunksizes=3, show_progress=False)
    print(found["y"].output.tolist(), found["total"].output)
