import sys
import threading
import traceback

from prefork_executor import PreforkExecutor


class Wrong(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code


class Locked(Exception):
    def __init__(self):
        super().__init__("locked")
        self.lock = threading.Lock()


def fail():
    raise Wrong(5)


def fail_locked():
    try:
        fail()
    except Wrong as error:
        raise Locked() from error


def fail_locally():
    class Local(Wrong):
        pass

    raise Local(6)


def printed_here(function):
    try:
        function()
    except Exception as error:
        error.__traceback__ = error.__traceback__.tb_next
        return "".join(traceback.format_exception(error))


if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:
        for function in (fail, fail_locked, fail_locally):
            error = executor.submit(function).exception()
            assert isinstance(error, (Wrong, Locked)), type(error).__mro__
            there = "".join(traceback.format_exception(error))
            assert there == printed_here(function), there
        assert type(executor.submit(fail).exception()) is Wrong
    print("ok")
