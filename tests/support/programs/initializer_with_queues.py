import multiprocessing
import sys
from multiprocessing.reduction import register

from prefork_executor import PreforkExecutor


class Handle:
    pass


register(Handle, lambda handle: (Handle, ()))


def keep(lock, queue):
    with lock:
        queue.put("kept")


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    given = (context.Lock(), queue)
    for initializer in (keep, lambda *args: keep(*args)):
        with PreforkExecutor(1, context, initializer, given) as executor:
            print(executor.submit(abs, -1).result(), queue.get())
