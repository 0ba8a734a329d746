"""Serve the metrics of an executor to Prometheus.

python examples/metrics.py [--port N] [--seconds S]
"""

from __future__ import annotations

import argparse
import time

from prometheus_client import REGISTRY, start_http_server

from prefork_executor import PreforkExecutor
from prefork_executor.integrations.prometheus import ExecutorCollector


def main() -> None:
    """Work for a while. Meanwhile http://127.0.0.1:PORT/metrics has the metrics."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with PreforkExecutor(4) as executor:
        executor.submit(abs, 1).result()  # The pool starts before there are threads.
        REGISTRY.register(ExecutorCollector(sleepers=executor))
        server, thread = start_http_server(options.port, "127.0.0.1")
        print(f"http://127.0.0.1:{server.server_port}/metrics", flush=True)
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            list(executor.map(time.sleep, [0.05] * 20))
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    main()
