import os
import socket
import sys
import time
from multiprocessing.reduction import DupFd, register

from prefork_executor import PreforkExecutor


class File:
    def __init__(self, descriptor):
        self.descriptor = descriptor


def opened(dup):
    return File(dup.detach())


register(File, lambda file: (opened, (DupFd(file.descriptor),)))


def send_slowly(self, data, *flags):
    """As a receiver does that is slow to say that it has got a descriptor."""
    if data == b"A":
        time.sleep(0.1)
    return socket.socket.real_send(self, data, *flags)


def give(text):
    read, write = os.pipe()
    os.write(write, text)
    os.close(write)
    return File(read)


def fail(text):
    raise LookupError(give(text))


def read(file):
    return os.read(file.descriptor, 10)


if __name__ == "__main__":
    socket.socket.real_send, socket.socket.send = socket.socket.send, send_slowly
    with PreforkExecutor(1, sys.argv[1], max_tasks_per_child=1) as executor:
        for i in range(3):
            print(read(executor.submit(give, b"result %d" % i).result()).decode())
            error = executor.submit(fail, b"error %d" % i).exception()
            print(read(error.args[0]).decode())
        print(executor.submit(read, give(b"argument")).result().decode())
