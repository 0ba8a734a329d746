import multiprocessing
import socket
import sys

from prefork_executor import PreforkExecutor


def greet(connection, name):
    connection.send(f"hello {name}")
    connection.close()


def greet_by_socket(end):
    end.sendall(b"hello")
    end.close()


if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:
        for greeting in (greet, lambda *args: greet(*args)):
            ours, theirs = multiprocessing.Pipe()
            executor.submit(greeting, theirs, "you").result()
            print(ours.recv())
        here, there = socket.socketpair()
        executor.submit(greet_by_socket, there).result()
        print(here.recv(100))
        with multiprocessing.Manager() as manager:
            shared = manager.list()
            executor.submit(shared.append, 1).result()
            print(list(shared))
