"""The shared slots: where the words lie, who sees what."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from prefork_executor._board import scoreboard as sb
from prefork_executor._board.scoreboard import Scoreboard, Slot
from prefork_executor._board.worker_states import State
from prefork_executor._client.batches import MAX_TASKS
from prefork_executor._messages.wire import MAX_CALLS
from prefork_executor._system.shared_files import shared_file

CACHE_LINE = 64


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = new_board(slots=4)
    yield board
    board.close()


def new_board(slots: int) -> Scoreboard:
    return Scoreboard(shared_file("prefork-scoreboard", Scoreboard.size_for(slots)), slots)


def fill(board: Scoreboard, place: int, pid: int, state: int = sb.IDLE) -> Slot:
    """Put a different number into each word of a slot."""
    slot = Slot(place, pid, 11, 0, state, 13, 14, 16, head=2, tail=3, recall=17, unsent=18)
    base = board.base(place)
    words = {sb.PID: pid, sb.BORN: 11, sb.SINCE: 14, sb.DONE: 16, sb.RECALL: 17, sb.UNSENT: 18}
    for word, value in words.items():
        board.words[base + word] = value
    board.words[base + sb.HOLDS] = sb.pack_holds(state, slot.task, slot.head, slot.tail)
    return slot


@pytest.mark.parametrize("place", range(5))
def test_a_slot_fills_whole_cache_lines(place: int) -> None:
    assert Scoreboard.base(place) * sb.WORD_BYTES % CACHE_LINE == 0
    assert (Scoreboard.base(place + 1) - Scoreboard.base(place)) * sb.WORD_BYTES % CACHE_LINE == 0


def test_the_header_has_cache_lines_of_its_own() -> None:
    assert Scoreboard.base(0) * sb.WORD_BYTES >= CACHE_LINE
    words = (sb.OUTSTANDING, sb.BELL, sb.ENOUGH)
    assert len(set(words)) == len(words)
    assert max(words) < sb.HEADER_WORDS


@pytest.mark.parametrize("slots", [1, 7, 4096])
def test_a_board_has_room_for_its_slots_and_no_more(slots: int) -> None:
    words = Scoreboard.base(slots) * sb.WORD_BYTES
    waits = slots * sb.WAITS * 2 * sb.WORD_BYTES
    rings = 2 * sb.DECISIONS_KEPT * sb.DECISION_BYTES + sb.MAX_NAMES * sb.NAME_BYTES
    assert Scoreboard.size_for(slots) == words + slots * sb.AREA + waits + rings


def test_the_plain_numbers_are_the_states() -> None:
    numbers = (sb.FREE, sb.STARTING, sb.IDLE, sb.TAKING, sb.BUSY, sb.LEAVING)
    assert numbers == tuple(State)
    assert [type(number) for number in numbers] == [int] * 6


def test_a_new_board_has_no_workers(board: Scoreboard) -> None:
    assert board.read_all() == []
    assert board.free_slot() == 0
    assert board.words[sb.OUTSTANDING] == 0


def test_a_slot_reads_as_it_was_written(board: Scoreboard) -> None:
    slot = fill(board, 2, pid=123)
    assert board.read(2) == slot
    assert board.read_all() == [slot]


def test_the_words_of_a_slot_are_named_in_their_order(board: Scoreboard) -> None:
    slot = fill(board, 1, pid=123)
    named = {
        "pid": sb.PID,
        "born": sb.BORN,
        "retire": sb.RETIRE,
        "since": sb.SINCE,
        "done": sb.DONE,
        "recall": sb.RECALL,
        "unsent": sb.UNSENT,
    }
    for name, word in named.items():
        assert getattr(slot, name) == board.words[board.base(1) + word]
    holds = board.words[board.base(1) + sb.HOLDS]
    assert sb.pack_holds(slot.state, slot.task, slot.head, slot.tail) == holds


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("number", [0, 1, sb.MAX_NUMBER, 2**48 - 1])
@pytest.mark.parametrize(("head", "tail"), [(0, 0), (sb.MAX_BESIDE, 0), (0, sb.MAX_BESIDE)])
def test_a_state_and_its_task_are_one_word(
    board: Scoreboard, state: int, number: int, head: int, tail: int
) -> None:
    board.words[board.base(0) + sb.HOLDS] = sb.pack_holds(state, number, head, tail)
    slot = board.read(0)
    assert (slot.state, slot.task, slot.head, slot.tail) == (state, number, head, tail)
    assert board.states()[0] == state


def test_what_a_message_may_have_fits_the_word() -> None:
    assert MAX_TASKS <= MAX_CALLS <= sb.MAX_BESIDE + 1
    assert sb.MAX_NUMBER + MAX_CALLS <= 2**48


def test_the_areas_of_slots_do_not_overlap(board: Scoreboard) -> None:
    for place in range(4):
        board.area(place)[:] = bytes([place]) * sb.AREA
        board.words[board.base(place) + sb.UNSENT] = place
    assert [board.unsent(place) for place in range(4)] == [b"", b"\1", b"\2\2", b"\3\3\3"]
    assert board.area(1)[-1:] == b"\1"


def test_a_word_holds_64_bits(board: Scoreboard) -> None:
    board.words[sb.ENOUGH] = sb.NEVER
    assert board.words[sb.ENOUGH] == 2**64 - 1
    with pytest.raises(ValueError, match=r"invalid value|out of range"):
        board.words[sb.ENOUGH] = sb.NEVER + 1


def test_the_first_slot_without_a_worker_is_free(board: Scoreboard) -> None:
    for place in (0, 1, 3):
        fill(board, place, pid=100 + place)
    assert board.free_slot() == 2
    fill(board, 2, pid=102)
    assert board.free_slot() is None


def test_a_cleared_slot_is_free_and_its_neighbours_are_untouched(board: Scoreboard) -> None:
    slots = [fill(board, place, pid=100 + place) for place in range(4)]
    board.words[sb.OUTSTANDING] = 5
    board.clear(1)
    assert board.read(1) == Slot(1, 0, 0, 0, 0, 0, 0, 0)
    assert board.read_all() == [slots[0], *slots[2:]]
    assert board.free_slot() == 1
    assert board.words[sb.OUTSTANDING] == 5


def test_a_slot_that_is_just_being_cleared_is_no_worker(board: Scoreboard) -> None:
    class Torn(Scoreboard):
        def read(self, index: int) -> Slot:
            slot = super().read(index)
            return slot._replace(pid=0) if index == 0 else slot._replace(state=sb.FREE)

    fill(board, 0, pid=100)
    fill(board, 1, pid=101)
    board.__class__ = Torn
    assert board.read_all() == []


def test_the_board_closes_its_descriptor_and_may_be_closed_again(board: Scoreboard) -> None:
    descriptor = board.descriptor
    board.close()
    board.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


OTHER_PROCESS = """
import sys
from prefork_executor._board import scoreboard as sb
board = sb.Scoreboard(int(sys.argv[1]), 4)
print(board.read(2).done, flush=True)
for line in sys.stdin:
    board.words[board.base(2) + sb.DONE] = int(line)
    print(board.words[sb.OUTSTANDING], flush=True)
"""


def test_two_processes_see_each_others_words(board: Scoreboard) -> None:
    fill(board, 2, pid=123)
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, str(board.descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[board.descriptor],
    )
    with other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "16\n"
        for number in (1, 2**63, sb.NEVER):
            board.words[sb.OUTSTANDING] = number - 1
            other.stdin.write(f"{number}\n")
            other.stdin.flush()
            assert other.stdout.readline() == f"{number - 1}\n"
            assert board.read(2).done == number
        other.stdin.close()
    assert other.returncode == 0


def test_the_file_itself_can_be_read_by_anybody_who_has_it(board: Scoreboard) -> None:
    fill(board, 0, pid=77)
    raw = os.pread(board.descriptor, Scoreboard.size_for(4), 0)
    words = struct.unpack(f"={len(raw) // 8}Q", raw)
    assert words[Scoreboard.base(0) + sb.PID] == 77
    assert words[Scoreboard.base(0) : Scoreboard.base(1)] == tuple(
        board.words[Scoreboard.base(0) : Scoreboard.base(1)]
    )
