# SPDX-License-Identifier: Apache-2.0
"""Chrome's trace format as JSON: a track for each thread of a VM, one for each thread of its guest, and one for each of the host's CPUs.

Stacks are written as V8's sampling profiler does, in events ``Profile`` and ``ProfileChunk``: the only stack samples that Perfetto takes from JSON
(``src/trace_processor/importers/json``, ``importers/common/legacy_v8_cpu_profile_tracker``), and speedscope reads the same events
(``src/import/chrome.ts``), one profile for each ``id``. What these two ask for:

- ``startTime`` and ``timeDeltas`` are whole microseconds; ``ts`` may have a fraction.
- The first event has ``cat``, ``pid`` and ``tid``, and every one a ``ts``, or speedscope takes the file for something else.
- A node comes after its parent and is told once for each ``id``; a chunk has as many deltas as samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from perfguest.profile import I32, I64, Profile
from perfguest.writers.call_tree import CallTree
from perfguest.writers.columns import blocks, display_names, unique_rows
from perfguest.writers.text import escape, hex_escape

#: The host's CPUs are shown as threads of a process of this number: the first that no process on Linux can have.
HOST_CPUS_PID = 1 << 22

# Threads of guests are shown in their VM's process, with numbers that are no thread's on the host: from here on, behind those of the host's CPUs.
_GUEST_TIDS = 1 << 24
_GUESTS_LAST = 1 << 21
_CHUNK = 8192
# Names with which V8 says that there is no function; readers leave them out or put them elsewhere in the tree.
_V8_NAMES = {"(root)", "(idle)", "(program)", "(garbage collector)"}


@dataclass(frozen=True)
class _Track:
    pid: int
    tid: int
    name: str
    process: str
    #: I64 of its samples, in order of time.
    samples: I64
    sort_index: int


def write(profile: Profile, out: BinaryIO) -> None:
    """Writes the trace to ``out``, an object with ``traceEvents`` and ``otherData`` (host and notes).

    A sample of a VM's thread is on two tracks, and on that of the guest's thread where it is known.
    """
    out.write(b'{"traceEvents":[\n')
    separator = b""
    for event in _events(profile):
        out.write(separator + event)
        separator = b",\n"
    other = {"hostname": escape(profile.hostname), "notes": [escape(note) for note in profile.notes]}
    out.write(b'\n],\n"otherData":' + _json(other) + b"}\n")


def _json(value: Any) -> bytes:
    """All text in ``value`` is printable, so that nothing but quotes needs an escape, and ``value`` may stand in HTML."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("</", r"<\/").encode()


def _events(profile: Profile) -> Iterator[bytes]:
    tracks = [*_cpu_tracks(profile), *_thread_tracks(profile), *_guest_tracks(profile)]
    yield from _names(tracks)
    labels, callframes = _callframes(profile)
    tree = CallTree.of(profile.stacks, labels)
    for identifier, track in enumerate(tracks, 1):
        yield from _track_events(profile, track, identifier, tree, callframes)


def _cpu_tracks(profile: Profile) -> Iterator[_Track]:
    cpus, kind = np.unique(profile.samples.cpu, return_inverse=True)
    for cpu, rows in zip(cpus.tolist(), _rows_of(kind, len(cpus)), strict=True):
        yield _Track(HOST_CPUS_PID, HOST_CPUS_PID + 1 + cpu, f"CPU {cpu}" if cpu >= 0 else "no CPU told", "Host CPUs", rows, cpu)


def _thread_tracks(profile: Profile) -> Iterator[_Track]:
    """Threads of VMs: vCPUs in their order, then the others."""
    samples = profile.samples
    of_vm = np.flatnonzero(samples.vm >= 0)
    first, kind = unique_rows(samples.vm[of_vm], samples.pid[of_vm], samples.tid[of_vm])
    for row, rows in zip(of_vm[first].tolist(), _rows_of(kind, len(first)), strict=True):
        vcpu, comm = int(samples.vcpu[row]), escape(profile.strings[samples.comm[row]])
        vm, tid = profile.vms[samples.vm[row]], int(samples.tid[row])
        name, order = (f"vCPU {vcpu} ({comm})", vcpu) if vcpu >= 0 else (comm or f"thread {tid}", 1 << 20)
        yield _Track(int(samples.pid[row]), tid, name, escape(vm.name) or f"VM {vm.pid}", of_vm[rows], order)


def _guest_tracks(profile: Profile) -> Iterator[_Track]:
    """Threads of guests, by process and thread as the guest counts. Its idle threads all have the number 0: they are one each by vCPU."""
    samples = profile.samples
    known = np.flatnonzero((samples.vm >= 0) & (samples.guest_tid >= 0))
    cpu = np.where(samples.guest_tid[known] == 0, samples.vcpu[known], -1)
    first, kind = unique_rows(samples.vm[known], samples.guest_pid[known], samples.guest_tid[known], cpu)
    for number, rows in enumerate(_rows_of(kind, len(first))):
        # A thread may change its name, as by an exec: it is called by the last one.
        row = int(known[rows[-1]])
        pid, tid, comm, vm = int(samples.guest_pid[row]), int(samples.guest_tid[row]), samples.guest_comm[row], profile.vms[samples.vm[row]]
        name = f"{escape(profile.strings[comm]) if comm >= 0 else 'thread'} {pid}" + (f"/{tid}" if tid != pid else "") + " (guest)"
        yield _Track(int(samples.pid[row]), _GUEST_TIDS + number, name, escape(vm.name) or f"VM {vm.pid}", known[rows], _GUESTS_LAST + number)


def _rows_of(kind: I32 | I64, kinds: int) -> list[I64]:
    """For each kind its rows, ascending."""
    order = np.argsort(kind, kind="stable")
    return np.split(order, np.cumsum(np.bincount(kind, minlength=kinds))[:-1]) if kinds else []


def _names(tracks: list[_Track]) -> Iterator[bytes]:
    processes = {track.pid: track.process for track in tracks} or {HOST_CPUS_PID: "Host CPUs"}
    for pid, process in processes.items():
        yield _metadata("process_name", pid, pid, {"name": process})
        yield _metadata("process_sort_index", pid, pid, {"sort_index": -1 if pid == HOST_CPUS_PID else 0})
    for track in tracks:
        yield _metadata("thread_name", track.pid, track.tid, {"name": track.name})
        yield _metadata("thread_sort_index", track.pid, track.tid, {"sort_index": track.sort_index})


def _metadata(name: str, pid: int, tid: int, args: dict[str, str | int]) -> bytes:
    return _json({"ph": "M", "cat": "__metadata", "name": name, "pid": pid, "tid": tid, "ts": 0, "args": args})


def _callframes(profile: Profile) -> tuple[I64, list[bytes]]:
    """For each frame the number of its call frame (0 stands for a stack without frames), and the call frames as JSON."""
    files = [escape(mapping.name) for mapping in profile.mappings] + [""]
    numbers: dict[tuple[str, str], int] = {("[unknown]", ""): 0}
    keys = zip(display_names(profile), (files[mapping] for mapping in profile.frames.mapping.tolist()), strict=True)
    labels = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
    return labels, [_json({"functionName": _function_name(name), "url": file}) for name, file in numbers]


def _function_name(name: str) -> str:
    return hex_escape(name[0]) + name[1:] if name in _V8_NAMES else name


def _track_events(profile: Profile, track: _Track, identifier: int, tree: CallTree, callframes: list[bytes]) -> Iterator[bytes]:
    """The track's profile, its nodes in chunks, and its samples in chunks.

    Node *i* of the tree has the id *i* + 2, and 1 is the node of stacks without frames.
    """
    time = profile.samples.time[track.samples]
    microseconds = time // 1000
    deltas = np.diff(microseconds, prepend=microseconds[0])
    leaves = tree.leaf[profile.samples.stack[track.samples]]
    yield _sample_event("Profile", track, identifier, int(time[0]), b'{"startTime":%d}' % microseconds[0])
    nodes = _nodes(tree, leaves, callframes)
    while some := b",".join(islice(nodes, _CHUNK)):
        yield _sample_event("ProfileChunk", track, identifier, int(time[0]), b'{"cpuProfile":{"nodes":[%b],"samples":[]},"timeDeltas":[]}' % some)
    for block in blocks(len(time), _CHUNK):
        ids, steps = (",".join(map(str, column[block].tolist())).encode() for column in (leaves + 2, deltas))
        end = b',"endTime":%d' % microseconds[-1] if block.stop == len(time) else b""
        data = b'{"cpuProfile":{"nodes":[],"samples":[%b]},"timeDeltas":[%b]%b}' % (ids, steps, end)
        yield _sample_event("ProfileChunk", track, identifier, int(time[block.start]), data)


def _nodes(tree: CallTree, leaves: I64, callframes: list[bytes]) -> Iterator[bytes]:
    if (leaves < 0).any():
        yield b'{"id":1,"callFrame":%b}' % callframes[0]
    used = tree.with_callers(leaves)
    for node, parent, label in zip((used + 2).tolist(), (tree.parent[used] + 2).tolist(), tree.label[used].tolist(), strict=True):
        above = b'"parent":%d,' % parent if parent > 1 else b""
        yield b'{"id":%d,%b"callFrame":%b}' % (node, above, callframes[label])


def _sample_event(name: str, track: _Track, identifier: int, time: int, data: bytes) -> bytes:
    head = '{"ph":"P","cat":"disabled-by-default-v8.cpu_profiler","name":"%s","id":"0x%x","pid":%d,"tid":%d,"ts":%d.%03d,"args":{"data":'
    return (head % (name, identifier, track.pid, track.tid, time // 1000, time % 1000)).encode() + data + b"}}"
