import atexit
import os

from prefork_executor import shared_executor


def note(number):
    descriptor = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{number}\n".encode())
    os.close(descriptor)


@atexit.register
def submit_too_late():
    try:
        executor.submit(note, 99)
    except RuntimeError as error:
        print(f"at exit: {error}")


if __name__ == "__main__":
    executor = shared_executor(max_workers=1, mp_context="fork")
    for number in range(15):
        executor.submit(note, number)
    shared_executor(max_workers=2)
    for number in range(15, 30):
        executor.submit(note, number)
