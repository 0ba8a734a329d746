"""`differential_evolution` and `brute` with `workers=2`: scipy's own Pool, and its `map`."""

from scipy.optimize import brute, differential_evolution, rosen

if __name__ == "__main__":
    found = differential_evolution(
        rosen, [(0, 2)] * 3, workers=2, updating="deferred", rng=1, maxiter=15
    )
    print(found.nfev, found.x.tolist(), found.message)
    print(brute(rosen, ((0, 2), (0, 2)), Ns=6, workers=2).tolist())
