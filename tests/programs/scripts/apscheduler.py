"""A scheduler runs jobs in its process pool, for which it asks for spawn; one job fails."""

import logging
import threading
from datetime import datetime

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, JobExecutionEvent
from apscheduler.executors.pool import ProcessPoolExecutor as PoolOfJobs
from apscheduler.schedulers.background import BackgroundScheduler

JOBS = 6


def square(x: int) -> int:
    if x == 4:
        raise ValueError("four")
    return x * x


if __name__ == "__main__":
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
    ended: list[str] = []
    all_ended = threading.Event()

    def note(event: JobExecutionEvent) -> None:
        ended.append(f"{event.job_id}: {event.retval} {event.exception!r}")
        if len(ended) == JOBS:
            all_ended.set()

    scheduler = BackgroundScheduler(executors={"default": PoolOfJobs(2)}, timezone="UTC")
    scheduler.add_listener(note, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    for x in range(JOBS):
        scheduler.add_job(
            *(square, "date"),
            args=[x],
            id=str(x),
            run_date=datetime(2000, 1, 1),
            misfire_grace_time=None,
        )
    scheduler.start()
    all_ended.wait(120)
    scheduler.shutdown()
    print("\n".join(sorted(ended)))
