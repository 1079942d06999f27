# SPDX-License-Identifier: Apache-2.0
"""Made-up profiles for tests of what reads a Profile: a builder, one realistic example, a big one, and hypothesis strategies."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from perfguest.profile import Frames, Mapping, Mode, Profile, Samples, Stacks, Vm

VM = Mapping("[vm]", has_symbols=True)
THREAD = Mapping("[thread]", has_symbols=True)
HOST_KERNEL = Mapping("[kernel.kallsyms]", build_id="11" * 20, start=0xFFFFFFFF81000000, limit=0xFFFFFFFF83000000, has_symbols=True)
GUEST_KERNEL = Mapping("[guest.kernel.kallsyms]", build_id="22" * 20, start=0xFFFFFFFF90000000, limit=0xFFFFFFFF92000000, has_symbols=True)
QEMU = Mapping("/usr/bin/qemu-system-x86_64", build_id="33" * 20, start=0x555500000000, limit=0x555500100000, file_offset=0x3000, has_symbols=True)


@dataclass(frozen=True)
class Frame:
    symbol: str | None
    mode: Mode
    mapping: Mapping | None
    address: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Task:
    """A thread of a guest."""

    pid: int
    tid: int
    comm: str
    cgroup: str | None = None


def label_frames(vm: str, thread: str) -> list[Frame]:
    """The two frames at the root of a VM's stacks, leaf first."""
    return [Frame(thread, Mode.NONE, THREAD), Frame(vm, Mode.NONE, VM)]


@dataclass
class ProfileBuilder:
    """Collects samples one by one. Everything is stored once, in the order in which it first came."""

    events: list[str] = field(default_factory=lambda: ["cpu-clock"])
    notes: list[str] = field(default_factory=list)
    _strings: dict[str, int] = field(default_factory=dict)
    _mappings: dict[Mapping, int] = field(default_factory=dict)
    _frames: dict[Frame, int] = field(default_factory=dict)
    _stacks: dict[tuple[int, ...], int] = field(default_factory=dict)
    _vms: dict[Vm, int] = field(default_factory=dict)
    _rows: list[tuple[int, ...]] = field(default_factory=list)

    def sample(
        self,
        stack: Sequence[Frame],
        *,
        time: int = 1_000_000_000,
        cpu: int = 0,
        pid: int = 100,
        tid: int = 100,
        comm: str = "thread",
        event: int = 0,
        period: int = 250_000,
        mode: Mode = Mode.HOST_KERNEL,
        vm: Vm | None = None,
        vcpu: int = -1,
        guest: Task | None = None,
    ) -> ProfileBuilder:
        """``stack``: leaf first."""
        frames = tuple(_index(self._frames, frame) for frame in stack)
        numbers = (_index(self._stacks, frames), _index(self._vms, vm) if vm else -1, vcpu, stack[0].address if stack else 0)
        task = (-1, -1, -1, -1)
        if guest is not None:
            cgroup = -1 if guest.cgroup is None else _index(self._strings, guest.cgroup)
            task = (guest.pid, guest.tid, _index(self._strings, guest.comm), cgroup)
        self._rows.append((time, cpu, pid, tid, _index(self._strings, comm), event, period, mode, *numbers, *task))
        return self

    def build(self, wall_start: float | None = 1_700_000_000.25) -> Profile:
        frames = list(self._frames)
        symbols = [-1 if frame.symbol is None else _index(self._strings, frame.symbol) for frame in frames]
        mappings = [-1 if frame.mapping is None else _index(self._mappings, frame.mapping) for frame in frames]
        types = (np.int64, np.int32, np.int32, np.int32, np.int32, np.int32, np.int64, np.uint8, np.int32, np.int32, np.int32, np.uint64, *[np.int32] * 4)
        columns: list[Sequence[int]] = list(zip(*self._rows, strict=True)) or [()] * len(types)
        return Profile(
            strings=list(self._strings),
            mappings=list(self._mappings),
            frames=Frames(
                np.array([frame.address for frame in frames], np.uint64),
                np.array([frame.mode for frame in frames], np.uint8),
                np.array(symbols, np.int32),
                np.array([frame.offset for frame in frames], np.uint64),
                np.array(mappings, np.int32),
            ),
            stacks=Stacks(
                np.cumsum([0, *map(len, self._stacks)], dtype=np.int64),
                np.array([frame for stack in self._stacks for frame in stack], np.int32),
            ),
            samples=Samples(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True))),
            events=self.events,
            vms=list(self._vms),
            notes=self.notes,
            wall_start=wall_start,
            hostname="host",
        )


def _index(known: dict[Any, int], key: Hashable) -> int:
    return known.setdefault(key, len(known))


def example() -> Profile:
    """Two vCPUs of one VM in guest code, the same VM on its way through the host, and a thread of the host's own. 10 samples."""
    vm = Vm(4242, "web")
    builder = ProfileBuilder(notes=["9 of 9 guest samples paired"])
    hash_user = Frame("sha_round", Mode.GUEST_USER, Mapping("/bin/app"), 0x401136, 0x16)
    main_user = Frame("main", Mode.GUEST_USER, Mapping("/bin/app"), 0x401200, 0x20)
    nameless = Frame(None, Mode.GUEST_USER, Mapping("/lib/libc.so.6"), 0x7F0000001234)
    read = Frame("ksys_read", Mode.GUEST_KERNEL, GUEST_KERNEL, 0xFFFFFFFF90001122, 0x22)
    entry = Frame("do_syscall_64", Mode.GUEST_KERNEL, GUEST_KERNEL, 0xFFFFFFFF90002233, 0x33)
    host_entry = Frame("do_syscall_64", Mode.HOST_KERNEL, HOST_KERNEL, 0xFFFFFFFF81001122, 0x44)
    run = Frame("vcpu_run", Mode.HOST_KERNEL, HOST_KERNEL, 0xFFFFFFFF81002233, 0x8)
    ioctl = Frame("kvm_vcpu_ioctl", Mode.HOST_USER, QEMU, 0x555500000100, 0)
    for number in range(8):
        vcpu = number % 2
        root = label_frames("web", f"CPU {vcpu}/KVM")
        stacks = ([hash_user, main_user], [read, entry, nameless, main_user], [run, host_entry, ioctl])
        modes = (Mode.GUEST_USER, Mode.GUEST_KERNEL, Mode.HOST_KERNEL)
        which = number % 3
        builder.sample(
            [*stacks[which], *root],
            time=5_000_000_123 + number * 250_000,
            cpu=vcpu,
            pid=4242,
            tid=4250 + vcpu,
            comm=f"CPU {vcpu}/KVM",
            mode=modes[which],
            vm=vm,
            vcpu=vcpu,
        )
    for number in range(2):
        builder.sample([host_entry], time=5_010_000_999 + number * 250_000, cpu=3, pid=77, tid=77, comm="kworker/u8:1")
    return builder.build()


def big(samples: int = 100_000, stacks: int = 5_000, depth: int = 30) -> Profile:
    """``samples`` samples over ``stacks`` different stacks, of 8 vCPU threads on 8 CPUs. Deterministic."""
    random = np.random.default_rng(7)
    functions = 3_000
    strings = [f"function_{number}" for number in range(functions)] + ["web"] + [f"CPU {vcpu}/KVM" for vcpu in range(8)]
    code = functions * 4
    labels = np.arange(functions, functions + 9)
    frames = Frames(
        np.concatenate([0xFFFFFFFF90000000 + np.arange(code, dtype=np.uint64) * np.uint64(16), np.zeros(9, np.uint64)]),
        np.concatenate([np.full(code, Mode.GUEST_KERNEL, np.uint8), np.zeros(9, np.uint8)]),
        np.concatenate([np.arange(code) // 4, labels]).astype(np.int32),
        np.concatenate([np.arange(code, dtype=np.uint64) % np.uint64(4) * np.uint64(16), np.zeros(9, np.uint64)]),
        np.concatenate([np.zeros(code), [1], np.full(8, 2)]).astype(np.int32),
    )
    thread_of_stack = np.arange(stacks) % 8
    body = random.integers(0, code, (stacks, depth))
    root = np.stack([code + 1 + thread_of_stack, np.full(stacks, code)], axis=1)
    stack = random.integers(0, stacks, samples).astype(np.int32)
    vcpu = thread_of_stack[stack].astype(np.int32)
    return Profile(
        strings=strings,
        mappings=[GUEST_KERNEL, VM, THREAD],
        frames=frames,
        stacks=Stacks(np.arange(stacks + 1, dtype=np.int64) * (depth + 2), np.concatenate([body, root], axis=1).ravel().astype(np.int32)),
        samples=Samples(
            time=np.arange(samples, dtype=np.int64) * 31_250 + 1_000_000_000,
            cpu=vcpu,
            pid=np.full(samples, 4242, np.int32),
            tid=vcpu + np.int32(4250),
            comm=vcpu + np.int32(functions + 1),
            event=np.zeros(samples, np.int32),
            period=np.full(samples, 250_000, np.int64),
            mode=np.full(samples, Mode.GUEST_KERNEL, np.uint8),
            stack=stack,
            vm=np.zeros(samples, np.int32),
            vcpu=vcpu,
            ip=np.zeros(samples, np.uint64),
            guest_pid=np.full(samples, -1, np.int32),
            guest_tid=np.full(samples, -1, np.int32),
            guest_comm=np.full(samples, -1, np.int32),
            cgroup=np.full(samples, -1, np.int32),
        ),
        events=["cpu-clock"],
        vms=[Vm(4242, "web")],
        wall_start=1_700_000_000.0,
    )


# All of Unicode, surrogates too, and more often than chance would have it what parsers stumble over.
hostile_text = st.lists(
    st.one_of(
        st.sampled_from(list("\n\r\t\x00\x1b\x7f\x9b\u2028\u202e ;()[]+#\"'\\/<>-:,{}1a")),
        st.characters(categories=None),
        st.sampled_from(["\udc80", "\ud800"]),
    ),
    max_size=8,
).map("".join)
_u64 = st.integers(0, 2**64 - 1)
_id = st.integers(1, 2**22 - 1)
mappings = st.builds(Mapping, name=hostile_text, build_id=hostile_text, start=_u64, limit=_u64, file_offset=_u64, has_symbols=st.booleans())
frames = st.builds(
    Frame, symbol=st.none() | hostile_text, mode=st.sampled_from(list(Mode)), mapping=st.none() | mappings, address=_u64, offset=st.integers(0, 2**40)
)


@st.composite
def profiles(draw: st.DrawFn, texts: st.SearchStrategy[str] = hostile_text) -> Profile:
    """Profiles that keep to the contract and hold whatever it allows."""
    events = draw(st.lists(texts, min_size=1, max_size=3))
    builder = ProfileBuilder(events=events, notes=draw(st.lists(texts, max_size=2)))
    pool = draw(st.lists(frames, max_size=5))
    stacks = st.lists(st.sampled_from(pool), max_size=6) if pool else st.just([])
    vms = draw(st.lists(st.builds(Vm, pid=_id, name=texts), min_size=1, max_size=2, unique_by=lambda vm: vm.pid))
    time = draw(st.integers(0, 2**53))
    for _ in range(draw(st.integers(0, 6))):
        time += draw(st.integers(0, 2**40))
        vm = draw(st.none() | st.sampled_from(vms))
        builder.sample(
            draw(stacks),
            time=time,
            cpu=draw(st.integers(0, 4095)),
            pid=vm.pid if vm else draw(st.just(0) | _id),
            tid=draw(_id),
            comm=draw(texts),
            event=draw(st.integers(0, len(events) - 1)),
            period=draw(st.integers(0, 2**40)),
            mode=draw(st.sampled_from(list(Mode))),
            vm=vm,
            vcpu=draw(st.integers(-1, 63)) if vm else -1,
            guest=draw(st.none() | st.builds(Task, pid=st.integers(0, 2**22), tid=st.integers(0, 2**22), comm=texts, cgroup=st.none() | texts)) if vm else None,
        )
    return builder.build(wall_start=draw(st.none() | st.floats(0, 2e9)))
