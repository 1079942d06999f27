# SPDX-License-Identifier: Apache-2.0
"""The guest's stack of each record: unwound from the copies of its stacks where there are tables for it, else as the module followed frame pointers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfguest import stacks
from perfguest.formats.guest_stream import Chains
from perfguest.join import Joined, lstars
from perfguest.profile import I32, I64, Mode
from perfguest.stacks import RawFrames, RawStacks
from perfguest.symbols.guest import GuestSymbols
from perfguest.unwind._native import END_THREAD_START
from perfguest.unwind.engine import Engine
from perfguest.unwind.guest import Addressing, Unwound, describe, unwind
from perfguest.unwind.kept_tables import KeptTables
from perfguest.unwind.orc import orc_layout
from perfguest.unwind.spaces import Spaces

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class KernelSpaces:
    """What tells guest kernel addresses apart: index into ``vm`` and ``kernel`` (the kernel that the VM ran then, as GuestSymbols numbers them).

    ``of_record``, ``of_sample``: int64, that index for each record and each sample.
    """

    vm: I32
    kernel: I32
    of_record: I64
    of_sample: I64

    @classmethod
    def of(cls, joined: Joined, guest: GuestSymbols) -> KernelSpaces:
        vm = np.concatenate([joined.record_vm, joined.vm])
        time = np.concatenate([joined.stream.samples.column("time", np.int64), joined.perf.samples.time])
        kernel = guest.kernel_at(vm, time, lstars(joined, vm, time))
        key = (vm.astype(np.int64) << 32) + kernel
        _, first, row = np.unique(key, return_index=True, return_inverse=True)
        return cls(vm[first], kernel[first], row[: len(joined.record_vm)].astype(np.int64), row[len(joined.record_vm) :].astype(np.int64))


@dataclass(frozen=True)
class Unwinding:
    """``how``: ``auto``, ``fp`` (frame pointers alone) or ``scan`` (whatever on the stack looks like a return address). ``kept_tables``: the directory in which
    guests' unwind tables are kept from one recording to the next (:mod:`perfguest.unwind.kept_tables`); None: they are not."""

    how: str = "auto"
    kept_tables: Path | None = None


@dataclass(frozen=True)
class GuestStacks:
    """``stacks``: the different ones, leaf first. ``of_record``: int64, each record's among them, -1 where it has none. ``notes``: lines for people."""

    stacks: RawStacks
    of_record: I64
    notes: list[str]


def guest_stacks(joined: Joined, guest: GuestSymbols, kernels: KernelSpaces, options: Unwinding) -> GuestStacks:
    """Holds the kernels against the stacks: what they contradict is used no more."""
    notes: list[str] = []
    everything = np.ones(len(joined.stream.samples), bool)
    _check(guest, kernels, _chains(joined.stream.samples.kernel, Mode.GUEST_KERNEL, kernels.of_record, everything).frames)
    unwound = _unwind(joined, guest, kernels, options, notes) if options.how != "fp" and len(joined.stream.samples.copies) else _nothing(joined)
    chains = joined.stream.samples
    _check(guest, kernels, unwound.stacks.frames)
    # Stacks that were unwound by the tables of a kernel that it was not are none.
    refused = np.isin(kernels.kernel[kernels.of_record], list(guest.refused_kernels))
    kernel, user = unwound.kernel & ~refused, unwound.user & ~refused
    of_kernel_thread = kernel & (unwound.kernel_end == END_THREAD_START)
    chain_length = np.diff(chains.kernel.start), np.diff(chains.user.start)
    wanted = (~kernel & (chain_length[0] > 0), ~user & ~of_kernel_thread & (chain_length[1] > 0))
    rows = np.flatnonzero(wanted[0] | wanted[1] | refused)
    parts = [
        _proven(_chains(chains.kernel, Mode.GUEST_KERNEL, kernels.of_record, wanted[0]).select(rows), guest, kernels, notes),
        _without_refused(unwound, refused, rows),
        _chains(chains.user, Mode.GUEST_USER, joined.tasks.space, wanted[1]).select(rows),
    ]
    mixed, number, _ = stacks.unique_stacks(stacks.join(parts))
    of_record = unwound.of_record.copy()
    of_record[rows] = len(unwound.stacks) + number.astype(np.int64)
    both = stacks.concatenate([unwound.stacks, mixed])
    frames = np.append(np.diff(both.start), 0)
    notes += _summary(joined, unwound, wanted, options.how)
    return GuestStacks(both, np.where(frames[of_record] > 0, of_record, -1), notes)


def _unwind(joined: Joined, guest: GuestSymbols, kernels: KernelSpaces, options: Unwinding, notes: list[str]) -> Unwound:
    tables = Engine()
    kernel = np.full(len(kernels.vm), -1, np.int32)
    for place, (vm, number) in enumerate(zip(kernels.vm.tolist(), kernels.kernel.tolist(), strict=True)):
        found = guest.kernel_tables(vm, number)
        if found is not None and found.orc:
            layout = orc_layout(found.release, found.orc[0].entries)
            kernel[place] = tables.add_kernel(
                [(table.addresses, table.entries) for table in found.orc], layout, [(address, code.data) for address, code in found.text]
            )
            notes += [f"VM {joined.vms[vm].name}: {note}; not used for unwinding" for note in found.notes]
    process = joined.tasks.process
    space = np.full(len(process), -1, np.int32)
    if joined.snapshot is not None:
        kept_tables = KeptTables(options.kept_tables)
        spaces = Spaces(tables, joined.snapshot, guest.open_mounted, kept_tables)
        read, which = np.unique(process[process >= 0], return_inverse=True)
        space[process >= 0] = np.array([spaces.number(one) for one in read.tolist()], np.int32)[which] if len(read) else -1
        notes += spaces.notes
        kept_tables.close()
    where = Addressing(joined.record_vm, kernel[kernels.of_record], space, kernels.of_record, joined.tasks.space)
    return unwind(tables, joined.stream, where, len(joined.vms), options.how == "scan")


def _nothing(joined: Joined) -> Unwound:
    number = len(joined.stream.samples)
    none, ends = np.zeros(number, bool), np.zeros(number, np.uint8)
    return Unwound(stacks.empty(0), np.full(number, -1, np.int64), none, none, ends, ends, [])


def _chains(chains: Chains, mode: Mode, of_record: I64, wanted: Bool) -> RawStacks:
    """The module's chain of each record in ``wanted``, no frame for the others. ``of_record``: what tells equal addresses of records apart."""
    whole = stacks.from_chains(chains.start, chains.address, np.full(len(of_record), mode, np.uint8), of_record)
    return whole.keep(wanted[whole.owner])


def _without_refused(unwound: Unwound, refused: Bool, rows: I64) -> RawStacks:
    """What was unwound of the records ``rows``."""
    number = np.where(refused[rows] | (unwound.of_record[rows] < 0), len(unwound.stacks), unwound.of_record[rows])
    return stacks.concatenate([unwound.stacks, stacks.empty(1)]).select(number)


def _check(guest: GuestSymbols, kernels: KernelSpaces, frames: RawFrames) -> None:
    frames = frames.take((frames.mode == Mode.GUEST_KERNEL) & ~frames.unproven)
    guest.check_kernels(kernels.vm[frames.space], frames.address, frames.returns, kernels.kernel[frames.space])


def _proven(part: RawStacks, guest: GuestSymbols, kernels: KernelSpaces, notes: list[str]) -> RawStacks:
    """Kernel chains up to the first address that follows no call: a kernel without frame pointers keeps other things in that register."""
    frames = part.frames
    which = np.flatnonzero(frames.returns)
    keys, place = np.unique(np.stack([frames.space[which].view(np.uint64), frames.address[which]]), axis=1, return_inverse=True)
    bad = np.zeros(len(frames), bool)
    if len(which):
        space = keys[0].astype(np.int64)
        bad[which] = guest.proven_returns(kernels.vm[space], keys[1], kernels.kernel[space])[place] == 0
    result = stacks.cut_at(part, bad)
    if bad.any():
        notes.append(
            f"{len(frames) - len(result.frames)} addresses of guest kernel chains were left out: they follow no call, so the kernel has no frame pointers there"
        )
    return result


def _summary(joined: Joined, unwound: Unwound, by_pointer: tuple[Bool, Bool], how: str) -> list[str]:
    """For each VM what became of its stacks, and why those that have no tables are not whole."""
    lines = []
    why = "as asked for" if how == "fp" else "the recording has no copies of stacks" if not len(joined.stream.samples.copies) else ""
    for place, vm in enumerate(joined.vms):
        mine = joined.record_vm == place
        lines += [f"VM {vm.name} ({vm.pid}): {line}" for line in (describe(unwound.tallies[place]) if unwound.tallies else [])]
        reasons = (
            ("kernel", by_pointer[0], "no table of its kernel: neither was its memory read nor an image given (--guestvmlinux)"),
            ("user", by_pointer[1], "no table of their code, or their process was not read"),
        )
        for what, rows, reason in reasons:
            count = int(np.count_nonzero(rows & mine))
            if count:
                lines.append(f"VM {vm.name} ({vm.pid}): {count} {what} stacks by frame pointers alone, whole only where the code has them: {why or reason}")
    return lines
