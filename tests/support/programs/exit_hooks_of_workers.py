import sys
from pathlib import Path

from prefork_executor import PreforkExecutor

sys.path[:0] = sys.argv[2:]
import test_worker_ends as ends

if __name__ == "__main__":
    directory = Path("worker").resolve()
    options = {"finalizer": ends.finalize, "finalargs": (directory / "witness",)}
    executor = PreforkExecutor(1, sys.argv[1], **options)
    executor.submit(ends.set_up_ends, directory)
