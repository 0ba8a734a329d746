"""A genetic algorithm with `parallel_processing=["process", 2]`."""

import numpy as np
import pygad


def fitness(_ga: pygad.GA, solution: np.ndarray, _index: int) -> float:
    return float(-np.sum((solution - 1.5) ** 2))


if __name__ == "__main__":
    ga = pygad.GA(
        num_generations=6,
        num_parents_mating=4,
        fitness_func=fitness,
        sol_per_pop=10,
        num_genes=4,
        random_seed=11,
        parallel_processing=["process", 2],
        suppress_warnings=True,
    )
    ga.run()
    print(ga.best_solution()[1], ga.population.sum())
