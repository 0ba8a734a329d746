"""Workers make spans that have the caller's span as their parent.

python examples/tracing.py
"""

from __future__ import annotations

import os

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from prefork_executor import PreforkExecutor
from prefork_executor.integrations.opentelemetry import ContextExecutor


def show(span: ReadableSpan) -> str:
    """A span in one line. If you export to a collector, you do not need this."""
    place = f"child of {span.parent.span_id:016x}" if span.parent else "root span"
    return f"{span.name} {span.context.span_id:016x}, {place}, in process {os.getpid()}\n"


def trace_spans() -> None:
    """Set up tracing in this process."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=show)))
    trace.set_tracer_provider(provider)


def price(item: str) -> int:
    """Look up a price, within a span."""
    with trace.get_tracer("shop").start_as_current_span(f"price of {item}"):
        return len(item)


def main() -> None:
    """Price an order's items in workers."""
    with PreforkExecutor(2, "spawn", initializer=trace_spans) as executor:
        trace_spans()
        with trace.get_tracer("shop").start_as_current_span("order"):
            print("total", sum(ContextExecutor(executor).map(price, ["book", "lamp"])))


if __name__ == "__main__":
    main()
