# SPDX-License-Identifier: Apache-2.0
"""A recording's two sides read and put together: perf's samples, the module's records, which belongs to which, and what VM, vCPU and thread each is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfguest import merge
from perfguest.formats import guest_snapshot
from perfguest.formats.guest_snapshot import GuestSnapshot, read_snapshot
from perfguest.formats.guest_stream import FLAG_USER, GuestStream, read_guest_stream
from perfguest.formats.perf_data import PerfData, read_perf_data
from perfguest.formats.recording import RecordingPaths, read_recording
from perfguest.profile import I32, I64, U8, U64, Mode, Vm
from perfguest.proto import recording_pb2 as pb
from perfguest.stacks import sample_modes
from perfguest.symbols.guest_tasks import GuestTasks, guest_tasks


@dataclass(frozen=True)
class Joined:
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


def join(recording: Path, window: int) -> Joined:
    """Reads the recording's directory. ``window``: nanoseconds that a sample and its record may lie apart. Raises :class:`FormatError`."""
    paths = RecordingPaths(recording)
    meta = read_recording(recording)
    perf = read_perf_data(paths.perf_data)
    stream = read_guest_stream(paths.guest_stream)
    notes = [*perf.notes, *stream.notes]
    if not meta.complete:
        notes.append("the recorder did not end as it should; this is what was written until then")
    samples, records = perf.samples, stream.samples
    mode = sample_modes(samples.cpumode)
    record = _pair(perf, stream, mode, window, notes)
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
    return Joined(meta, perf, stream, vms, mode, record, vm, _vcpus(perf, stream), comm, names, record_vm, tasks, snapshot, notes)


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


def lstars(joined: Joined, vm: I32, time: I64) -> U64:
    """The syscall entry in force in the VM at each time, as its last VM record says, 0 where none does."""
    result = np.zeros(len(vm), np.uint64)
    for place, one in enumerate(joined.vms):
        told = sorted((record.time, record.lstar) for record in joined.stream.vms if record.pid == one.pid and record.lstar)
        mine = np.flatnonzero(vm == place)
        if told:
            at = np.searchsorted(np.array([when for when, _ in told], np.uint64), time[mine].astype(np.uint64), "right") - 1
            result[mine] = np.array([lstar for _, lstar in told], np.uint64)[np.maximum(at, 0)]
    return result
