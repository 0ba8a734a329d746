"""`process_map` with a bar and `chunksize`; workers get the bar's lock from the initializer."""

from tqdm.contrib.concurrent import process_map

BAR = "{desc}: {n_fmt}/{total_fmt}"


def cube(number: int) -> int:
    return number**3


def difference(one: int, other: int) -> int:
    return one - other


if __name__ == "__main__":
    options = {"max_workers": 2, "bar_format": BAR, "ascii": True, "mininterval": 1e9}
    print(process_map(cube, range(40), desc="by one", **options))
    print(process_map(cube, range(40), chunksize=7, desc="by seven", **options))
    print(process_map(difference, range(9), range(5, 20), desc="two", **options))
    try:
        process_map(cube, [1, "two"], desc="bad", **options)
    except TypeError as error:
        print("TypeError:", error)
