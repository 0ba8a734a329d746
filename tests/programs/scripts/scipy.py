"""`differential_evolution`, `brute` and `quad_vec` with `workers=pool.map`."""

from concurrent.futures import ProcessPoolExecutor

import numpy as np
from scipy.integrate import quad_vec
from scipy.optimize import brute, differential_evolution, rosen


def wave(x: float) -> np.ndarray:
    return np.array([np.sin(x), np.cos(x)])


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        found = differential_evolution(
            rosen, [(0, 2)] * 3, workers=pool.map, updating="deferred", rng=1, maxiter=15
        )
        print(found.nfev, found.x.tolist(), found.message)
        print(brute(rosen, ((0, 2), (0, 2)), Ns=6, workers=pool.map).tolist())
        print(quad_vec(wave, 0, np.pi, workers=pool.map)[0].round(9).tolist())
