"""The regulator, if there is memory for fewer workers than the maximum."""

from __future__ import annotations

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefork_executor._pool.regulator import Counts, Limits, Memory, regulate

few = st.integers(0, 6)
MANY_LOOKS = 60


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    most = draw(st.integers(1, 12))
    min_spare = draw(st.integers(0, most))
    return Limits(most, min_spare, draw(st.integers(max(1, min_spare), most)), min_spare, 10.0)


counts = st.builds(
    Counts, now=st.just(0.0), starting=few, idle=few, busy=few, leaving=few, backlog=few
)


@settings(max_examples=500, deadline=None)
@given(limits(), counts, st.integers(1, 14))
def test_it_starts_none_beyond_those_and_retires_none_within(
    limits: Limits, counts: Counts, fitting: int
) -> None:
    decision, _ = regulate(counts, limits.fitting(fitting, counts), Memory(begun=True))
    assert decision.start <= max(0, min(fitting, limits.max_workers) - counts.live)
    if limits.max_spare == limits.max_workers >= counts.live:
        assert counts.live - decision.retire >= min(counts.live, fitting)


@settings(max_examples=500, deadline=None)
@given(limits(), counts, st.integers(1, 14))
def test_it_comes_to_rest(limits: Limits, counts: Counts, fitting: int) -> None:
    """While the memory and the load stay the same, it does not start and retire in turn."""
    assume(counts.live <= limits.max_workers)
    memory, counts = Memory(), counts._replace(backlog=0)
    for _ in range(MANY_LOOKS):
        decision, memory = regulate(counts, limits.fitting(fitting, counts), memory)
        idle = counts.idle + counts.starting + decision.start - decision.retire
        counts = counts._replace(now=counts.now + 1, starting=0, idle=idle)
    assert (decision.start, decision.retire) == (0, 0)
    held = counts.busy + counts.leaving
    assert counts.live <= max(min(fitting, limits.max_workers), held)
    wanted = min(limits.min_spare, limits.max_workers - held, fitting - held)
    assert counts.idle >= wanted
