# SPDX-License-Identifier: Apache-2.0
"""Which of the guest's threads each record belongs to, and which reading of its process says what was mapped then.

The record itself carries the thread, read at the sample's moment. Records from before the module was told where the guest keeps its tasks are given, if a
user program or the kernel for one was running, the process whose page table was loaded: if it is known to have lived before and after, with its number; else,
if the program stood in code where that process has code, with its mappings and name alone. No two address spaces are alike by chance, as the kernel places
their parts at random (code of some programs excepted, and then it is the stack that tells), but a child that has not called exec has its parent's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest.formats.guest_snapshot import GuestSnapshot
from perfguest.formats.guest_stream import FLAG_USER, GuestSamples
from perfguest.proto import guest_pb2 as pb
from perfguest.rows import distinct_rows

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

#: ``PG_SAMPLE_CR3`` and ``PG_SAMPLE_TASK`` of kmod/perfguest_abi.h.
FLAG_CR3, FLAG_TASK = 1 << 9, 1 << 12

_CR3_ADDRESS = np.uint64(0x000FFFFFFFFFF000)
# With page-table isolation the page table of user mode is the second of two pages.
_USER_TABLE = np.uint64(0x1000)
# Where registers stand among a sample's.
_SP, _IP = 4, 16
# What is mapped from here on is placed at random: position-independent programs, libraries, stacks (Documentation/arch/x86/x86_64/mm.rst, ELF_ET_DYN_BASE).
# Below are programs at fixed addresses, and heaps of some run-time libraries. Without randomness a stack ends where user addresses do.
_RANDOM, _STACK_END = 0x5000_0000_0000, 0x7FFF_FFFF_F000
# No clock runs so long, nor are two so far apart; in nanoseconds.
_UNKNOWN = 1 << 62
_MAX_COMM = 16
_MAX_PATH = 4096


@dataclass(frozen=True)
class GuestTasks:
    """Columns by record; -1 where not known.

    ``pid``: int32, the process (tgid); ``tid``: int32; ``comm``: int32 index into ``comms``; ``cgroup``: int32 index into ``cgroups``.
    ``process``: int64 index into the snapshot's processes: the one whose mappings held.
    ``space``: int64, what tells equal user addresses apart: an index into ``space_vm`` (int32), ``space_process`` (int64, as ``process``) and
    ``space_id`` (uint64: equal for equal address spaces of unknown mappings).
    """

    pid: I32
    tid: I32
    comm: I32
    comms: list[str]
    cgroup: I32
    cgroups: list[str]
    process: I64
    space: I64
    space_vm: I32
    space_process: I64
    space_id: U64


def guest_tasks(records: GuestSamples, vm: I32, pids: Sequence[int], snapshot: GuestSnapshot | None) -> GuestTasks:
    """``vm``: int32 index into ``pids`` (the VMs' host pids) for each record."""
    known, tgid, tid, start, comm, comms = _running(records)
    cr3 = records.column("cr3", np.uint64) & _CR3_ADDRESS
    process = np.full(len(vm), -1, np.int64)
    pid = np.where(known, tgid, -1).astype(np.int32)
    cgroup, cgroups = np.full(len(vm), -1, np.int32), list[str]()
    if snapshot is not None and snapshot.processes:
        time = records.column("time", np.int64)
        flags = records.column("flags", np.uint64)
        page_table = np.where(flags & np.uint64(FLAG_CR3), cr3, 0).astype(np.uint64)
        readings = _Readings(snapshot.processes, pids)
        identity = readings.identity(vm, known, tgid, tid, start)
        unknown = ~known & _of_program(records, flags) & (page_table != 0)
        guessed, rows = unknown.copy(), np.flatnonzero(unknown)
        lives = readings.lives(identity, time, _clock_distance(len(pids), vm[known], start[known], time[known]))
        identity[rows] = readings.living(lives, vm[rows], page_table[rows], time[rows])
        process = readings.at(identity, page_table, time)
        # Of a thread, the process is known by the page table too.
        identity[(process < 0) & known & (tid != tgid)] = -1
        guessed &= process >= 0
        pid[guessed] = readings.tgid[process[guessed]]
        rest = np.flatnonzero(unknown & (process < 0))
        process[rest] = readings.find_by_code(vm[rest], page_table[rest], _places(records, rest), time[rest])
        cgroup, cgroups = readings.cgroup_of(identity)
        named = unknown & (process >= 0)
        comm = comm.copy()
        comm[named] = len(comms) + process[named].astype(np.int32)
        comms = [*comms, *(_text(one.comm, _MAX_COMM) for one in snapshot.processes)]
    # The reading of the process tells all; where there is none the page table has to.
    first, space = distinct_rows(vm, process, pid, np.where(known, start, 0), np.where(process >= 0, 0, cr3))
    identifiers = (np.arange(len(first), dtype=np.uint64) + np.uint64(1)) << np.uint64(12)
    return GuestTasks(
        pid=pid,
        tid=np.where(known, tid, -1).astype(np.int32),
        comm=comm,
        comms=comms,
        cgroup=cgroup,
        cgroups=cgroups,
        process=process,
        space=space.astype(np.int64),
        space_vm=vm[first],
        space_process=process[first],
        space_id=identifiers,
    )


def _running(records: GuestSamples) -> tuple[npt.NDArray[np.bool_], I32, I32, U64, I32, list[str]]:
    """Of each record whether it carries the guest's thread, and the thread's tgid, pid, start and comm."""
    count = len(records)
    fields = records.fields.dtype.names or ()
    if not {"task_pid", "task_tgid", "task_start", "task_comm"} <= set(fields):
        none = np.full(count, -1, np.int32)
        return np.zeros(count, bool), none, none, np.zeros(count, np.uint64), none, []
    known = (records.column("flags", np.uint64) & np.uint64(FLAG_TASK)) != 0
    raw, comm = np.unique(records.column("task_comm", "S16"), return_inverse=True)
    comms = [_text(bytes(one), _MAX_COMM) for one in raw.tolist()]
    tgid, tid = (records.column(name, np.int64) for name in ("task_tgid", "task_pid"))
    # A process's number fits 22 bits; what does not was read from somewhere else.
    known &= (tgid < 1 << 30) & (tid < 1 << 30)
    return known, tgid.astype(np.int32), tid.astype(np.int32), records.column("task_start", np.uint64), np.where(known, comm, -1).astype(np.int32), comms


def _of_program(records: GuestSamples, flags: U64) -> npt.NDArray[np.bool_]:
    """Of each record whether it hit a user program, or the kernel while it ran for one."""
    user: npt.NDArray[np.bool_] = (flags & np.uint64(FLAG_USER)) != 0
    user[records.user_registers.row] = True
    return user


def _places(records: GuestSamples, rows: I64) -> U64:
    """(2, n): IP and SP of the user programs of these records, in the order of the file."""
    places = records.registers(rows)[:, [_IP, _SP]].T
    below = records.user_registers
    at = np.minimum(np.searchsorted(below.row, rows), max(len(below.row) - 1, 0))
    if len(below.row):
        found = below.row[at] == rows
        places[:, found] = below.registers[at[found]][:, [_IP, _SP]].T
    return places


def _clock_distance(vms: int, vm: I32, start: U64, time: I64) -> I64:
    """By VM: what the host's clock has more than the guest's boot clock, at most, as the youngest thread says that ran; the last one is for no VM.
    ``start``, ``time``: of records that have their thread."""
    distance = np.full(vms + 1, _UNKNOWN, np.int64)
    told = (vm >= 0) & (start > 0) & (start < np.uint64(_UNKNOWN))
    np.minimum.at(distance, vm[told], time[told] - start[told].astype(np.int64))
    return distance


def _text(raw: bytes, most: int) -> str:
    return raw.split(b"\0", 1)[0][:most].decode("utf-8", "replace")


class _Readings:
    """The readings of processes in columns. Several readings of the same (VM, tgid, start) have the same identity."""

    def __init__(self, processes: Sequence[pb.Process], pids: Sequence[int]) -> None:
        places = {pid: place for place, pid in enumerate(pids)}
        self._processes = processes
        self.vm: I32 = np.array([places.get(one.vm_pid, -1) for one in processes], np.int32)
        self.tgid: I32 = np.array([one.tgid & 0x3FFFFFFF for one in processes], np.int32)
        self._time: U64 = np.array([one.time for one in processes], np.uint64)
        self._start: U64 = np.array([one.start_time for one in processes], np.uint64)
        self._cr3: U64 = np.array([one.cr3 for one in processes], np.uint64) & _CR3_ADDRESS
        keys = np.stack([self.vm.astype(np.uint64), self.tgid.astype(np.uint64), self._start], axis=1)
        self._keys, identity = np.unique(keys, axis=0, return_inverse=True)
        self._identity: I64 = identity.reshape(-1).astype(np.int64)
        order = np.lexsort((self._time, self._identity))
        bounds = np.searchsorted(self._identity[order], np.arange(len(self._keys) + 1))
        self._rows = [order[first:last] for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]

    def identity(self, vm: I32, known: npt.NDArray[np.bool_], tgid: I32, tid: I32, start: U64) -> I64:
        """For each record the identity of its process, or -1 where it was never read.

        The start is the thread's own. That of a process's first thread is the process's; other threads start later: theirs is the last process of the
        number that started before.
        """
        result = np.full(len(vm), -1, np.int64)
        rows = np.flatnonzero(known & (vm >= 0))
        mine = np.stack([vm[rows].astype(np.uint64), tgid[rows].astype(np.uint64), start[rows]], axis=1)
        _, number = np.unique(np.concatenate([self._keys, mine]), axis=0, return_inverse=True)
        number = number.reshape(-1)
        # Both are in order, so that what stands before a record is of the same number, or there is none of it.
        places, wanted = number[: len(self._keys)], number[len(self._keys) :]
        before = np.searchsorted(places, wanted, "right") - 1
        if not len(places):
            return result
        own = self._keys[np.maximum(before, 0)]
        fits = (before >= 0) & (own[:, :2] == mine[:, :2]).all(axis=1)
        result[rows] = np.where(fits & ((tid[rows] != tgid[rows]) | (own[:, 2] == start[rows])), before, -1)
        return result

    def lives(self, identity: I64, time: I64, distance: I64) -> tuple[I64, I64]:
        """Times between which each reading's process surely lived, by the host's clock. ``identity``, ``time``: of records; ``distance``: by VM, of clocks."""
        started = (self._start < np.uint64(_UNKNOWN)) & (self._time < np.uint64(_UNKNOWN)) & (self._start > 0) & (distance[self.vm] < _UNKNOWN)
        born = np.where(started, self._start.astype(np.int64) + np.where(started, distance[self.vm], 0), _UNKNOWN)
        last = np.zeros(len(self._keys), np.int64)
        np.maximum.at(last, self._identity[started], self._time[started].astype(np.int64))
        seen = identity >= 0
        np.maximum.at(last, identity[seen], time[seen])
        return born, last[self._identity]

    def living(self, lives: tuple[I64, I64], vm: I32, cr3: U64, time: I64) -> I64:
        """For each record the identity of the one process of its page table that lived all around its time, or -1. ``lives``: what :meth:`lives` gave."""
        fitting, found = np.zeros(len(vm), np.int64), np.full(len(vm), -1, np.int64)
        born, last = lives
        for row in np.flatnonzero((born < _UNKNOWN) & (self.vm >= 0) & (self._cr3 != 0)).tolist():
            one = self._identity[row]
            mine = (vm == self.vm[row]) & _same_table(cr3, self._cr3[row]) & (time >= born[row]) & (time <= last[row])
            fitting[mine & (found != one)] += 1
            found[mine] = one
        return np.where(fitting == 1, found, -1)

    def find_by_code(self, vm: I32, cr3: U64, places: U64, time: I64) -> I64:
        """For each record the first reading after it, else the last one before, of its page table that has its code; -1 where there is none.
        ``places``: (2, n), IP and SP."""
        by_table: dict[tuple[int, int], list[int]] = {}
        for row in np.argsort(self._time, kind="stable").tolist():
            if self._cr3[row]:
                for table in {int(self._cr3[row]), int(self._cr3[row] | _USER_TABLE)}:
                    by_table.setdefault((int(self.vm[row]), table), []).append(row)
        found = np.full(len(vm), -1, np.int64)
        first, kind = distinct_rows(vm, cr3)
        for number, one in enumerate(first.tolist()):
            mine = np.flatnonzero(kind == number)
            rows = by_table.get((int(vm[one]), int(cr3[one])), [])
            for row in rows:
                inside = mine[self._has_code(row, places[:, mine])]
                found[inside] = row
                mine = mine[(found[mine] != row) | (time[mine] > int(self._time[row]))]
        return found

    def _has_code(self, row: int, places: U64) -> npt.NDArray[np.bool_]:
        """Whether code is mapped at IP, and the mapping of that or of SP lies where no other program has one."""
        mappings = self._processes[row].mappings
        ip, sp = places
        if any(one.path == b"[stack]" and one.end == _STACK_END for one in mappings):
            # Nothing is placed at random there (ADDR_NO_RANDOMIZE, norandmaps).
            return np.zeros(len(ip), bool)
        by_chance = [one for one in mappings if one.start >= _RANDOM]
        proven = _inside([one for one in by_chance if one.executable], ip) | _inside(by_chance, sp)
        return proven & _inside([one for one in mappings if one.executable], ip)

    def at(self, identity: I64, cr3: U64, time: I64) -> I64:
        """The reading that held: of those with this page table (an exec makes a new one) the last one before, else the first one after."""
        result = np.full(len(identity), -1, np.int64)
        order = np.argsort(identity, kind="stable")
        bounds = np.searchsorted(identity[order], np.arange(len(self._keys) + 1))
        for rows, first, last in zip(self._rows, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            mine = order[first:last]
            for table in np.unique(cr3[mine]).tolist():
                of_table = mine[cr3[mine] == table]
                own = self._cr3[rows]
                fitting = rows[(own == 0) | (table == 0) | _same_table(np.full(len(rows), table, np.uint64), own)]
                if len(fitting):
                    at = np.searchsorted(self._time[fitting], time[of_table].astype(np.uint64), "right") - 1
                    result[of_table] = fitting[np.maximum(at, 0)]
        return result

    def cgroup_of(self, identity: I64) -> tuple[I32, list[str]]:
        """The last known cgroup of each record's process, as index into the list, or -1."""
        texts: dict[str, int] = {}
        numbers = np.full(len(self._rows) + 1, -1, np.int32)
        for one, rows in enumerate(self._rows):
            text = next((text for row in rows[::-1].tolist() if (text := _text(self._processes[row].cgroup, _MAX_PATH))), "")
            if text:
                numbers[one] = texts.setdefault(text, len(texts))
        return numbers[identity], list(texts)


def _inside(mappings: Sequence[pb.Mapping], addresses: U64) -> npt.NDArray[np.bool_]:
    bounds = sorted((one.start, one.end) for one in mappings if one.start < one.end)
    if not bounds:
        return np.zeros(len(addresses), bool)
    start, end = np.array(bounds, np.uint64).T
    at = np.searchsorted(start, addresses, "right") - 1
    result: npt.NDArray[np.bool_] = (at >= 0) & (addresses < end[np.maximum(at, 0)])
    return result


def _same_table(cr3: U64, own: U64 | np.uint64) -> npt.NDArray[np.bool_]:
    """``cr3`` of records, ``own`` of a process's kernel half."""
    result: npt.NDArray[np.bool_] = (cr3 == own) | (cr3 == (own | _USER_TABLE))
    return result
