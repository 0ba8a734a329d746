import itertools
import os
import sys
import warnings
from concurrent.futures.process import BrokenProcessPool

from prefork_executor import Pool


def is_refused(call, *args):
    try:
        call(*args)
    except BrokenProcessPool:
        return True


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Of a fork of a process that has threads.
    with Pool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1
        results = pool.imap(abs, itertools.count(), buffersize=1)
        pid = os.fork()
        if not pid:
            assert is_refused(pool.apply, abs, (-1,))
            assert is_refused(pool.map, abs, range(3))
            assert is_refused(list, results)
            pool.terminate()
            pool.join()
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        print(pool.apply(abs, (-2,)))
