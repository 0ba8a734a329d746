"""Learns a function point by point; asks the executor, by its class, for the number of workers."""

from concurrent.futures import ProcessPoolExecutor

import adaptive


def parabola(x: float) -> float:
    return x**2


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as executor:
        learner = adaptive.Learner1D(parabola, (-1, 1))
        adaptive.BlockingRunner(learner, npoints_goal=40, executor=executor)
    print(learner.npoints >= 40, all(y == x**2 for x, y in learner.data.items()))
