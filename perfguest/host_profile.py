# SPDX-License-Identifier: Apache-2.0
"""From a perf.data alone to a :class:`Profile`: the host's stacks as perf recorded them, named. What guests need is not even loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from perfguest import stacks
from perfguest.formats.perf_data import PerfData, read_perf_data
from perfguest.naming import FrameNames, without_junk
from perfguest.profile import I32, U8, Profile, Samples, Stacks
from perfguest.stacks import Callchains
from perfguest.symbols.host import HostSymbols
from perfguest.symbols.host_kernel import host_kallsyms


def load_host_profile(path: Path, host_root: Path = Path("/")) -> Profile:
    """``path``: what ``perf record`` wrote. ``host_root``: where the recorded host's files are. A guest's sample has its IP alone, without a name.

    Raises :class:`FormatError` for what is no perf.data, or damaged beyond reading.
    """
    perf = read_perf_data(path)
    notes = list(perf.notes)
    # As RecordingPaths has them, which loads protobuf.
    directory = path.absolute().parent
    if path.name == "perf.data" and (directory / "recording.pb").is_file():
        notes.append(f"{path} is part of a recording, whose guests' stacks are not read: for these give its directory, {directory}")
    samples = perf.samples
    host = HostSymbols(perf, host_kallsyms(perf, host_root, notes), host_root)
    mode, space = stacks.sample_modes(samples.cpumode), host.epoch(samples.pid, samples.time)
    chains = Callchains(samples.buffer.data, samples.chain_at, samples.chain_length)
    example, kind = stacks.distinct_chains(chains, samples.ip, mode, space)
    found = stacks.number_stacks(stacks.from_callchains(chains.select(example), samples.ip[example], mode[example], space[example]))
    sample = example[found.holder]
    found = without_junk(found, host, samples.time[sample], samples.pid[sample])
    names, sample = FrameNames(found.frames), example[found.holder]
    names.set_host(host, samples.time[sample], samples.pid[sample])
    columns = _samples(perf, mode, found.number[kind], names)
    clock = perf.header.clock_data
    return Profile(
        strings=list(names.strings),
        mappings=names.profile_mappings(),
        frames=names.frames(),
        stacks=Stacks(found.start, found.frame),
        samples=columns,
        events=[event.name for event in perf.events],
        vms=[],
        notes=[*notes, *host.notes],
        wall_start=None if clock is None or not len(samples) else (clock.wall_clock_ns + int(samples.time[0]) - clock.clockid_time_ns) / 1e9,
        hostname=perf.header.hostname,
    )


def _samples(perf: PerfData, mode: U8, stack: I32, names: FrameNames) -> Samples:
    samples = perf.samples
    comms, comm = perf.comms_at(samples.tid, samples.time)
    none = np.full(len(samples), -1, np.int32)
    return Samples(
        time=samples.time,
        cpu=samples.cpu,
        pid=samples.pid,
        tid=samples.tid,
        comm=np.array([names.string(name) for name in comms], np.int32)[comm] if comms else comm,
        event=samples.event,
        period=samples.period,
        mode=mode,
        stack=stack,
        vm=none,
        vcpu=none,
        ip=samples.ip,
        guest_pid=none,
        guest_tid=none,
        guest_comm=none,
        cgroup=none,
    )
