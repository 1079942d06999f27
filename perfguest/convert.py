# SPDX-License-Identifier: Apache-2.0
"""From a recording to a :class:`Profile`: reads, pairs, finds the unique stacks, names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perfguest import merge, stacks
from perfguest.formats.guest_snapshot import GuestSnapshot
from perfguest.formats.recording import RecordingPaths
from perfguest.guest_stacks import GuestStacks, KernelSpaces, Unwinding, guest_stacks
from perfguest.join import Joined, join
from perfguest.naming import FrameNames, without_junk
from perfguest.profile import I32, I64, Mode, Profile, Samples, Stacks
from perfguest.rows import distinct_rows
from perfguest.stacks import SPACE_GUEST_THREAD, SPACE_THREAD, SPACE_VM, Callchains, NumberedStacks, RawStacks
from perfguest.symbols.guest import GuestSymbolOptions, GuestSymbols, GuestVm
from perfguest.symbols.host import HostSymbols

_PROBLEMS_TOLD = 20


@dataclass(frozen=True)
class ConvertOptions:
    """``guest``: files that name a guest's functions. ``host_root``: where the recorded host's files are, and what of guests' files is the same there.

    ``window``: nanoseconds that a sample and its record may lie apart.
    """

    guest: GuestSymbolOptions = field(default_factory=GuestSymbolOptions)
    host_root: Path = Path("/")
    window: int = merge.DEFAULT_WINDOW
    unwinding: Unwinding = field(default_factory=Unwinding)


def load_profile(recording: Path, options: ConvertOptions | None = None) -> Profile:
    """Reads the recording's directory. Raises :class:`FormatError` for what is no recording, damaged beyond reading, or of a newer format."""
    options = options or ConvertOptions()
    joined = join(recording, options.window)
    host = HostSymbols(joined.perf, _host_kallsyms(recording, joined.notes), options.host_root)
    guest = GuestSymbols.build(guest_vms(joined), options.guest, joined.snapshot, options.host_root)
    kernels = KernelSpaces.of(joined, guest)
    found = guest_stacks(joined, guest, kernels, options.unwinding)
    unique, of_sample, example = _unique_stacks(joined, host, found, kernels)
    names = FrameNames(unique.frames)
    sample = example[unique.holder]
    names.set_host(host, joined.perf.samples.time[sample], joined.perf.samples.pid[sample])
    _name_guest(names, guest, joined, kernels)
    names.set_roots([vm.name for vm in joined.vms], _thread_names(joined), joined.tasks.comms)
    samples = _samples(joined, of_sample, names)
    return Profile(
        strings=list(names.strings),
        mappings=names.profile_mappings(),
        frames=names.frames(),
        stacks=Stacks(unique.start, unique.frame),
        samples=samples,
        events=[event.name for event in joined.perf.events],
        vms=joined.vms,
        notes=[*joined.notes, *found.notes, *host.notes, *guest.notes, *_snapshot_notes(joined.snapshot)],
        wall_start=joined.meta.started or None,
        hostname=joined.meta.host.hostname,
    )


def _host_kallsyms(recording: Path, notes: list[str]) -> Path | None:
    path = RecordingPaths(recording).kallsyms
    if path.exists():
        return path
    notes.append(f"{path} is missing: the host kernel's functions have no names")
    return None


def guest_vms(joined: Joined) -> list[GuestVm]:
    lstars: dict[int, list[int]] = {vm.pid: [] for vm in joined.vms}
    for record in joined.stream.vms:
        if record.lstar and record.pid in lstars and record.lstar not in lstars[record.pid]:
            lstars[record.pid].append(record.lstar)
    return [GuestVm(vm.pid, vm.name, tuple(lstars[vm.pid])) for vm in joined.vms]


def _snapshot_notes(snapshot: GuestSnapshot | None) -> list[str]:
    if snapshot is None:
        return []
    problems = list(dict.fromkeys(f"VM of pid {problem.vm_pid}: {problem.text[:300]}" for problem in snapshot.problems))
    more = [f"{len(problems) - _PROBLEMS_TOLD} more problems of reading guests' memory"] if len(problems) > _PROBLEMS_TOLD else []
    return [*snapshot.notes, *problems[:_PROBLEMS_TOLD], *more]


def _unique_stacks(joined: Joined, host: HostSymbols, found: GuestStacks, kernels: KernelSpaces) -> tuple[NumberedStacks, I32, I64]:
    """The different stacks of all samples; int32, for each sample which of them is its; int64, for each of the stacks that were numbered a sample that has it.

    Of frames leaf first: the guest's kernel's and user's, its thread, or the host's; of threads of VMs then the thread and the VM.
    """
    leaves, leaf = _leaves(joined, host, found, kernels)
    roots = [(mask, np.where(mask, number, 0), space) for mask, number, space in _roots(joined)]
    columns = [leaf, *(np.where(mask, number.astype(np.int64), -1) for mask, number, _ in roots)]
    example, number = distinct_rows(*columns)
    parts = [leaves.select(leaf[example]), *(_root(mask[example], number[example], space) for mask, number, space in roots)]
    unique = stacks.number_stacks(stacks.join(parts))
    sample = example[unique.holder]
    unique = without_junk(unique, host, joined.perf.samples.time[sample], joined.perf.samples.pid[sample])
    return unique, unique.number[number], example


def _leaves(joined: Joined, host: HostSymbols, found: GuestStacks, kernels: KernelSpaces) -> tuple[RawStacks, I64]:
    """The different stacks without their roots, and for each sample which is its: the guest's, its IP alone where its record is lost, or the host's."""
    samples = joined.perf.samples
    of_record = np.where(joined.in_guest & (joined.record >= 0), np.append(found.of_record, -1)[joined.record], -1)
    alone = joined.in_guest & (of_record < 0)
    guest_space = np.where(joined.mode == Mode.GUEST_KERNEL, kernels.of_sample, -1 - joined.vm.astype(np.int64))
    space = np.where(joined.in_guest, guest_space, host.epoch(samples.pid, samples.time))
    chains = Callchains(samples.buffer.data, samples.chain_at, samples.chain_length)
    example, kind = stacks.distinct_chains(chains, samples.ip, joined.mode, space, joined.in_guest, alone)
    ip, mode, space, alone = samples.ip[example], joined.mode[example], space[example], alone[example]
    # The IP of a guest's sample whose record is lost is all that there is of it.
    ips = stacks.from_chains(np.concatenate([[0], np.cumsum(alone)]).astype(np.int64), ip[alone], mode, space)
    callchains = stacks.from_callchains(chains.select(example), ip, mode, space)
    rest, number, _ = stacks.unique_stacks(stacks.join([ips, callchains.keep(~joined.in_guest[example][callchains.owner])]))
    return stacks.concatenate([found.stacks, rest]), np.where(of_record >= 0, of_record, len(found.stacks) + number[kind].astype(np.int64))


def _roots(joined: Joined) -> tuple[tuple[npt.NDArray[np.bool_], I32, int], ...]:
    """Of the threads of VMs the guest's thread where it is known, then thread and VM: which samples have one, its number, and what it is."""
    samples = joined.perf.samples
    of_vm = joined.vm >= 0
    comm = joined.of_sample(joined.tasks.comm)
    return (
        (of_vm & (comm >= 0), comm, SPACE_GUEST_THREAD),
        (of_vm, samples.tid, SPACE_THREAD),
        (of_vm, joined.vm, SPACE_VM),
    )


def _root(which: npt.NDArray[np.bool_], number: I32, space: int) -> RawStacks:
    start = np.concatenate([[0], np.cumsum(which)]).astype(np.int64)
    count = int(start[-1])
    frames = stacks.RawFrames(
        np.zeros(count, np.uint8), np.full(count, space, np.int64), number[which].astype(np.uint64), np.zeros(count, bool), np.zeros(count, bool)
    )
    return RawStacks(start, frames)


def _name_guest(names: FrameNames, guest: GuestSymbols, joined: Joined, kernels: KernelSpaces) -> None:
    kernel, user = names.rows(Mode.GUEST_KERNEL), names.rows(Mode.GUEST_USER)
    space = names.raw.space[kernel]
    names.set(kernel, guest.resolve_kernel(kernels.vm[space], names.looked_up(kernel), kernels.kernel[space]))
    # Below 0 stands a VM without an address space: of a sample whose record is lost.
    known = user[names.raw.space[user] >= 0]
    at, tasks = names.raw.space[known], joined.tasks
    process = None if joined.snapshot is None else tasks.space_process[at]
    names.set(known, guest.resolve_user(tasks.space_vm[at], tasks.space_id[at], names.raw.address[known], names.raw.returns[known], process))


def _thread_names(joined: Joined) -> dict[int, str]:
    """The last name of each thread of a VM, by its number as frames have it: perf gives a thread that is about to be gone -1 (perf_event_pid_type())."""
    of_vm = np.flatnonzero(joined.vm >= 0)
    tids = joined.perf.samples.tid[of_vm].astype(np.uint64)
    return {tid: joined.comms[comm] for tid, comm in zip(tids.tolist(), joined.comm[of_vm].tolist(), strict=True)}


def _samples(joined: Joined, stack: I32, names: FrameNames) -> Samples:
    samples = joined.perf.samples
    comms = np.array([names.string(comm) for comm in joined.comms], np.int32)
    guest_comms = np.array([*(names.string(comm) for comm in joined.tasks.comms), -1], np.int32)
    cgroups = np.array([*(names.string(cgroup) for cgroup in joined.tasks.cgroups), -1], np.int32)
    order = np.argsort(samples.time, kind="stable")
    columns: dict[str, npt.NDArray[Any]] = {
        "time": samples.time,
        "cpu": samples.cpu,
        "pid": samples.pid,
        "tid": samples.tid,
        "comm": comms[joined.comm] if len(comms) else joined.comm,
        "event": samples.event,
        "period": samples.period,
        "mode": joined.mode,
        "stack": stack,
        "vm": joined.vm,
        "vcpu": joined.vcpu,
        "ip": samples.ip,
        "guest_pid": joined.of_sample(joined.tasks.pid),
        "guest_tid": joined.of_sample(joined.tasks.tid),
        "guest_comm": guest_comms[joined.of_sample(joined.tasks.comm)],
        "cgroup": cgroups[joined.of_sample(joined.tasks.cgroup)],
    }
    return Samples(**{name: column[order] for name, column in columns.items()})
