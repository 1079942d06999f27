# SPDX-License-Identifier: Apache-2.0
"""The one in-memory result that all writers read: unique stacks, and columns of samples that refer to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]


class Mode(enum.IntEnum):
    """Where code ran. The words are those of pprof's ``execution_mode`` label."""

    NONE = 0
    HOST_KERNEL = 1
    HOST_USER = 2
    GUEST_KERNEL = 3
    GUEST_USER = 4

    @property
    def label(self) -> str:
        """For example ``Guest Kernel``; empty for ``NONE``, the mode of frames that are no code (a VM, a thread)."""
        return "" if self is Mode.NONE else self.name.replace("_", " ").title()

    @property
    def is_guest(self) -> bool:
        return self in (Mode.GUEST_KERNEL, Mode.GUEST_USER)


@dataclass(frozen=True)
class Mapping:
    """A piece of code that addresses lie in: a kernel, a module, a file; or a group of frames that are no code (``[vm]``)."""

    name: str
    build_id: str = ""
    start: int = 0
    limit: int = 0
    file_offset: int = 0
    #: At least one frame in it has a symbol.
    has_symbols: bool = False


@dataclass(frozen=True)
class Frames:
    """Columns of unique frames. All have the same length.

    ``address``: uint64, as sampled; 0 for frames that are no code. ``mode``: uint8, a :class:`Mode`.
    ``symbol``: int32 index into :attr:`Profile.strings`, or -1 where no name is known.
    ``offset``: uint64 distance from the symbol's start, 0 without symbol.
    ``mapping``: int32 index into :attr:`Profile.mappings`, or -1.
    """

    address: U64
    mode: U8
    symbol: I32
    offset: U64
    mapping: I32

    def __len__(self) -> int:
        return len(self.address)


@dataclass(frozen=True)
class Stacks:
    """Unique stacks, one after the other. Stack *i* is ``frames[start[i]:start[i + 1]]``: indices into :class:`Frames`, **leaf first**, as perf prints them."""

    start: I64
    frames: I32

    def __len__(self) -> int:
        return len(self.start) - 1

    def of(self, stack: int) -> I32:
        return self.frames[self.start[stack] : self.start[stack + 1]]


@dataclass(frozen=True)
class Samples:
    """Columns of samples in order of time. All have the same length.

    ``time``: int64 nanoseconds of the recording's clock. ``cpu``, ``pid``, ``tid``: int32, of the host.
    ``comm``: int32 index into :attr:`Profile.strings`, the host thread's name.
    ``event``: int32 index into :attr:`Profile.events`. ``period``: int64. ``mode``: uint8, where the sample itself hit (a :class:`Mode`).
    ``stack``: int32 index into :class:`Stacks`. ``vm``: int32 index into :attr:`Profile.vms`, or -1 for threads of no VM.
    ``vcpu``: int32 vCPU id, or -1 for threads that are no vCPU. ``ip``: uint64, as perf has it.

    Of the guest's running thread, -1 where it is not known or the sample did not hit the guest: ``guest_pid``, ``guest_tid``: int32, its process and itself
    as the guest counts; ``guest_comm``, ``cgroup``: int32 indices into :attr:`Profile.strings`, its name and its process's cgroup.
    """

    time: I64
    cpu: I32
    pid: I32
    tid: I32
    comm: I32
    event: I32
    period: I64
    mode: U8
    stack: I32
    vm: I32
    vcpu: I32
    ip: U64
    guest_pid: I32
    guest_tid: I32
    guest_comm: I32
    cgroup: I32

    def __len__(self) -> int:
        return len(self.time)


@dataclass(frozen=True)
class Vm:
    """A VM as the recorder saw it. ``name`` comes from the VMM's command line and is not to be trusted as text."""

    pid: int
    name: str


@dataclass(frozen=True)
class Profile:
    """What a recording says, joined and named.

    The stacks of a VM's threads end (at the root) in frames of :attr:`Mode.NONE`: the VM (mapping ``[vm]``), then the thread (mapping ``[thread]``), then,
    where it is known, the name of the guest's running thread (mapping ``[guest-thread]``); towards the leaf follow the guest's user frames and its kernel
    frames, or the host's frames.
    Names may hold anything: every writer escapes them for its own format.
    """

    strings: list[str]
    mappings: list[Mapping]
    frames: Frames
    stacks: Stacks
    samples: Samples
    events: list[str]
    vms: list[Vm]
    #: Lines for people: pairing, losses, what could not be named and why.
    notes: list[str] = field(default_factory=list)
    #: Seconds since the epoch of the first sample, if the recording says it.
    wall_start: float | None = None
    hostname: str = ""
