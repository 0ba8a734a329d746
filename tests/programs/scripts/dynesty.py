"""Nested sampling with `pool=executor`: likelihoods and proposals go through `map`."""

from concurrent.futures import ProcessPoolExecutor

import dynesty
import numpy as np


def log_likelihood(x: np.ndarray) -> float:
    return float(-0.5 * np.sum(x**2))


def prior(u: np.ndarray) -> np.ndarray:
    return 10 * u - 5


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        sampler = dynesty.NestedSampler(
            *(log_likelihood, prior, 2),
            nlive=40,
            pool=pool,
            queue_size=2,
            rstate=np.random.default_rng(3),
        )
        sampler.run_nested(maxiter=150, print_progress=False)
    print(sampler.results["ncall"].sum(), sampler.results["logz"][-1])
