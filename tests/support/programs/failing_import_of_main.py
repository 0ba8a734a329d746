import sys
from concurrent.futures.process import BrokenProcessPool

from prefork_executor import PreforkExecutor

if __name__ != "__main__":
    sys.stderr = open("errors", "w")
    raise LookupError("no such table")
for share in ("auto", False):
    with PreforkExecutor(1, sys.argv[1], share_main=share) as executor:
        try:
            executor.submit(abs, 1).result()
        except BrokenProcessPool as error:
            print(error)
