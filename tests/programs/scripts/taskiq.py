"""A receiver runs synchronous tasks in its executor; it asks for the executor's class."""

import asyncio
import logging
from concurrent.futures import ProcessPoolExecutor

from taskiq import InMemoryBroker
from taskiq.receiver import Receiver

logging.disable()  # It logs tracebacks, which differ.


def work(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x + 1


broker = InMemoryBroker()
task = broker.register_task(work, "work")  # Here, so that workers that import this find it.


async def main(executor: ProcessPoolExecutor) -> None:
    broker.receiver = Receiver(broker, executor=executor)
    for x in range(5):
        sent = await task.kiq(x)
        result = await sent.wait_result(timeout=60)
        print(x, result.is_err, result.return_value, repr(result.error))


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as executor:
        asyncio.run(main(executor))
