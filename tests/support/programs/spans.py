import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from prefork_executor import PreforkExecutor
from prefork_executor.integrations.opentelemetry import ContextExecutor


class ToFile(SpanExporter):
    def export(self, spans):
        with open("spans", "a") as file:
            for span in spans:
                parent = span.parent and span.parent.span_id
                print(span.name, span.context.span_id, parent, file=file, flush=True)
        return SpanExportResult.SUCCESS


def trace_spans():
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)


def work(number):
    with trace.get_tracer("worker").start_as_current_span(f"work{number}"):
        return number


method, where = sys.argv[1:]
if where == "module":
    trace_spans()

if __name__ == "__main__":
    initializer = trace_spans if where == "initializer" else None
    with PreforkExecutor(2, method, initializer=initializer) as executor:
        if where == "initializer":
            executor.submit(abs, 1).result()  # A fork would inherit what is set below.
            trace_spans()
        with trace.get_tracer("caller").start_as_current_span("order"):
            print(sum(ContextExecutor(executor).map(work, range(5))))
