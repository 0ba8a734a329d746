"""NSGA-II, its solutions evaluated by `ProcessPoolEvaluator`, which submits each."""

import random

from platypus import NSGAII, Problem, ProcessPoolEvaluator, Real


def belegundu(x: list[float]) -> tuple[list[float], list[float]]:
    return [-2 * x[0] + x[1], 2 * x[0] + x[1]], [-x[0] + x[1] - 1, x[0] + x[1] - 7]


if __name__ == "__main__":
    random.seed(2)
    problem = Problem(2, 2, 2)
    problem.types[:] = [Real(0, 5), Real(0, 3)]
    problem.constraints[:] = "<=0"
    problem.function = belegundu
    with ProcessPoolEvaluator(2) as evaluator:
        algorithm = NSGAII(problem, population_size=20, evaluator=evaluator)
        algorithm.run(100)
    print(sorted(list(solution.objectives) for solution in algorithm.result))
