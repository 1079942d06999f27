# SPDX-License-Identifier: Apache-2.0
"""The main job on a real KVM host with a real guest: what the recorder writes, and what convert makes of it."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from perfguest.capture.debugfs import LOST_REASONS, parse_stats
from perfguest.convert import ConvertOptions, load_profile
from perfguest.formats.guest_stream import read_guest_stream
from perfguest.formats.perf_data import read_perf_data
from perfguest.formats.recording import RecordingPaths, read_recording
from perfguest.profile import Mode, Profile
from perfguest.symbols.guest import GuestSymbolOptions
from tests.lab.conftest import Host
from tests.lab.names import entry_code, frames_of, kernel_functions, program_functions
from tests.lab.recordings import Truth, chains_of_truth, known_from, pairing_of, stream_of, troubles, user_chain

pytestmark = pytest.mark.lab


@dataclass(frozen=True)
class Recorded:
    """A recording and the guest's files, all copied out of the lab."""

    path: Path
    kallsyms: Path
    root: Path
    truth: Path

    @property
    def guest_arguments(self) -> list[str]:
        return ["--guestkallsyms", str(self.kallsyms), "--guestmount", str(self.root)]

    def profile(self) -> Profile:
        return load_profile(self.path, ConvertOptions(guest=GuestSymbolOptions(kallsyms=(str(self.kallsyms),), mounts=(str(self.root),))))


@pytest.fixture(scope="session")
def recorded(host: Host) -> Recorded:
    host.perfguest("record", "--guest-memory", "off", "-F", "500", "--", "sleep", "20")
    host.run("sh", "-c", 'cp "$PERFGUEST_GUEST_KALLSYMS" guest.kallsyms && cp -r "$PERFGUEST_GUEST_ROOT" guest.root')
    return Recorded(host.work / "perfguest.data", host.work / "guest.kallsyms", host.work / "guest.root", host.lab.truth)


@pytest.fixture(scope="session")
def profile(recorded: Recorded) -> Profile:
    return recorded.profile()


@pytest.fixture(scope="session")
def unaided(host: Host, recorded: Recorded) -> Profile:
    """Recorded until the guest's programs have been read out of its memory and then for a while; converted with nothing given."""
    read = "until ls unaided/guests/binaries/*.pb.gz >/dev/null 2>&1; do sleep 0.2; done; sleep 15"
    host.perfguest("record", "--guest-wait", "300", "-o", "unaided", "-F", "200", "--", "timeout", "600", "sh", "-c", read)
    return load_profile(host.work / "unaided")


def test_the_recording_is_whole_and_nothing_stays_behind(host: Host, recorded: Recorded) -> None:
    meta = read_recording(recorded.path)
    assert meta.complete and not meta.ended_by
    assert [vm.name for vm in meta.vms] == ["lab"]
    assert "perfguest" not in host.run("lsmod").stdout
    assert host.run("pgrep", "-x", "perf", status=None).returncode == 1


def test_every_guest_sample_has_its_record(recorded: Recorded) -> None:
    pairing = pairing_of(recorded.path)
    print(pairing)
    pairing.check()


def test_taken_is_written_and_lost(recorded: Recorded) -> None:
    stream, losses = stream_of(recorded.path), read_recording(recorded.path).losses
    assert all(cpu.taken == cpu.written + sum(cpu.lost) for cpu in losses)
    assert sum(cpu.written for cpu in losses) == len(stream.samples)
    assert {cpu.cpu: list(cpu.lost) for cpu in losses if any(cpu.lost)} == stream.lost


def test_losses_are_exact_when_nobody_reads(host: Host) -> None:
    """A ring that fills up: what the module says it lost is what perf has more."""
    host.perfguest("module", "load")
    host.run(sys.executable, Path(__file__).parent / "slow_reader.py", "slow.stream", "slow.data")
    stats = parse_stats(host.run("cat", "/sys/kernel/debug/perfguest/stats").stdout)
    host.perfguest("module", "unload")
    stream, perf = read_guest_stream(host.work / "slow.stream"), read_perf_data(host.work / "slow.data")
    guest = int((perf.samples.cpumode >= 4).sum())
    full = {cpu: counts[LOST_REASONS.index("full")] for cpu, counts in stream.lost.items()}
    assert sum(full.values()) > 0
    assert len(stream.samples) + sum(sum(counts) for counts in stream.lost.values()) == guest
    assert full == {cpu: counts["full"] for cpu, counts in stats.cpus.items() if counts["full"]}
    assert all(counts["taken"] == counts["written"] + sum(counts[reason] for reason in LOST_REASONS) for counts in stats.cpus.values())


@pytest.mark.parametrize("locator", ["preempt", "accessor", "scan"])
def test_locators_agree(host: Host, locator: str) -> None:
    host.perfguest("module", "load")
    host.perfguest("record", "--guest-memory", "off", "-o", f"by-{locator}", "-F", "300", "--locator", locator, "--", "sleep", "3")
    stats = parse_stats(host.run("cat", "/sys/kernel/debug/perfguest/stats").stdout)
    host.perfguest("module", "unload")
    assert stats.values["locator"] == locator
    assert stats.written > 50 and stats.total("no_vcpu") == 0
    assert stats.values["disagreements"] == "0" and stats.values["vmcb_mismatches"] == "0"
    found = {name: int(stats.values[f"found_{name}"]) for name in ("preempt", "accessor", "scan")}
    assert set(found.values()) == {stats.written}


def test_nmis_take_records_in_the_guest(host: Host, recorded: Recorded) -> None:
    host.perfguest("record", "-o", "by-nmi", "--trigger", "nmi", "--", sys.executable, "-m", "perfguest", "lab-control", "inject-nmi", "--count", "300")
    stream = stream_of(host.work / "by-nmi")
    flags, cpus = stream.samples.column("flags"), stream.samples.column("cpu")
    print(f"{len(flags)} records of 300 NMIs")
    assert len(flags) >= 20
    assert set(cpus.tolist()) == {0}
    deferred, stale = 1 << 13, 1 << 14
    assert ((flags & deferred) != 0).all()
    assert ((flags & stale) != 0).mean() <= 0.01
    with_chain = np.diff(stream.samples.kernel.start) + np.diff(stream.samples.user.start)
    assert (with_chain > 0).mean() >= 0.99


def test_truth(recorded: Recorded, profile: Profile) -> None:
    """The ground-truth program's samples carry the chains that it has, in its proportions."""
    truth = Truth(recorded.truth)
    chains = Counter(chain for chain in truth_chains(profile, truth.root) if chain[0] in truth.functions)
    number, whole = sum(chains.values()), truth.possible(chains)
    print(f"{number} samples in the program, {whole} with a possible chain; {chains}")
    assert number > 200
    assert whole >= 0.99 * number
    truth.check_shares(chains)


def test_kernel_names_come_out_of_the_guests_memory(recorded: Recorded, unaided: Profile) -> None:
    check_kernel_names(recorded.kallsyms, unaided)


def test_threads_and_programs_come_out_of_the_guests_memory(recorded: Recorded, unaided: Profile) -> None:
    """From when the guest's kernel was known: each sample has its thread, and the truth program's functions their names."""
    samples = unaided.samples
    late = known_from(unaided)
    assert late.sum() > 200
    assert (samples.guest_tid[late] >= 0).mean() >= 0.99
    names = Counter(unaided.strings[comm] for comm in samples.guest_comm[late].tolist() if comm >= 0)
    assert {"pg-truth", "pg-syscalls"} <= set(names)
    truth = Truth(recorded.truth)
    chains = chains_of_truth(unaided, late, truth.root)
    number, whole = sum(chains.values()), truth.possible(chains)
    print(f"{number} samples of the truth program with nothing given, {whole} whole and named: {chains.most_common(8)}")
    assert number > 100 and whole >= 0.99 * number


def test_samples_from_before_the_kernel_was_known_have_their_programs(unaided: Profile) -> None:
    """But of processes that were gone when the kernel was open: the workload's commands live for moments."""
    samples = unaided.samples
    guest = np.isin(samples.mode, [Mode.GUEST_KERNEL, Mode.GUEST_USER])
    early = guest & (np.cumsum(samples.guest_tid >= 0) == 0)
    user = early & (samples.mode == Mode.GUEST_USER)
    known = {unaided.strings[comm]: count for comm, count in Counter(samples.guest_comm[user].tolist()).items() if comm >= 0}
    print(f"{early.sum()} guest samples before the kernel was known, {(samples.guest_comm[early] >= 0).mean():.1%} with their process; of user mode {known}")
    assert user.sum() > 50
    assert known["pg-truth"] > 0.2 * user.sum()
    assert sum(known.values()) >= 0.6 * user.sum()


def test_functions_of_programs_are_named_as_nm_has_them(host: Host, unaided: Profile) -> None:
    """With nothing given, from when the guest's kernel was known: all addresses in the guest's one program, which is not position-independent."""
    program = host.lab.guest_root / "bin/workload"
    with program.open("rb") as file:
        code = [(part["p_vaddr"], part["p_vaddr"] + part["p_memsz"]) for part in ELFFile(file).iter_segments("PT_LOAD") if part["p_flags"] & 1]
    functions = program_functions(program)
    user = unaided.samples.mode == Mode.GUEST_USER
    known = np.cumsum(unaided.samples.guest_tid >= 0) > 0
    for rows, what in ((user, "from the first sample on"), (user & known, "from when the kernel was known")):
        frames, returns = frames_of(unaided, np.flatnonzero(rows), Mode.GUEST_USER)
        address = unaided.frames.address[frames]
        inside = np.any([(address >= start) & (address < end) for start, end in code], axis=0)
        right, wrong = functions.compare(unaided, frames[inside], returns[inside])
        print(f"{what}: {inside.sum()} guest user frames in its file, {right} ({right / inside.sum():.3%}) named as nm has them, otherwise {dict(wrong)}")
    assert inside.sum() > 200
    assert not wrong
    assert right >= 0.99 * inside.sum()


def truth_chains(profile: Profile, root: str) -> list[tuple[str, ...]]:
    """Of the samples that hit guest user code of the truth program: the names from the leaf up to ``root``, or all that there are."""
    program = next(index for index, mapping in enumerate(profile.mappings) if mapping.name == "/bin/workload")
    chains = []
    for row in np.flatnonzero(profile.samples.mode == Mode.GUEST_USER).tolist():
        frames = profile.stacks.of(int(profile.samples.stack[row]))
        frames = frames[profile.frames.mode[frames] == Mode.GUEST_USER]
        if profile.frames.mapping[frames[0]] != program:
            continue
        chains.append(user_chain(profile, int(profile.samples.stack[row]), root))
    return chains


def test_guest_kernel_names_are_the_guests(recorded: Recorded, profile: Profile) -> None:
    check_kernel_names(recorded.kallsyms, profile)


def check_kernel_names(kallsyms: Path, profile: Profile) -> None:
    """Of the guest kernel's frames 99.9% have the name that a lookup in the guest's own kallsyms gives, and none has another."""
    text = kallsyms.read_bytes()
    lines = [line.split() for line in (gzip.decompress(text) if text[:2] == b"\x1f\x8b" else text).decode().splitlines()]
    symbols = [(int(words[0], 16), words[1], words[2]) for words in lines]
    functions = kernel_functions(symbols)
    frames, returns = frames_of(profile, np.flatnonzero(profile.samples.mode == Mode.GUEST_KERNEL), Mode.GUEST_KERNEL, entry_code(symbols))
    right, wrong = functions.compare(profile, frames, returns)
    print(f"{len(frames)} guest kernel frames, {right} ({right / len(frames):.3%}) named as the guest's kallsyms has them, {dict(wrong)} otherwise")
    assert len(frames) > 200
    assert not wrong
    assert right >= 0.999 * len(frames)


def test_stacks_lead_from_the_vm_into_the_guest(profile: Profile) -> None:
    rows = np.flatnonzero(np.isin(profile.samples.mode, [Mode.GUEST_KERNEL, Mode.GUEST_USER]))
    for stack in np.unique(profile.samples.stack[rows]).tolist():
        modes = profile.frames.mode[profile.stacks.of(stack)].tolist()
        assert modes[-2:] == [Mode.NONE, Mode.NONE]
        assert sorted(modes[:-2]) == modes[:-2] and set(modes[:-2]) <= {Mode.GUEST_KERNEL, Mode.GUEST_USER}
    host_rows = np.flatnonzero((profile.samples.vm >= 0) & (profile.samples.mode == Mode.HOST_KERNEL))
    assert len(host_rows) and all(profile.frames.mode[profile.stacks.of(int(profile.samples.stack[row]))[-1]] == Mode.NONE for row in host_rows)


def convert(recorded: Recorded, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "perfguest", "convert", str(recorded.path), *recorded.guest_arguments, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, check=True)


def test_go_pprof_reads_it(recorded: Recorded, tmp_path: Path) -> None:
    convert(recorded, "--pprof", cwd=tmp_path)
    top = subprocess.run(["go", "tool", "pprof", "-top", "-nodecount=1000", "guest.pb.gz"], cwd=tmp_path, capture_output=True, text=True, check=True)
    raw = subprocess.run(["go", "tool", "pprof", "-raw", "guest.pb.gz"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    for function in ("leaf_a", "leaf_c", "gamma", "main", "lab"):
        assert re.search(rf"\s{function}$", top.stdout, re.MULTILINE), top.stdout
    assert "Guest Kernel" in raw and "Guest User" in raw and "[guest.kernel.kallsyms]" in raw
    # Guest functions called by guest functions, as the caller lines of -peek show.
    peek = subprocess.run(["go", "tool", "pprof", "-peek", "^leaf_c$", "guest.pb.gz"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert re.search(r"gamma\n", peek), peek


def test_stackcollapse_reads_it(recorded: Recorded, tmp_path: Path, stackcollapse: list[str]) -> None:
    script = convert(recorded, "--script", cwd=tmp_path).stdout
    collapsed = subprocess.run([*stackcollapse, "--all"], input=script, capture_output=True, check=True).stdout.decode()
    folded = convert(recorded, "--folded", "--weight", "period", cwd=tmp_path).stdout.decode()
    total = [sum(int(line.rpartition(" ")[2]) for line in text.splitlines()) for text in (collapsed, folded)]
    assert total[0] == total[1] == read_perf_data(RecordingPaths(recorded.path).perf_data).samples.period.sum()
    assert re.search(r";main;work;beta;gamma;leaf_c \d+$", collapsed, re.MULTILINE)


def test_chrome_trace_names_guest_functions(recorded: Recorded, tmp_path: Path) -> None:
    convert(recorded, "--chrome", "-o", "trace.json", cwd=tmp_path)
    trace = json.loads((tmp_path / "trace.json").read_text())
    names = {
        node["callFrame"]["functionName"]
        for event in trace["traceEvents"]
        if event["name"] == "ProfileChunk"
        for node in event["args"]["data"]["cpuProfile"].get("nodes", [])
    }
    assert {"leaf_a", "leaf_b", "leaf_c", "main"} <= names


def test_the_plugin_prints_what_convert_prints(recorded: Recorded, tmp_path: Path) -> None:
    script = convert(recorded, "--script", cwd=tmp_path).stdout
    plugin = Path(__file__).parents[2] / "perfguest" / "perf_plugin" / "perfguest_script.py"
    command = ["perf", "script", "-i", RecordingPaths(recorded.path).perf_data, "-s", plugin, *recorded.guest_arguments]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert printed.stdout == script


def test_a_killed_recorder_leaves_nothing_running(host: Host) -> None:
    host.perfguest("module", "load")
    script = f"""
        {sys.executable} -m perfguest record --guest-memory off -o killed -- sleep 1000 & recorder=$!
        until [ "$(cat /sys/kernel/debug/perfguest/enable)" = 1 ] && pgrep -x sleep -P $recorder; do sleep 0.1; done
        kill -9 $recorder; wait $recorder
        while pgrep -x perf || pgrep -x sleep; do sleep 0.1; done
        cat /sys/kernel/debug/perfguest/enable
    """
    assert host.run("timeout", "300", "sh", "-c", script).stdout.split()[-1] == "0"
    host.perfguest("module", "unload")
    meta = read_recording(host.work / "killed")
    assert not meta.complete


def test_the_kernel_log_is_clean(host: Host) -> None:
    """The last test here: of everything that was done before."""
    log = host.lab.dmesg()
    assert not troubles(log), log
