"""A handler awaits `run_in_executor`, ten requests at a time; one call fails."""

import asyncio
from concurrent.futures import ProcessPoolExecutor

import aiohttp
from aiohttp import web

EXECUTOR = web.AppKey("executor", ProcessPoolExecutor)


def factor(number: int) -> list[int]:
    if number < 2:
        raise ValueError(f"{number} has no factors")
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found


async def handle(request: web.Request) -> web.Response:
    loop = asyncio.get_running_loop()
    try:
        number = int(request.match_info["number"])
        factors = await loop.run_in_executor(request.app[EXECUTOR], factor, number)
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=400)
    return web.json_response(factors)


async def main(executor: ProcessPoolExecutor) -> None:
    app = web.Application()
    app[EXECUTOR] = executor
    app.router.add_get("/{number}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession() as session:

        async def ask(number: int) -> tuple[int, int, str]:
            async with session.get(f"http://{host}:{port}/{number}") as response:
                return number, response.status, await response.text()

        for answer in await asyncio.gather(*map(ask, range(10))):
            print(*answer)
    await runner.cleanup()


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as executor:
        asyncio.run(main(executor))
