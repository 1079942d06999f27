# SPDX-License-Identifier: Apache-2.0
"""What goes between recorder and reader, whole, in pieces and as garbage: both ends take what is whole, and end at everything else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.capture import guest_check
from perfguest.capture.guest_reader import ReaderLimits, ReaderProcess
from perfguest.errors import CaptureError
from perfguest.guest import wire
from perfguest.guest.wire import Kind
from perfguest.proto import guest_pb2 as pb
from perfguest.proto import tables_pb2

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.text(max_size=20), lambda inner: st.lists(inner, max_size=4), max_leaves=8
)
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=5)
HEADS = st.tuples(st.integers(0, 64) | st.integers(0, (1 << 32) - 1), st.integers(0, 12) | st.integers(0, (1 << 32) - 1))


def through(data: bytes, read: Callable[[int], Any]) -> Any:
    """What ``read`` makes of a channel that holds these bytes and no more."""
    ours, theirs = os.pipe()
    try:
        os.write(theirs, data)
        os.close(theirs)
        return read(ours)
    finally:
        os.close(ours)


@given(OBJECTS)
def test_requests_come_as_they_were_sent(value: dict[str, Any]) -> None:
    assert through(wire.pack(Kind.REQUEST, value), wire.receive) == value


@given(OBJECTS, st.data())
def test_half_a_request_is_the_end(value: dict[str, Any], data: st.DataObject) -> None:
    whole = wire.pack(Kind.REQUEST, value)
    assert through(whole[: data.draw(st.integers(0, len(whole) - 1))], wire.receive) is None


@given(HEADS, st.binary(max_size=200))
def test_payloads_of_another_kind_or_length_are_refused(head: tuple[int, int], rest: bytes) -> None:
    expected = head[1] == Kind.RAW and head[0] <= len(rest)
    try:
        payload = through(wire.HEAD.pack(*head) + rest, lambda fd: wire.receive_payload(fd, Kind.RAW))
    except OSError:
        assert not expected
    else:
        assert expected
        assert payload == rest[: head[0]]


@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_too_long_is_not_sent(kind: Kind) -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return wire.LIMITS[kind] + 1

    with pytest.raises(ValueError, match="is longer than"):
        wire.frame(kind, Long())


class MadeZygote:
    """Gives a reader whose other end is ours."""

    def __init__(self) -> None:
        self.channel = -1

    def fork(self, memory: int, channel: int, limits: dict[str, int]) -> tuple[int, int]:
        self.channel = os.dup(channel)
        return os.getpid(), os.eventfd(0)

    def status(self, pid: int, seconds: float) -> int | None:
        return 1


FRAMES = st.lists(
    st.builds(lambda head, payload: wire.HEAD.pack(*head) + payload, HEADS, st.binary(max_size=100))
    | st.builds(wire.pack, st.sampled_from([Kind.HELLO, Kind.DONE, Kind.WANT]), OBJECTS)
    | st.builds(wire.frame, st.sampled_from([Kind.KERNEL, Kind.EVENT, Kind.BINARY, Kind.RAW]), st.binary(max_size=100)),
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(FRAMES, st.integers(1, 64))
def test_recorder_takes_any_bytes(frames: list[bytes], step: int) -> None:
    """In pieces of whatever size: there are whole messages, or an error in words, and what is held never grows beyond what came."""
    zygote = MadeZygote()
    reader = ReaderProcess(os.open(os.devnull, os.O_RDONLY), ReaderLimits(answer=1 << 16), zygote)  # type: ignore[arg-type]
    data = b"".join(frames)
    messages = []
    with socket.socket(fileno=zygote.channel) as channel, suppress(CaptureError):
        for at in range(0, len(data), step):
            channel.send(data[at : at + step])
            messages += reader.read()
    for message in messages:
        assert message.kind != Kind.REQUEST
        assert len(message.payload) <= wire.LIMITS[message.kind]
        assert isinstance(message.value, dict)
    reader._socket.close()
    os.close(reader._pidfd)


U64 = st.sampled_from([0, 1, 0xFFF, 0x1000, 1 << 31, 1 << 47, 0xFFFF_FFFF_8000_0000, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
NAMES = st.binary(max_size=40) | st.just(b"x" * 5000)
KEYS = st.text(max_size=20) | st.just("../../etc") | st.just("ab" * 200) | st.just("ab12")
SYMBOLS = st.builds(lambda addresses, types, names: pb.Symbols(addresses=addresses, types=types, names=names), NAMES, st.binary(max_size=4), NAMES)
ORC = st.builds(lambda addresses, entries: pb.Orc(addresses=addresses, entries=entries), NAMES, NAMES)
RUNS = st.lists(st.builds(lambda address, data: pb.Bytes(address=address, data=data), U64, NAMES), max_size=3)
MODULES = st.builds(
    lambda name, build_id, address, size, symbols, orc: pb.Module(name=name, build_id=build_id, address=address, size=size, symbols=symbols, orc=orc),
    *(NAMES, NAMES, U64, U64, SYMBOLS, ORC),
)
MAPPINGS = st.builds(
    lambda start, end, offset, path, binary: pb.Mapping(start=start, end=end, offset=offset, path=path, binary=binary, executable=True),
    *(U64, U64, U64, NAMES, KEYS),
)
KERNELS = st.builds(
    lambda release, build_id, symbols, text, orc: pb.Kernel(release=release, build_id=build_id, symbols=symbols, text=text, orc=orc),
    *(st.text(max_size=40), NAMES, SYMBOLS, RUNS, ORC),
)
VM_KERNELS = st.builds(
    lambda level, kernel, modules, bpf, reason: pb.VmKernel(level=level, kernel=kernel, modules=modules, bpf=bpf, reason=reason),
    *(st.sampled_from([*guest_check.LEVELS, "", "root"]), KEYS, st.lists(MODULES, max_size=3), SYMBOLS, st.text(max_size=2000)),
)
PROCESSES = st.builds(
    lambda comm, command, cgroup, mappings: pb.Process(comm=comm, command=command, cgroup=cgroup, mappings=mappings),
    *(NAMES, NAMES, NAMES, st.lists(MAPPINGS, max_size=3)),
)


@settings(max_examples=150, deadline=None)
@given(KERNELS | VM_KERNELS | PROCESSES)
def test_what_passes_the_checks_fits_together(message: Message) -> None:
    try:
        if isinstance(message, pb.Kernel):
            guest_check.check_kernel(message)
            check_symbols(message.symbols)
        elif isinstance(message, pb.VmKernel):
            guest_check.check_vm_kernel(message)
            assert len(message.reason) <= 1000
            for module in message.modules:
                check_symbols(module.symbols)
        elif isinstance(message, pb.Process):
            guest_check.check_process(message)
            assert len(message.comm) <= 16
            for mapping in message.mappings:
                assert mapping.start < mapping.end
                assert "/" not in mapping.binary and len(mapping.binary) <= 128
    except CaptureError as error:
        assert error.message.isprintable()


def check_symbols(symbols: pb.Symbols) -> None:
    assert 8 * len(symbols.types) == len(symbols.addresses)
    assert len(symbols.names.split(b"\0")) == len(symbols.types) + 1
    addresses = [int.from_bytes(symbols.addresses[at : at + 8], "little") for at in range(0, len(symbols.addresses), 8)]
    assert addresses == sorted(addresses)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([pb.Kernel, pb.GuestEvent, pb.Binary, tables_pb2.KernelTables, tables_pb2.KernelRaw]), st.binary(max_size=300), st.integers(0, 1 << 20))
def test_any_bytes_are_a_message_or_refused(kind: Callable[[], Message], payload: bytes, budget: int) -> None:
    message = kind()
    with suppress(CaptureError):
        guest_check.parse(message, payload)
        if isinstance(message, pb.Binary):
            assert guest_check.check_binary(message, budget) <= budget + 4096
        if isinstance(message, pb.Kernel):
            guest_check.check_kernel(message)
        if isinstance(message, tables_pb2.KernelTables):
            guest_check.check_tables(message, message.raw, message.fingerprint)


@given(JSON | OBJECTS)
def test_any_layout_is_numbers_or_refused(value: Any) -> None:
    with suppress(CaptureError):
        layout = guest_check.check_layout(value)
        assert layout is None or all(isinstance(number, int) for number in vars(layout).values())
