"""The points of the code at which tests inject faults."""

from __future__ import annotations

import pytest
from light_tasks import square
from waiting import BOUND

from prefork_executor import PreforkExecutor, worker_index
from prefork_executor._support import faults


def test_a_point_that_there_is_not_cannot_be_injected() -> None:
    with pytest.raises(ValueError, match=r"no point of the code is called 'worker\.sleeps'"):
        with faults.injected("worker.sleeps", print):
            pass
    assert not faults.points


def test_what_is_injected_is_called_as_long_as_its_with_lasts_and_the_inner_one_first() -> None:
    called: list[str] = []
    with faults.injected("worker.sent", lambda kind: called.append(f"outer {kind}")):
        with faults.injected("worker.sent", lambda kind: called.append(f"inner {kind}")):
            faults.at("worker.sent", 1)
        faults.at("worker.sent", 2)
        faults.at("worker.leaves")
    faults.at("worker.sent", 3)
    assert called == ["inner 1", "outer 2"]
    assert not faults.points


def test_a_forked_worker_inherits_what_is_injected_and_the_caller_is_not_there() -> None:
    here: list[int | None] = []

    def raise_in_worker(*_: object) -> None:
        here.append(worker_index())
        if here[-1] is not None:
            raise OSError("injected")

    with faults.injected("payload.opens", raise_in_worker):
        with PreforkExecutor(1, "fork") as executor:
            with pytest.raises(OSError, match="injected"):
                executor.submit(len, bytes(1_000_000)).result(BOUND)
            assert executor.submit(square, 3).result(BOUND) == 9
    assert here == []
