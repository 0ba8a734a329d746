import threading

from prefork_executor import PreforkExecutor
from prefork_executor._support import faults

begun, at_the_end = threading.Event(), threading.Event()


def wait():
    begun.set()
    assert at_the_end.wait(180)


def submit():
    try:
        executor.submit(pow, 2, 3)
    except RuntimeError as error:
        print(error)


executor = PreforkExecutor(1)
thread = threading.Thread(target=submit, daemon=True)
with faults.injected("client.starts_pool", wait):
    thread.start()
    begun.wait()


def go_on():
    at_the_end.set()
    thread.join()


# Called last first: after the pools that there are have been finished.
threading._threading_atexits.insert(0, go_on)
