"""No process of a pool misses what another has written, on machines that reorder memory too.

`litmus.py` has the places where that matters. Here they are explored; the machine itself is put
to the test in test_fences.py. (That the pool as a whole is right where writes are seen late is
explored in test_audit.py.)
"""

from __future__ import annotations

import pytest
from litmus import (
    ALL,
    BOTH_WRITE_AND_READ,
    ONE_WRITES_AND_ONE_READS,
    Litmus,
    Machine,
    outcomes,
    with_own_fence,
    without_fence,
)

both = pytest.mark.parametrize("litmus", BOTH_WRITE_AND_READ.values(), ids=BOTH_WRITE_AND_READ)
one = pytest.mark.parametrize(
    "litmus", ONE_WRITES_AND_ONE_READS.values(), ids=ONE_WRITES_AND_ONE_READS
)
every = pytest.mark.parametrize("litmus", ALL.values(), ids=ALL)
any_machine = pytest.mark.parametrize("machine", Machine)


@every
@any_machine
def test_a_fence_that_the_rare_side_makes_for_both_is_enough(
    litmus: Litmus, machine: Machine
) -> None:
    found = outcomes(machine, without_fence(litmus.hot), litmus.rare)
    assert frozenset(litmus.forbidden) not in found
    assert len(found) > 1


@every
@any_machine
def test_a_fence_on_either_side_is_enough(litmus: Litmus, machine: Machine) -> None:
    found = outcomes(machine, litmus.hot, with_own_fence(litmus.rare))
    assert frozenset(litmus.forbidden) not in found


@every
def test_a_fence_on_the_rare_side_alone_is_not(litmus: Litmus) -> None:
    found = outcomes(Machine.WEAK, without_fence(litmus.hot), with_own_fence(litmus.rare))
    assert frozenset(litmus.forbidden) in found


@both
def test_where_both_write_and_read_a_store_buffer_alone_is_enough_to_go_wrong(
    litmus: Litmus,
) -> None:
    hot, rare = without_fence(litmus.hot), with_own_fence(litmus.rare)
    assert frozenset(litmus.forbidden) in outcomes(Machine.STORE_BUFFER, hot, rare)
    assert frozenset(litmus.forbidden) not in outcomes(Machine.IN_ORDER, hot, rare)


@one
def test_where_one_writes_and_one_reads_x86_needs_no_fence(litmus: Litmus) -> None:
    found = outcomes(Machine.STORE_BUFFER, without_fence(litmus.hot), without_fence(litmus.rare))
    assert frozenset(litmus.forbidden) not in found
