"""The executor of its pages, a plugin: workers log through a queue, ignore Ctrl-C and count."""

import logging
import multiprocessing

from ocrmypdf._concurrent import NullProgressBar
from ocrmypdf.builtin_plugins.concurrency import StandardExecutor


def page(number: int) -> tuple[int, int]:
    logging.getLogger("page").warning("page %d", number)
    return number, number**2


def start() -> None:
    logging.getLogger("page").warning("started %s", multiprocessing.current_process().daemon)


def take(result: tuple[int, int], bar: NullProgressBar) -> None:
    taken.append(result)
    bar.update(1)


class Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        told.add(record.getMessage())


taken: list[tuple[int, int]] = []
told: set[str] = set()

if __name__ == "__main__":
    logging.getLogger().addHandler(Told())
    StandardExecutor(pbar_class=NullProgressBar)(
        use_threads=False,
        max_workers=2,
        progress_kwargs={"total": 12, "desc": "pages", "unit": "page"},
        worker_initializer=start,
        task=page,
        task_arguments=[(number,) for number in range(12)],
        task_finished=take,
    )
    print(sorted(taken))
    # The last records may come after its listener has left.
    print("page 0" in told, "started False" in told)
