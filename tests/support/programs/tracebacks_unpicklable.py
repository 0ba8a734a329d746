import copyreg
import pickle
import types

from prefork_executor import PreforkExecutor

if __name__ == "__main__":
    with PreforkExecutor(1) as executor:
        error = executor.submit(divmod, 1, 0).exception()
        executor.submit(lambda: 1).result()
    print(types.TracebackType in copyreg.dispatch_table)
    print(any(issubclass(kind, BaseException) for kind in copyreg.dispatch_table))
    try:
        pickle.dumps(error.__traceback__)
    except TypeError as refused:
        print(refused)
    print(pickle.loads(pickle.dumps(error)).__traceback__)
