import os
import sys

from light_tasks import run_until

from prefork_executor import PreforkExecutor


def try_all(executor):
    for name, call in [
        ("submit", lambda: executor.submit(pow, 2, 3)),
        ("map", lambda: list(executor.map(abs, [1]))),
        ("kill", executor.kill_workers),
    ]:
        try:
            call()
        except Exception as error:
            print(name, type(error).__name__, error, flush=True)
    print("stats", len(executor.stats().workers), flush=True)
    executor.shutdown()


if __name__ == "__main__":
    method, started = sys.argv[1:]
    with PreforkExecutor(2, method) as executor:
        running = [executor.submit(run_until, started + ".gate", started) for _ in range(2)]
        queued = [executor.submit(pow, i, 2) for i in range(50)]
        while not os.path.exists(started) or open(started).read().count("\n") < 2:
            pass
        child = os.fork()
        if child == 0:
            try_all(executor)
            sys.exit(5)  # All that runs at an interpreter's end runs in the child.
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        open(started + ".gate", "w").close()
        print("tasks", sum(future.result() for future in queued))
        print("running", len({future.result() for future in running}))
    print("end")
