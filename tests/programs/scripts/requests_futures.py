"""HTTP requests made in workers, their sessions pickled; it asks for the executor's class."""

import threading
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from requests_futures.sessions import FuturesSession


class Echo(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with ProcessPoolExecutor(2) as executor:
            session = FuturesSession(executor=executor)
            futures = [session.get(f"{url}/{n}") for n in range(12)]
            print([(future.result().status_code, future.result().text) for future in futures])
        server.shutdown()
