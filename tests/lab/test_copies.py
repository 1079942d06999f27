# SPDX-License-Identifier: Apache-2.0
"""Copies of a real guest's stacks: whole, of the right places, and with the right bytes in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from perfguest.capture.debugfs import parse_stats
from perfguest.formats import guest_stream
from perfguest.formats.guest_stream import GuestStream, read_guest_stream
from perfguest.formats.recording import RecordingPaths, read_recording
from tests.lab.conftest import Host

pytestmark = pytest.mark.lab

STACK, PAGE, RED_ZONE = 16384, 4096, 128
RSP, RBP, RIP = 4, 5, 16
#: Why a copy of what a program has may end early.
ENDED_BY_THE_GUEST = (guest_stream.END_NOT_MAPPED, guest_stream.END_NOT_RESIDENT)


def recorded(host: Host, name: str, *options: str) -> Path:
    """A recording with these options; says what the module's part in it cost."""
    host.perfguest("module", "load")
    host.perfguest("record", "-o", name, "-F", "500", *options, "--", "sleep", "15")
    stats = parse_stats(host.run("cat", "/sys/kernel/debug/perfguest/stats").stdout)
    host.perfguest("module", "unload")
    size = RecordingPaths(host.work / name).guest_stream.stat().st_size
    longest, each = max(cpu["longest_ns"] for cpu in stats.cpus.values()), stats.total("ns") / stats.written
    print(f"{name}: {stats.written} samples, {each:.0f} ns each, at most {longest}; {size / stats.written:.0f} bytes each")
    assert stats.lost == 0 and stats.written > 500 and 0 < longest <= stats.total("ns")
    return host.work / name


@pytest.fixture(scope="session")
def unaided(host: Host) -> GuestStream:
    """Nothing is known of the guest but what its registers say."""
    return stream_of(recorded(host, "copies", "--guest-memory", "off", "--stack-size", "4096"))


@pytest.fixture(scope="session")
def by_default(host: Host) -> GuestStream:
    """With user stacks as long as they are unless asked for, while the kernel is read out of the guest's memory."""
    return stream_of(recorded(host, "copies-default", "--guest-memory", "kernel", "--guest-wait", "300"))


@pytest.fixture(params=["unaided", "by_default"])
def stream(request: pytest.FixtureRequest) -> GuestStream:
    found: GuestStream = request.getfixturevalue(request.param)
    return found


def stream_of(recording: Path) -> GuestStream:
    return read_guest_stream(RecordingPaths(recording).guest_stream)


def is_user(stream: GuestStream) -> npt.NDArray[np.bool_]:
    return (stream.samples.column("flags") & guest_stream.FLAG_USER) != 0


def owner(stream: GuestStream) -> npt.NDArray[np.int64]:
    """The sample of each copy."""
    return np.repeat(np.arange(len(stream.samples)), np.diff(stream.samples.copies.start))


def word(stream: GuestStream, row: int, address: int) -> int:
    """A word of a copy, by the guest's address."""
    at = int(stream.samples.copies.offset[row]) + address - int(stream.samples.copies.address[row])
    return int.from_bytes(stream.memory[at : at + 8].tobytes(), "little")


def test_kernel_stacks_are_whole(stream: GuestStream) -> None:
    copies, samples = stream.samples.copies, owner(stream)
    kernel = ~is_user(stream)
    on_user_stack = stream.samples.registers()[:, RSP] >> np.uint64(63) == 0
    of = copies.kind == guest_stream.STACK_KERNEL
    whole = np.zeros(len(kernel), np.bool_)
    whole[samples[of & (copies.end == guest_stream.END_STACK_TOP)]] = True
    missing = np.flatnonzero(kernel & ~on_user_stack & ~whole)
    sizes = copies.size[of]
    print(f"{kernel.sum()} kernel samples, {(kernel & on_user_stack).sum()} on the user's stack, {len(missing)} not whole")
    print(f"bytes {np.percentile(sizes, [50, 99, 100])}")
    assert kernel.sum() > 300 and len(missing) <= 0.001 * kernel.sum()
    assert (copies.address[of] == stream.samples.registers()[samples[of], RSP]).all()
    assert not ((copies.address[of] + sizes.astype(np.uint64)) % PAGE).any() and sizes.max() <= STACK
    assert not is_user(stream)[samples[copies.kind != guest_stream.STACK_USER]].any()


def test_interrupts_have_the_stack_of_their_task(stream: GuestStream) -> None:
    """Whatever ran on a stack that is no task's had interrupted one, and its topmost word says where."""
    copies, samples = stream.samples.copies, owner(stream)
    task = np.flatnonzero(copies.kind == guest_stream.STACK_TASK)
    top = copies.address + copies.size.astype(np.uint64)
    print(f"{len(task)} samples on interrupts' stacks")
    assert len(task) > 5
    assert (copies.end[task] == guest_stream.END_STACK_TOP).all() and not (top[task] % STACK).any()
    for row in task.tolist():
        assert copies.kind[row - 1] == guest_stream.STACK_KERNEL and samples[row - 1] == samples[row]
        assert word(stream, row - 1, int(top[row - 1]) - 8) == copies.address[row]
    # The other way round: a stack that ends at no multiple of its size is an interrupt's.
    odd = np.flatnonzero((copies.kind == guest_stream.STACK_KERNEL) & (top % STACK != 0) & (copies.address >> np.uint64(39) != 0xFFFF_FE00_0000_0000 >> 39))
    assert set(samples[odd].tolist()) <= set(samples[task].tolist())


def test_user_stacks(stream: GuestStream) -> None:
    """As long as asked for, or as what is mapped; of programs in the kernel, too."""
    copies, samples, users = stream.samples.copies, owner(stream), stream.samples.user_registers
    asked = 4096 if copies.size[copies.kind == guest_stream.STACK_USER].max() == 4096 else 8192
    registers = stream.samples.registers()
    registers[users.row] = users.registers
    mine = np.flatnonzero(copies.kind == guest_stream.STACK_USER)
    has_user = is_user(stream)
    has_user[users.row] = True
    full = copies.size[mine] == asked
    print(f"{len(users.row)} of {(~is_user(stream)).sum()} kernel samples have a user")
    print(f"{full.sum()} of {len(mine)} user stacks of {asked} bytes, the others end at what is mapped")
    assert samples[mine].tolist() == np.flatnonzero(has_user).tolist()
    stack_pointer = registers[samples[mine], RSP]
    # A red zone that reaches into a page that was never touched is copied from the border on.
    border = (copies.address[mine] == stack_pointer & ~np.uint64(4095)) & (copies.address[mine] > stack_pointer - np.uint64(RED_ZONE))
    assert ((copies.address[mine] == stack_pointer - np.uint64(RED_ZONE)) | border).all() and border.mean() < 0.05
    assert (copies.end[mine][full] == guest_stream.END_FULL).all() and np.isin(copies.end[mine][~full], ENDED_BY_THE_GUEST).all()
    assert full.any() and len(users.row) > 0.5 * (~is_user(stream)).sum()


def test_copies_hold_what_the_frame_pointers_lead_through(stream: GuestStream) -> None:
    """The module followed the chains by reads of their own: the same return addresses stand in the copies."""
    copies, samples, users, chains = stream.samples.copies, owner(stream), stream.samples.user_registers, stream.samples.user
    registers = stream.samples.registers()
    registers[users.row] = users.registers
    compared = 0
    for row in np.flatnonzero(copies.kind == guest_stream.STACK_USER).tolist():
        sample, begin = int(samples[row]), int(copies.address[row])
        chain = chains.address[chains.start[sample] : chains.start[sample + 1]].tolist()
        assert chain[0] == registers[sample, RIP]
        frame = int(registers[sample, RBP])
        for address in chain[1:]:
            if not begin <= frame <= begin + int(copies.size[row]) - 16:
                break
            assert word(stream, row, frame + 8) == address
            frame = word(stream, row, frame)
            compared += 1
    print(f"{compared} return addresses compared")
    assert compared > 500


def test_call_graph_fp_copies_nothing(host: Host) -> None:
    path = recorded(host, "fp", "--guest-memory", "off", "--call-graph", "fp")
    stream, sampling = stream_of(path), read_recording(path).sampling
    assert len(stream.samples.copies) == 0 and len(stream.samples.user_registers.row) == 0
    assert (np.diff(stream.samples.kernel.start) + np.diff(stream.samples.user.start) > 0).mean() > 0.99
    assert (sampling.kernel_stack_bytes, sampling.user_stack_bytes, sampling.chain_depth) == (0, 0, 127)


def test_call_graph_dump_takes_no_chains(host: Host) -> None:
    path = recorded(host, "dump", "--guest-memory", "off", "--call-graph", "dump")
    stream, sampling = stream_of(path), read_recording(path).sampling
    assert len(stream.samples.kernel.address) == len(stream.samples.user.address) == 0
    assert (np.diff(stream.samples.copies.start) > 0).mean() > 0.99
    assert (sampling.kernel_stack_bytes, sampling.user_stack_bytes, sampling.chain_depth) == (STACK, 8192, 0)
    assert sampling.buffer_kb >= 1024
