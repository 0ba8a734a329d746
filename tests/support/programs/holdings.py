import json
import multiprocessing  # First: when it is imported, it sets sys.modules["__mp_main__"].
import os
import sys
import time
import types
import warnings

from prefork_executor._fork_safety.holdings import Holdings, in_the_way, watching

warnings.simplefilter("ignore")
assert multiprocessing
source, child = json.loads(sys.argv[1])
main = sys.modules["__mp_main__"] = types.ModuleType("__mp_main__")
before = Holdings.now()
with watching() as seen:
    exec(compile(source, "the_main_module.py", "exec"), vars(main))
said = in_the_way(before, seen)
right = []
for _ in range(2 if child else 0):
    pid = os.fork()
    if pid == 0:
        exec(child, vars(main))
        os._exit(0)
    ended, deadline = 0, time.monotonic() + 60
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    if not ended:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    right.append(ended and status == 0)
if hasattr(main, "child_process"):
    main.child_process.kill()
print(json.dumps([said, right]))
sys.stdout.flush()
os._exit(0)
