import os
import warnings

import joblib

import prefork_executor.integrations.joblib as ours

warnings.simplefilter("ignore", DeprecationWarning)  # The executor's thread.


def squares():
    return joblib.Parallel(n_jobs=2, backend="prefork")(joblib.delayed(pow)(i, 2) for i in range(4))


if __name__ == "__main__":
    print(squares(), flush=True)
    child = os.fork()
    if child == 0:
        print(squares(), flush=True)
        ours.shutdown()
        os._exit(0)
    os.waitpid(child, 0)
    print(squares())
