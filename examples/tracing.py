"""Spans made in workers, with the caller's span as their parent.

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
    """A span in one line. Who exports to a collector needs no such thing."""
    parent = f"{span.parent.span_id:016x}" if span.parent else "nobody"
    return f"{span.name} {span.context.span_id:016x}, child of {parent}, in {os.getpid()}\n"


def trace_spans() -> None:
    """Set tracing up, in this process."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=show)))
    trace.set_tracer_provider(provider)


def price(item: str) -> int:
    """Look a price up, within a span."""
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
