import importlib.util
import os
import sys
import types

from prefork_executor import PreforkExecutor


def root(point):
    return point.root()


def main():
    with PreforkExecutor(1, sys.argv[1]) as executor:
        print(executor.submit(abs, -1).result())

        made = types.ModuleType("made_by_hand")
        sys.modules["made_by_hand"] = made
        exec("def f(x): return x + 1", vars(made))
        print(executor.submit(made.f, 1).result())
        print(executor.submit(lambda: made.f(1)).result())

        sys.path.append(os.path.abspath("aside"))
        import by_path

        print(executor.submit(by_path.f, 1).result())
        print(list(executor.map(by_path.f, [1, 2])))

        spec = importlib.util.spec_from_file_location("other_name", "aside/by_file.py")
        by_file = importlib.util.module_from_spec(spec)
        sys.modules["other_name"] = by_file
        spec.loader.exec_module(by_file)
        print(executor.submit(root, by_file.Point(9)).result())
        print(type(executor.submit(by_file.Point, 9).result()) is by_file.Point)


if __name__ == "__main__":
    main()
