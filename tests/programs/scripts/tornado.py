"""`IOLoop.run_in_executor` in a handler, several requests at a time."""

import asyncio
from concurrent.futures import ProcessPoolExecutor

from tornado import httpclient, httpserver, ioloop, netutil, web


def digits(number: int) -> int:
    return len(str(7**number))


class Handler(web.RequestHandler):
    async def get(self, number: str) -> None:
        executor = self.application.settings["executor"]
        loop = ioloop.IOLoop.current()
        self.write(str(await loop.run_in_executor(executor, digits, int(number))))


async def main(executor: ProcessPoolExecutor) -> None:
    sockets = netutil.bind_sockets(0, "127.0.0.1")
    app = web.Application([("/([0-9]+)", Handler)], executor=executor)
    server = httpserver.HTTPServer(app)
    server.add_sockets(sockets)
    client = httpclient.AsyncHTTPClient()
    url = "http://127.0.0.1:{}/{}"
    port = sockets[0].getsockname()[1]
    answers = await asyncio.gather(*(client.fetch(url.format(port, n * 100)) for n in range(10)))
    print([answer.body.decode() for answer in answers])
    client.close()
    server.stop()


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as executor:
        asyncio.run(main(executor))
