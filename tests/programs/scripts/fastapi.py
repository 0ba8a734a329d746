"""The lifespan of an application makes an executor; endpoints await it and hand it background
work."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor

from fastapi import BackgroundTasks, FastAPI, Request


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with ProcessPoolExecutor(2) as executor:
        app.state.executor = executor
        app.state.later = []
        yield
    print("later", sorted(future.result() for future in app.state.later))


app = FastAPI(lifespan=lifespan)


@app.get("/now/{n}")
async def now(request: Request, n: int) -> int:
    executor = request.app.state.executor
    return await asyncio.get_running_loop().run_in_executor(executor, fibonacci, n)


@app.get("/later/{n}")
async def later(request: Request, n: int, tasks: BackgroundTasks) -> str:
    state = request.app.state
    tasks.add_task(lambda: state.later.append(state.executor.submit(fibonacci, n)))
    return "accepted"


if __name__ == "__main__":
    from fastapi.testclient import TestClient  # Not in workers: it warns.

    with TestClient(app) as client:
        print([client.get(f"/now/{n}").json() for n in range(15)])
        print([client.get(f"/later/{n}").json() for n in range(5)])
