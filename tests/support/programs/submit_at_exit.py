import atexit

from prefork_executor import PreforkExecutor

executor = PreforkExecutor(1)
executor.submit(id, 1).result()


@atexit.register
def late():
    try:
        executor.submit(id, 1)
    except RuntimeError as error:
        print(error)
