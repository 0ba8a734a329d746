"""Messages: round trips, and what comes of packets that none of us has sent.

Whatever arrives, a reader gets a message, a ProtocolError or the end of file,
and no descriptor stays open for it. All of it holds for the means of other
systems, too: test_other_systems.py runs it with those.
"""

from __future__ import annotations

import array
import contextlib
import errno
import itertools
import mmap
import os
import pickle
import resource
from collections.abc import Iterator
from pickle import PickleBuffer
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from prefork_executor._messages import channels, wire
from prefork_executor._messages.channels import DONTWAIT, Packet, Receiver
from prefork_executor._messages.wire import ALIGNMENT, BIG, HEADER, INLINE_LIMIT, PACKET_LIMIT, Kind
from prefork_executor._system import descriptors, platform, shared_files
from prefork_executor.errors import ProtocolError

quick = settings(max_examples=100, deadline=None)
KINDS = [number for name, number in vars(Kind).items() if name.isupper()]
kinds = st.sampled_from(KINDS)
words = st.integers(0, 2**64 - 1)
sizes_of_parts = st.lists(st.integers(0, 2**63), min_size=1, max_size=20)


@contextlib.contextmanager
def socket_pair() -> Iterator[tuple[descriptors.Socket, descriptors.Socket]]:
    near, far = descriptors.socket_pair()
    with contextlib.closing(near), contextlib.closing(far):
        yield near, far


@contextlib.contextmanager
def leaving_no_descriptor() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def new_files(number: int) -> list[int]:
    return [shared_files.shared_file("prefork-payload", 64) for _ in range(number)]


# --- headers, tables, notices -----------------------------------------------------------------


@quick
@given(kinds, words, words, st.binary(max_size=100))
def test_a_packet_is_a_header_and_its_body(kind: int, number: int, extra: int, body: bytes):
    packet = wire.pack(kind, number, extra, body)
    assert HEADER.unpack_from(packet) == (kind, 0, 1, number, extra)
    assert packet[HEADER.size :] == body


@quick
@given(kinds, words, words, sizes_of_parts)
def test_a_big_packet_carries_a_table_of_sizes(
    kind: int, number: int, extra: int, sizes: list[int]
) -> None:
    packet = wire.pack_big(kind, number, extra, sizes)
    assert HEADER.unpack_from(packet) == (kind, BIG, len(sizes), number, extra)
    assert wire.unpack_sizes(len(sizes), memoryview(packet)[HEADER.size :]) == sizes


@quick
@given(sizes_of_parts)
def test_parts_lie_aligned_one_after_another(sizes: list[int]) -> None:
    starts = wire.offsets(sizes)
    assert all(start % ALIGNMENT == 0 for start in starts)
    gaps = [
        after - start - size
        for (start, after), size in zip(itertools.pairwise(starts), sizes, strict=True)
    ]
    assert all(0 <= gap < ALIGNMENT for gap in gaps)


@quick
@given(st.integers(0, 2**32 - 1), st.binary(max_size=64))
@example(0, b"")
@example(2**32 - 1, b"")
@example(1, b"1234567")
def test_a_table_of_sizes_has_an_entry_a_part_or_is_refused(parts: int, table: bytes) -> None:
    try:
        sizes = wire.unpack_sizes(parts, memoryview(table))
    except ProtocolError:
        assert parts < 1 or len(table) != 8 * parts
    else:
        assert len(sizes) == parts


def test_a_table_fills_a_packet_at_most() -> None:
    most = wire.MAX_PARTS
    assert len(wire.pack_big(Kind.CALL, 1, 0, [0] * most)) <= PACKET_LIMIT
    with pytest.raises(ProtocolError):
        wire.unpack_sizes(most + 1, memoryview(bytes(8 * (most + 1))))


deaths = st.builds(wire.Death, words, st.integers(-(2**63), 2**63 - 1), *itertools.repeat(words, 9))


@quick
@given(deaths)
def test_a_death_notice_says_what_the_supervisor_saw(death: wire.Death) -> None:
    packet = wire.pack_death(death)
    kind, _, _, pid, _ = HEADER.unpack_from(packet)
    assert kind == Kind.DEATH
    assert wire.unpack_death(pid, memoryview(packet)[HEADER.size :]) == death


@quick
@given(words, st.binary(max_size=100))
def test_a_malformed_death_notice_is_refused(pid: int, body: bytes) -> None:
    if len(body) != wire.DEATH_BODY.size:
        with pytest.raises(ProtocolError, match="death notice"):
            wire.unpack_death(pid, body)


def test_every_kind_of_message_has_a_number_of_its_own_that_fits() -> None:
    assert len(set(KINDS)) == len(KINDS) > 20
    assert all(0 < kind < 256 for kind in KINDS)


# --- receiving what anybody may have sent -------------------------------------------------------


@quick
@given(st.binary(min_size=1, max_size=100), st.integers(0, 3))
@example(b"x" * PACKET_LIMIT, 1)
@example(b"x" * (PACKET_LIMIT + 1), 1)
@example(b"x" * (3 * PACKET_LIMIT), 0)
@example(b"x" * (HEADER.size - 1), 2)
@example(b"x" * HEADER.size, 2)
def test_any_packet_is_a_message_or_refused_and_leaves_no_descriptor(
    data: bytes, number_of_files: int
) -> None:
    with leaving_no_descriptor(), socket_pair() as (near, far):
        files = new_files(number_of_files)
        channels.send_descriptors(near, data, files)
        descriptors.close_quietly(files)
        try:
            packet = Receiver(far).receive()
        except ProtocolError:
            assert not HEADER.size <= len(data) <= PACKET_LIMIT or number_of_files > 1
            return
        assert bytes(packet.body) == data[HEADER.size :]
        with contextlib.suppress(ProtocolError, OSError):
            channels.open_parts(packet)


@quick
@given(
    st.integers(0, 4),
    st.lists(st.integers(0, 200) | words, max_size=4),
    st.integers(0, 4).map(lambda pages: pages * ALIGNMENT),
    st.booleans(),
)
@example(1, [64], ALIGNMENT, True)
@example(2, [1, 1], 2 * ALIGNMENT, True)
@example(1, [0], 0, True)
def test_a_big_message_is_opened_or_refused_and_leaves_no_descriptor(
    parts: int, sizes: list[int], file_size: int, has_file: bool
) -> None:
    with leaving_no_descriptor():
        table = memoryview(array.array("Q", sizes)).cast("B")
        file = shared_files.shared_file("prefork-payload", file_size) if has_file else -1
        packet = Packet(Kind.CALL, BIG, parts, 1, 0, table, file)
        fits = parts == len(sizes) > 0 and 0 < wire.offsets(sizes)[-1] <= file_size
        if has_file and fits:
            assert [memoryview(part).nbytes for part in channels.open_parts(packet)] == sizes
        else:
            with pytest.raises(ProtocolError if has_file else OSError):
                channels.open_parts(packet)


def test_a_channel_without_a_message_says_so_at_once() -> None:
    with socket_pair() as (_, far), pytest.raises(BlockingIOError):
        Receiver(far).receive(DONTWAIT)


@pytest.mark.skipif(platform.FALLBACK, reason="datagrams have no end of file")
def test_a_channel_whose_other_end_is_gone_is_at_its_end() -> None:
    with socket_pair() as (near, far):
        near.close()
        with pytest.raises(EOFError):
            Receiver(far).receive()


def fill(near: descriptors.Socket) -> None:
    for number in range(100_000):
        channels.send(near, Kind.CALL, number, 0, [b""], DONTWAIT)


def test_a_channel_that_is_full_says_so_at_once() -> None:
    with socket_pair() as (near, _), pytest.raises(BlockingIOError):
        fill(near)


def test_what_is_discarded_leaves_no_descriptor() -> None:
    with leaving_no_descriptor(), socket_pair() as (near, far):
        channels.send(near, Kind.CALL, 1, 0, [bytes(INLINE_LIMIT + 1)])
        channels.discard(Receiver(far).receive())


def test_a_big_message_to_a_process_with_too_many_open_files_is_refused() -> None:
    with socket_pair() as (near, far):
        receiver = Receiver(far)
        for number in (1, 2):
            channels.send(near, Kind.CALL, number, 0, [bytes(100_000)])
        with no_descriptor_left():
            packet = receiver.receive()
            with pytest.raises(OSError, match="too many open descriptors"):
                channels.open_parts(packet)
        packet = receiver.receive()
        assert packet.number == 2
        assert len(channels.open_parts(packet)[0]) == 100_000


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as next_free:
        lowest = next_free.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- payloads through a real channel -------------------------------------------------------------


def through_a_channel(parts: list[Any], number: int = 1) -> list[Any]:
    with socket_pair() as (near, far):
        channels.send(near, Kind.CALL, number, 7, parts)
        packet = Receiver(far).receive(DONTWAIT)
        assert (packet.kind, packet.number, packet.extra) == (Kind.CALL, number, 7)
        return channels.open_parts(packet)


@quick
@given(
    st.lists(
        st.integers(0, 300) | st.sampled_from([4096, INLINE_LIMIT, INLINE_LIMIT + 1, 10**6]),
        min_size=1,
        max_size=5,
    )
)
@example([INLINE_LIMIT])
@example([INLINE_LIMIT + 1])
@example([1] * 100)
def test_what_is_sent_arrives(sizes: list[int]) -> None:
    parts = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    parts[0] = parts[0] or b"a pickle is never empty"
    with leaving_no_descriptor():
        assert [bytes(part) for part in through_a_channel(parts)] == parts


def test_messages_arrive_whole_and_in_order_whatever_their_sizes() -> None:
    with socket_pair() as (near, far):
        receiver = Receiver(far)
        bodies = [bytes([n]) * size for n, size in enumerate([0, 10, 40_000, 32_768, 1, 10**6])]
        for number, body in enumerate(bodies):
            channels.send(near, Kind.YELL, number, 0, [body])
        for number, body in enumerate(bodies):
            packet = receiver.receive(DONTWAIT)
            assert packet.number == number
            assert bytes(channels.open_parts(packet)[0]) == body


def test_an_array_arrives_aligned_and_writable() -> None:
    sent = np.arange(100_000, dtype=np.float64)
    buffers: list[PickleBuffer] = []
    data = pickle.dumps(sent, 5, buffer_callback=buffers.append)
    first, *others = through_a_channel([data, *buffers])
    arrived = pickle.loads(first, buffers=others)
    assert arrived.ctypes.data % ALIGNMENT == 0
    arrived += 1
    assert (arrived == sent + 1).all()


def test_what_one_receiver_writes_into_a_payload_nobody_else_sees() -> None:
    file = shared_files.shared_file("prefork-payload", mmap.PAGESIZE)
    mapped = [shared_files.map_private(file, mmap.PAGESIZE) for _ in range(2)]
    mapped[0][:4] = b"mine"
    assert bytes(mapped[1][:4]) == bytes(4)
    assert os.pread(file, 4, 0) == bytes(4)
    os.close(file)


def test_payloads_that_are_alive_hold_no_descriptors() -> None:
    with leaving_no_descriptor():
        alive = [through_a_channel([bytearray(40_000)]) for _ in range(300)]
        assert len(alive) == 300


def test_bytes_arrive_as_bytes_and_what_can_be_written_to_as_a_view() -> None:
    parts = [b"pickle", bytes(40_000), bytearray(50_000), memoryview(bytes(60_000))[:100]]
    arrived = through_a_channel(parts)
    assert [type(part) for part in arrived] == [bytes, bytes, memoryview, bytes]
    assert [bytes(part) for part in arrived] == [bytes(part) for part in parts]


def test_a_payload_that_is_no_more_alive_is_unmapped() -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as file:
            return sum("prefork-payload" in line for line in file)

    before = mapped()
    parts = through_a_channel([bytearray(40_000)])
    array_over_it = np.frombuffer(parts[0], dtype=np.uint8)
    del parts
    assert mapped() == before + 1
    assert not array_over_it.any()
    del array_over_it
    assert mapped() == before


def test_more_buffers_than_a_packet_can_list_are_refused() -> None:
    with leaving_no_descriptor(), socket_pair() as (near, _):
        with pytest.raises(OSError, match="out-of-band buffers") as caught:
            channels.send(near, Kind.CALL, 1, 0, [b""] * (wire.MAX_PARTS + 1))
        assert caught.value.errno == errno.EMSGSIZE


def test_a_big_payload_that_finds_the_channel_full_leaves_no_descriptor() -> None:
    with leaving_no_descriptor(), socket_pair() as (near, far):
        with pytest.raises(BlockingIOError):
            fill(near)
        with pytest.raises(BlockingIOError):
            channels.send(near, Kind.CALL, 0, 0, [bytes(10**6)], DONTWAIT)
        assert Receiver(far).receive(DONTWAIT).number == 0


class Overloaded:
    """A channel of a user who has too many descriptors under way, for a while."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.sent = 0

    def sendmsg(self, *_: object) -> None:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ETOOMANYREFS, "Too many references")
        self.sent += 1


def test_a_sender_that_may_wait_does_so_while_too_many_descriptors_are_under_way() -> None:
    end: Any = Overloaded(refusals=3)
    with leaving_no_descriptor():
        channels.send(end, Kind.RESULT, 1, 0, [bytes(10**5)])
    assert end.sent == 1


def test_a_channel_counts_as_full_while_too_many_descriptors_are_under_way() -> None:
    end: Any = Overloaded(refusals=1)
    with leaving_no_descriptor(), pytest.raises(BlockingIOError):
        channels.send(end, Kind.CALL, 1, 0, [bytes(10**5)], DONTWAIT)


def test_calls_of_several_functions_have_their_names_beside_them() -> None:
    bodies = [b"one", b"", b"three"]
    packet = wire.pack_calls(7, bodies, wire.pack_call_meta(0, 5), [1, 65535, 3])
    kind, flags, parts, number, extra = HEADER.unpack_from(packet)
    body = memoryview(packet)[HEADER.size :]
    assert (kind, flags, parts, number) == (Kind.CALLS, wire.NAMES, 3, 7)
    assert [bytes(call) for call in wire.unpack_calls(parts, body, flags)] == bodies
    assert list(wire.unpack_names(parts, body)) == [1, 65535, 3]
    assert wire.unpack_call_meta(extra) == (0, 5 << wire.TICK)
    with pytest.raises(ProtocolError):
        wire.unpack_calls(parts, body[:17], flags)


@pytest.mark.parametrize("name", [0, 1, 65535])
@pytest.mark.parametrize("submitted", [0, 1, 2**48 - 1])
def test_what_is_told_beside_a_call_is_read_as_it_was_written(name: int, submitted: int) -> None:
    meta = wire.pack_call_meta(name, submitted)
    assert meta < 2**64
    assert wire.unpack_call_meta(meta) == (name, submitted << wire.TICK)
