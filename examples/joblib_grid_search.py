"""Search a grid of parameters with scikit-learn, with the tasks in a pool of prefork_executor.

    python examples/joblib_grid_search.py [--n-jobs N] [--verify]

The data are handwritten digits. A support vector machine is fitted with six candidates and three
folds. Importing the integration makes the backend known to joblib. From then on every library
that uses joblib can run on it. ``--verify`` searches once more without a pool and compares the
scores.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import joblib
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import prefork_executor.integrations.joblib  # noqa: F401 - registers the backend

GRID = {"C": [0.1, 1.0, 10.0], "gamma": [0.0005, 0.005]}
FOLDS = 3
SAMPLES = 600
"""How many of the 1797 digits are used: enough to tell the candidates apart in a second."""


def search(n_jobs: int | None) -> Any:
    """The search, after it has tried all candidates."""
    images, digits = load_digits(return_X_y=True)
    searching = GridSearchCV(SVC(), GRID, cv=FOLDS, n_jobs=n_jobs)
    return searching.fit(images[:SAMPLES], digits[:SAMPLES])


def print_scores(done: Any, console: Console) -> None:
    """One line for each candidate."""
    table = Table("C", "gamma", "accuracy", "deviation")
    results = done.cv_results_
    rows = zip(
        results["params"], results["mean_test_score"], results["std_test_score"], strict=True
    )
    for candidate, mean, deviation in rows:
        table.add_row(
            str(candidate["C"]), str(candidate["gamma"]), f"{mean:.3f}", f"{deviation:.3f}"
        )
    console.print(table)
    console.print(f"Best: {done.best_params_}, accuracy {done.best_score_:.3f}", highlight=False)


def verify(done: Any, console: Console) -> bool:
    """Search without a pool. Returns whether every score is the same."""
    serial = search(n_jobs=None)
    same = list(serial.cv_results_["mean_test_score"]) == list(done.cv_results_["mean_test_score"])
    console.print(
        f"Verified: {'same scores as' if same else '[red]other[/red] scores than'} without a pool"
    )
    return same


def main(arguments: list[str] | None = None) -> int:
    """Run the example. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n-jobs", type=int, default=-1, help="default: -1, all CPUs")
    parser.add_argument(
        "--verify", action="store_true", help="compare with a search without a pool"
    )
    options = parser.parse_args(arguments)
    console = Console()
    began = time.perf_counter()
    # If a worker dies in a fit (for lack of memory, for example), the fit is tried once more.
    with joblib.parallel_config(backend="prefork", retries=1):
        done = search(options.n_jobs)
    print_scores(done, console)
    console.print(f"{len(done.cv_results_['params']) * FOLDS} fits", end=" ")
    console.print(f"in {time.perf_counter() - began:.2f} s")
    return int(options.verify and not verify(done, console))


# Workers are forked from a process that imports this file. It runs all code outside of this `if`.
if __name__ == "__main__":
    sys.exit(main())
