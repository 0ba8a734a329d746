"""`map` and `filter` with `num_proc=2`; the pool's processes are watched by their ids."""

import datasets


def double(row: dict[str, int]) -> dict[str, int]:
    return {"twice": 2 * row["number"]}


if __name__ == "__main__":
    datasets.disable_progress_bars()
    numbers = datasets.Dataset.from_dict({"number": list(range(200))})
    doubled = numbers.map(double, num_proc=2)
    print(sum(doubled["twice"]), doubled.column_names)
    print(len(doubled.filter(lambda row: row["twice"] % 3 == 0, num_proc=2)))
    more = numbers.map(
        lambda rows: {"n": [n + 1 for n in rows["number"]]}, batched=True, num_proc=2
    )
    print(more[199])
