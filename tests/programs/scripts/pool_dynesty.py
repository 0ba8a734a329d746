"""Nested sampling in dynesty's own pool, which wraps a Pool with an initializer."""

import dynesty
import dynesty.pool
import numpy as np


def log_likelihood(x: np.ndarray) -> float:
    return float(-0.5 * np.sum(x**2))


def prior(u: np.ndarray) -> np.ndarray:
    return 10 * u - 5


if __name__ == "__main__":
    with dynesty.pool.Pool(2, log_likelihood, prior) as pool:
        sampler = dynesty.NestedSampler(
            *(pool.loglike, pool.prior_transform, 2),
            nlive=40,
            pool=pool,
            queue_size=2,
            rstate=np.random.default_rng(3),
        )
        sampler.run_nested(maxiter=150, print_progress=False)
    print(sampler.results["ncall"].sum(), sampler.results["logz"][-1])
