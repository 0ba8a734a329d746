"""An ensemble of walkers, its likelihoods computed with `pool.map`."""

from concurrent.futures import ProcessPoolExecutor

import emcee
import numpy as np


def log_probability(x: np.ndarray) -> float:
    return float(-0.5 * np.sum(x**2))


if __name__ == "__main__":
    np.random.seed(7)
    start = np.random.randn(8, 3)
    with ProcessPoolExecutor(2) as pool:
        sampler = emcee.EnsembleSampler(8, 3, log_probability, pool=pool)
        sampler.run_mcmc(start, 25)
    print(sampler.get_chain(flat=True).sum(axis=0).tolist())
    print(sampler.acceptance_fraction.tolist())
