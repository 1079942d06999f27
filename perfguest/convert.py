# SPDX-License-Identifier: Apache-2.0
"""From a recording to a :class:`Profile`: reads, pairs, finds the unique stacks, names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perfguest import merge, stacks
from perfguest.formats import guest_snapshot
from perfguest.formats.guest_snapshot import GuestSnapshot, read_snapshot
from perfguest.formats.guest_stream import FLAG_USER, Chains, GuestStream, read_guest_stream
from perfguest.formats.perf_data import PerfData, read_perf_data
from perfguest.formats.recording import RecordingPaths, read_recording
from perfguest.naming import FrameNames
from perfguest.profile import I32, I64, U8, U64, Mode, Profile, Samples, Stacks, Vm
from perfguest.proto import recording_pb2 as pb
from perfguest.stacks import SPACE_GUEST_THREAD, SPACE_THREAD, SPACE_VM, RawStacks
from perfguest.symbols.guest import GuestSymbolOptions, GuestSymbols, GuestVm
from perfguest.symbols.guest_tasks import GuestTasks, guest_tasks
from perfguest.symbols.host import HostSymbols

#: ``misc & PERF_RECORD_MISC_CPUMODE_MASK`` (include/uapi/linux/perf_event.h) to :class:`Mode`; the hypervisor's own mode is none of ours.
_CPUMODES = np.array([Mode.NONE, Mode.HOST_KERNEL, Mode.HOST_USER, Mode.NONE, Mode.GUEST_KERNEL, Mode.GUEST_USER, Mode.NONE, Mode.NONE], np.uint8)
_PROBLEMS_TOLD = 20


@dataclass(frozen=True)
class ConvertOptions:
    """``guest``: files that name a guest's functions. ``host_root``: where the recorded host's files are.

    ``window``: nanoseconds that a sample and its record may lie apart.
    """

    guest: GuestSymbolOptions = field(default_factory=GuestSymbolOptions)
    host_root: Path = Path("/")
    window: int = merge.DEFAULT_WINDOW


@dataclass(frozen=True)
class _Joined:
    """What was read, and the columns that follow from it. ``record``: for each sample its record, or -1. ``vm``: index into ``vms`` or -1.

    ``record_vm``: that index for each record; ``tasks``: by record.
    """

    meta: pb.Recording
    perf: PerfData
    stream: GuestStream
    vms: list[Vm]
    mode: U8
    record: I64
    vm: I32
    vcpu: I32
    comm: I32
    comms: list[str]
    record_vm: I32
    tasks: GuestTasks
    snapshot: GuestSnapshot | None
    notes: list[str]

    @property
    def in_guest(self) -> npt.NDArray[np.bool_]:
        result: npt.NDArray[np.bool_] = (self.mode == Mode.GUEST_KERNEL) | (self.mode == Mode.GUEST_USER)
        return result

    def of_sample(self, column: I32) -> I32:
        """A column by record as one by sample: -1 for samples without a record or outside the guest."""
        return np.where(self.in_guest & (self.record >= 0), np.append(column, np.int32(-1))[self.record], -1).astype(np.int32)


@dataclass(frozen=True)
class _KernelSpaces:
    """What tells guest kernel addresses apart: index into ``vm`` and ``kernel`` (the kernel that the VM ran then, as GuestSymbols numbers them).

    ``of_record``, ``of_sample``: int64, that index for each record and each sample.
    """

    vm: I32
    kernel: I32
    of_record: I64
    of_sample: I64

    @classmethod
    def of(cls, joined: _Joined, guest: GuestSymbols) -> _KernelSpaces:
        vm = np.concatenate([joined.record_vm, joined.vm])
        time = np.concatenate([joined.stream.samples.column("time", np.int64), joined.perf.samples.time])
        kernel = guest.kernel_at(vm, time, _lstars(joined, vm, time))
        key = (vm.astype(np.int64) << 32) + kernel
        _, first, row = np.unique(key, return_index=True, return_inverse=True)
        return cls(vm[first], kernel[first], row[: len(joined.record_vm)].astype(np.int64), row[len(joined.record_vm) :].astype(np.int64))


def load_profile(recording: Path, options: ConvertOptions | None = None) -> Profile:
    """Reads the recording's directory. Raises :class:`FormatError` for what is no recording, damaged beyond reading, or of a newer format."""
    options = options or ConvertOptions()
    joined = _join(recording, options)
    host = HostSymbols(joined.perf, _host_kallsyms(recording, joined.notes), options.host_root)
    guest = GuestSymbols.build(_guest_vms(joined), options.guest, joined.snapshot)
    kernels = _KernelSpaces.of(joined, guest)
    raw = _raw_stacks(joined, host, guest, kernels)
    unique, stack, first = stacks.unique_stacks(raw)
    frames, number, row = stacks.unique_frames(unique.frames)
    names = FrameNames(frames)
    sample = first[unique.owner[row]]
    _name_host(names, host, joined.perf.samples.time[sample], joined.perf.samples.pid[sample])
    _name_guest(names, guest, joined, kernels)
    names.set_roots([vm.name for vm in joined.vms], _thread_names(joined), joined.tasks.comms)
    samples = _samples(joined, stack, names)
    return Profile(
        strings=list(names.strings),
        mappings=names.profile_mappings(),
        frames=names.frames(),
        stacks=Stacks(unique.start, number),
        samples=samples,
        events=[event.name for event in joined.perf.events],
        vms=joined.vms,
        notes=[*joined.notes, *host.notes, *guest.notes, *_snapshot_notes(joined.snapshot)],
        wall_start=joined.meta.started or None,
        hostname=joined.meta.host.hostname,
    )


def _join(recording: Path, options: ConvertOptions) -> _Joined:
    paths = RecordingPaths(recording)
    meta = read_recording(recording)
    perf = read_perf_data(paths.perf_data)
    stream = read_guest_stream(paths.guest_stream)
    notes = [*perf.notes, *stream.notes]
    if not meta.complete:
        notes.append("the recorder did not end as it should; this is what was written until then")
    samples, records = perf.samples, stream.samples
    mode = _CPUMODES[samples.cpumode & 7]
    record = _pair(perf, stream, mode, options.window, notes)
    mode = _true_modes(mode, record, perf, stream)
    vms = [Vm(vm.pid, vm.name) for vm in meta.vms]
    known = {vm.pid for vm in vms}
    vms += [Vm(pid, f"pid {pid}") for pid in np.unique(records.column("vm_pid")).tolist() if pid not in known]
    names, comm = perf.comms_at(samples.tid, samples.time)
    pids = [vm.pid for vm in vms]
    record_vm = _index_of(records.column("vm_pid", np.int32), pids)
    snapshot = read_snapshot(recording / guest_snapshot.DIRECTORY)
    tasks = guest_tasks(records, record_vm, pids, snapshot)
    vm = _index_of(samples.pid, pids)
    return _Joined(meta, perf, stream, vms, mode, record, vm, _vcpus(perf, stream), comm, names, record_vm, tasks, snapshot, notes)


def _pair(perf: PerfData, stream: GuestStream, mode: U8, window: int, notes: list[str]) -> I64:
    """For each sample the index of its record, or -1."""
    guest = np.flatnonzero((mode == Mode.GUEST_KERNEL) | (mode == Mode.GUEST_USER))
    samples, records = perf.samples, stream.samples
    pairs = merge.pair(
        merge.Side(samples.time[guest], samples.cpu[guest], samples.ip[guest]),
        merge.Side(records.column("time"), records.column("cpu", np.int32), records.column("ip", np.uint64)),
        window,
    )
    result = np.full(len(samples.time), -1, np.int64)
    result[guest] = pairs.record_of
    lost = sum(sum(counts) for counts in stream.lost.values())
    share = 100 * pairs.paired / len(guest) if len(guest) else 100.0
    notes.append(
        f"{len(guest)} guest samples, {pairs.paired} ({share:.2f}%) with a guest stack; "
        f"{len(records) - pairs.paired} guest stacks without a sample; {lost} lost by the module, {perf.lost + perf.lost_samples} by perf"
    )
    return result


def _true_modes(mode: U8, record: I64, perf: PerfData, stream: GuestStream) -> U8:
    """The samples' modes with the guest's kernel and user told apart: by the privilege level in the record, else by the half of the address space.

    perf asks kvm_arch_vcpu_in_kernel(), which on some kernels (6.1 is one) answers for the moment when the vCPU was last preempted.
    """
    user = np.append((stream.samples.column("flags") & FLAG_USER) != 0, False)[record]
    user = np.where(record >= 0, user, perf.samples.ip >> np.uint64(63) == 0)
    in_guest = (mode == Mode.GUEST_KERNEL) | (mode == Mode.GUEST_USER)
    return np.where(in_guest, np.where(user, Mode.GUEST_USER, Mode.GUEST_KERNEL), mode).astype(np.uint8)


def _index_of(values: I32, known: list[int]) -> I32:
    """For each value its place in ``known``, or -1."""
    result = np.full(len(values), -1, np.int32)
    for index, value in enumerate(known):
        result[values == value] = index
    return result


def _vcpus(perf: PerfData, stream: GuestStream) -> I32:
    """The vCPU of each sample's thread, as the records say it; -1 for other threads."""
    tid, first = np.unique(stream.samples.column("tid", np.int32), return_index=True)
    if not len(tid):
        return np.full(len(perf.samples.tid), -1, np.int32)
    vcpu = stream.samples.column("vcpu_id", np.int32)[first]
    at = np.minimum(np.searchsorted(tid, perf.samples.tid), len(tid) - 1)
    return np.where(tid[at] == perf.samples.tid, vcpu[at], -1).astype(np.int32)


def _host_kallsyms(recording: Path, notes: list[str]) -> Path | None:
    path = RecordingPaths(recording).kallsyms
    if path.exists():
        return path
    notes.append(f"{path} is missing: the host kernel's functions have no names")
    return None


def _guest_vms(joined: _Joined) -> list[GuestVm]:
    lstars: dict[int, list[int]] = {vm.pid: [] for vm in joined.vms}
    for record in joined.stream.vms:
        if record.lstar and record.pid in lstars and record.lstar not in lstars[record.pid]:
            lstars[record.pid].append(record.lstar)
    return [GuestVm(vm.pid, vm.name, tuple(lstars[vm.pid])) for vm in joined.vms]


def _lstars(joined: _Joined, vm: I32, time: I64) -> U64:
    """The syscall entry in force in the VM at each time, as its last VM record says, 0 where none does."""
    result = np.zeros(len(vm), np.uint64)
    for place, one in enumerate(joined.vms):
        told = sorted((record.time, record.lstar) for record in joined.stream.vms if record.pid == one.pid and record.lstar)
        mine = np.flatnonzero(vm == place)
        if told:
            at = np.searchsorted(np.array([when for when, _ in told], np.uint64), time[mine].astype(np.uint64), "right") - 1
            result[mine] = np.array([lstar for _, lstar in told], np.uint64)[np.maximum(at, 0)]
    return result


def _snapshot_notes(snapshot: GuestSnapshot | None) -> list[str]:
    if snapshot is None:
        return []
    problems = list(dict.fromkeys(f"VM of pid {problem.vm_pid}: {problem.text[:300]}" for problem in snapshot.problems))
    more = [f"{len(problems) - _PROBLEMS_TOLD} more problems of reading guests' memory"] if len(problems) > _PROBLEMS_TOLD else []
    return [*snapshot.notes, *problems[:_PROBLEMS_TOLD], *more]


def _raw_stacks(joined: _Joined, host: HostSymbols, guest: GuestSymbols, kernels: _KernelSpaces) -> RawStacks:
    """Each sample's frames, leaf first: the guest's kernel's and user's, its thread, or the host's; of threads of VMs then the thread and the VM."""
    samples = joined.perf.samples
    space = host.epoch(samples.pid, samples.time)
    of_host = stacks.from_callchains(samples.chain_start, samples.chain, samples.ip, joined.mode, space)
    return stacks.join(
        [
            _proven(_guest_chains(joined, joined.stream.samples.kernel, Mode.GUEST_KERNEL, kernels.of_record), guest, kernels, joined.notes),
            _guest_chains(joined, joined.stream.samples.user, Mode.GUEST_USER, joined.tasks.space),
            _guest_ips(joined, kernels),
            of_host.keep(~joined.in_guest[of_host.owner]),
            _roots(joined),
        ]
    )


def _guest_chains(joined: _Joined, chains: Chains, mode: Mode, of_record: I64) -> RawStacks:
    """The chain of each sample's record; none for samples without one. ``of_record``: what tells equal addresses of records apart."""
    number = len(chains.start) - 1
    record = np.where(joined.record >= 0, joined.record, number)
    # One more chain, an empty one, for the samples without a record.
    start = np.append(chains.start, chains.start[-1])
    space = np.append(of_record, 0)
    whole = stacks.from_chains(start, chains.address, np.full(number + 1, mode, np.uint8), space)
    return whole.select(record)


def _proven(part: RawStacks, guest: GuestSymbols, kernels: _KernelSpaces, notes: list[str]) -> RawStacks:
    """Kernel chains up to the first address that follows no call: a kernel without frame pointers keeps other things in that register."""
    frames = part.frames
    guest.check_kernels(kernels.vm[frames.space], frames.address, frames.returns, kernels.kernel[frames.space])
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


def _guest_ips(joined: _Joined, kernels: _KernelSpaces) -> RawStacks:
    """The IP alone, of guest samples whose record is lost or has no chain."""
    chains = joined.stream.samples
    frames = np.append(np.diff(chains.kernel.start) + np.diff(chains.user.start), 0)
    alone = joined.in_guest & (frames[joined.record] == 0)
    space = np.where(joined.mode == Mode.GUEST_KERNEL, kernels.of_sample, -1 - joined.vm.astype(np.int64))
    start = np.concatenate([[0], np.cumsum(alone)]).astype(np.int64)
    return stacks.from_chains(start, joined.perf.samples.ip[alone], joined.mode, space)


def _roots(joined: _Joined) -> RawStacks:
    """The guest's thread where it is known, then thread and VM, for the threads of VMs."""
    samples = joined.perf.samples
    of_vm = joined.vm >= 0
    comm = joined.of_sample(joined.tasks.comm)
    parts = (
        (of_vm & (comm >= 0), comm, SPACE_GUEST_THREAD),
        (of_vm, samples.tid, SPACE_THREAD),
        (of_vm, joined.vm, SPACE_VM),
    )
    return stacks.join([_root(which, number, space) for which, number, space in parts])


def _root(which: npt.NDArray[np.bool_], number: I32, space: int) -> RawStacks:
    start = np.concatenate([[0], np.cumsum(which)]).astype(np.int64)
    count = int(start[-1])
    frames = stacks.RawFrames(np.zeros(count, np.uint8), np.full(count, space, np.int64), number[which].astype(np.uint64), np.zeros(count, bool), np.zeros(count, bool))
    return RawStacks(start, frames)


def _name_host(names: FrameNames, host: HostSymbols, times: I64, pids: I32) -> None:
    """``times``, ``pids``: for each frame those of a sample that it occurs in."""
    kernel, user = names.rows(Mode.HOST_KERNEL), names.rows(Mode.HOST_USER)
    names.set(kernel, host.resolve_kernel(names.looked_up(kernel)))
    names.set(user, host.resolve_user(pids[user], times[user], names.looked_up(user)))


def _name_guest(names: FrameNames, guest: GuestSymbols, joined: _Joined, kernels: _KernelSpaces) -> None:
    kernel, user = names.rows(Mode.GUEST_KERNEL), names.rows(Mode.GUEST_USER)
    space = names.raw.space[kernel]
    names.set(kernel, guest.resolve_kernel(kernels.vm[space], names.looked_up(kernel), kernels.kernel[space]))
    # Below 0 stands a VM without an address space: of a sample whose record is lost.
    known = user[names.raw.space[user] >= 0]
    at, tasks = names.raw.space[known], joined.tasks
    process = None if joined.snapshot is None else tasks.space_process[at]
    names.set(known, guest.resolve_user(tasks.space_vm[at], tasks.space_id[at], names.raw.address[known], names.raw.returns[known], process))


def _thread_names(joined: _Joined) -> dict[int, str]:
    """The last name of each thread of a VM."""
    of_vm = np.flatnonzero(joined.vm >= 0)
    return {tid: joined.comms[comm] for tid, comm in zip(joined.perf.samples.tid[of_vm].tolist(), joined.comm[of_vm].tolist(), strict=True)}


def _samples(joined: _Joined, stack: I32, names: FrameNames) -> Samples:
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
