"""Its `Executors.process_pool` in layers that retry and throttle; futures are chained."""

from pathlib import Path

from more_executors import Executors, f_return, f_sequence


def once_fails(number: int) -> int:
    path = Path(f"tried_{number}")
    if not path.exists():
        path.touch()
        raise OSError(f"{number} for the first time")
    return number * 10


if __name__ == "__main__":
    pool = Executors.process_pool(max_workers=2)
    with pool.with_retry(max_attempts=3, sleep=0.01).with_throttle(2) as executor:
        futures = [executor.submit(once_fails, number) for number in range(6)]
        print(f_sequence(futures).result())
        print(executor.with_map(str).submit(once_fails, 3).result(), f_return(1).result())
