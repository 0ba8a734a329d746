"""`cythonize(nthreads=2)` translates modules to C with `map`, an initializer before; then it is
asked for one that is wrong."""

from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler.Errors import CompileError

SOURCE = """
def times_{0}(int number, values):
    cdef double total = 0
    for value in values:
        total += value * number
    return total * {0}
"""

if __name__ == "__main__":
    for number in range(4):
        Path(f"module_{number}.pyx").write_text(SOURCE.format(number), encoding="utf-8")
    options = {"nthreads": 2, "quiet": True, "force": True, "language_level": 3}
    print([extension.name for extension in cythonize("module_*.pyx", **options)])
    Path("module_2.pyx").write_text("cdef int wrong = undefined\n", encoding="utf-8")
    try:
        cythonize("module_*.pyx", **options)
    except CompileError as error:
        print("CompileError:", error)
