"""A genetic algorithm that evaluates a generation with `pool.map`."""

import random
from concurrent.futures import ProcessPoolExecutor

from deap import algorithms, base, creator, tools

creator.create("Fitness", base.Fitness, weights=(1.0,))
creator.create("Individual", list, fitness=creator.Fitness)


def ones(individual: list[int]) -> tuple[int]:
    return (sum(individual),)


toolbox = base.Toolbox()
toolbox.register("bit", random.randint, 0, 1)
toolbox.register("individual", tools.initRepeat, creator.Individual, toolbox.bit, 30)
toolbox.register("population", tools.initRepeat, list, toolbox.individual)
toolbox.register("evaluate", ones)
toolbox.register("mate", tools.cxTwoPoint)
toolbox.register("mutate", tools.mutFlipBit, indpb=0.05)
toolbox.register("select", tools.selTournament, tournsize=3)

if __name__ == "__main__":
    random.seed(5)
    with ProcessPoolExecutor(2) as pool:
        toolbox.register("map", pool.map)
        population, log = algorithms.eaSimple(
            toolbox.population(40), toolbox, 0.5, 0.2, 8, verbose=False
        )
    print([record["nevals"] for record in log], sorted(map(sum, population)))
