"""OpenTelemetry's context, which travels with the tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from scripts import program_text, run_script

from prefork_executor import PreforkExecutor, WorkerDied
from prefork_executor.integrations.opentelemetry import ContextExecutor

Ids = tuple[int, int | None]
"""A span's trace, and its parent's span."""


@pytest.fixture
def tracer() -> trace.Tracer:
    # Not set globally: that can be done once, and not undone.
    return TracerProvider(shutdown_on_exit=False).get_tracer("tests")


def trace_spans() -> None:
    trace.set_tracer_provider(TracerProvider())


@pytest.fixture
def executor(start_method: str) -> Iterator[PreforkExecutor]:
    with PreforkExecutor(2, start_method, initializer=trace_spans) as executor:
        yield executor


def make_a_span(*_args: object, **_kwargs: object) -> Ids:
    with trace.get_tracer("worker").start_as_current_span("work") as span:
        parent: Any = getattr(span, "parent", None)
        return span.get_span_context().trace_id, parent and parent.span_id


def ids_of(span: trace.Span) -> Ids:
    return span.get_span_context().trace_id, span.get_span_context().span_id


def test_a_span_made_in_a_worker_has_the_callers_as_its_parent(
    executor: PreforkExecutor, tracer: trace.Tracer
) -> None:
    traced = ContextExecutor(executor)
    with tracer.start_as_current_span("order") as span:
        assert traced.submit(make_a_span, 1, key=2).result() == ids_of(span)
        assert list(traced.map(make_a_span, range(3))) == [ids_of(span)] * 3
        assert (
            list(traced.map(make_a_span, range(3), chunksize=2, buffersize=1)) == [ids_of(span)] * 3
        )


def test_the_context_is_that_of_the_call_and_ends_with_the_task(
    executor: PreforkExecutor, tracer: trace.Tracer
) -> None:
    traced = ContextExecutor(executor)
    with tracer.start_as_current_span("one") as one:
        results = traced.map(make_a_span, range(2))
    with tracer.start_as_current_span("other") as other:
        assert list(results) == [ids_of(one)] * 2
        assert traced.submit(make_a_span).result() == ids_of(other)
    for _ in range(4):
        _, parent = traced.submit(make_a_span).result()
        assert parent is None


def read_baggage(name: str) -> object:
    return baggage.get_baggage(name)


def test_baggage_comes_along(executor: PreforkExecutor) -> None:
    traced = ContextExecutor(executor)
    token = context.attach(baggage.set_baggage("customer", "42"))
    try:
        assert traced.submit(read_baggage, "customer").result() == "42"
    finally:
        context.detach(token)
    assert traced.submit(read_baggage, "customer").result() is None


def fail() -> None:
    raise ValueError("sorry")


@pytest.mark.parametrize("wrap", [lambda executor: executor, lambda e: e.with_options(retries=0)])
def test_everything_else_is_as_without_it(wrap: Callable[[PreforkExecutor], Any]) -> None:
    executor = PreforkExecutor(1)
    with ContextExecutor(wrap(executor)) as traced:
        with pytest.raises(ValueError, match="sorry"):
            traced.submit(fail).result()
        with pytest.raises(WorkerDied, match="_exit"):
            traced.submit(os._exit, 3).result()
        assert traced.submit(lambda n: n + 1, 1).result() == 2
        assert executor.abort(traced.submit(abs, 1)) in (True, False)
        for call in (traced.submit, traced.map):
            with pytest.raises(TypeError, match="fn must be callable, not int"):
                call(3)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)


PROGRAM = program_text("spans")


@pytest.mark.parametrize("where", ["initializer", "module"])
def test_a_worker_exports_its_last_spans_wherever_the_provider_was_made(
    tmp_path: Path, start_method: str, where: str
) -> None:
    assert run_script(tmp_path, PROGRAM, start_method, where) == "10\n"
    spans = [line.split() for line in (tmp_path / "spans").read_text().splitlines()]
    assert sorted(name for name, _, _ in spans) == ["order", *(f"work{n}" for n in range(5))]
    [order] = [own for name, own, _ in spans if name == "order"]
    assert {parent for name, _, parent in spans if name != "order"} == {order}
