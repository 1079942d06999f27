# SPDX-License-Identifier: Apache-2.0
"""Processes and binaries of a running guest, against what the guest's own /proc says of them and against the files that it runs."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from perfguest.capture.guest_check import check_process
from perfguest.guest import mappings, processes
from perfguest.guest.binaries import FileHandle, read_binary
from perfguest.guest.kernel import GuestUnreadable, LiveKernel
from perfguest.guest.notes import build_id
from perfguest.proto import guest_pb2
from tests.guest.conftest import Booted, Opened
from tests.guest.emulated import EmulatedGuest
from tests.guest.matrix import Findings

# In the guest: everything that its /proc says of each process, one after the other.
_ALL = (
    "for p in /proc/[0-9]*; do echo PROCESS ${p#/proc/}; cat $p/stat; echo COMM; cat $p/comm; echo STATUS; cat $p/status; echo CGROUP; cat $p/cgroup;"
    " echo COMMAND; cat $p/cmdline; echo; echo MAPS; cat $p/maps; echo END; done 2>/dev/null"
)


@dataclass(frozen=True)
class Told:
    """What the guest's /proc says of a process. ``maps``: (start, end, offset, executable, inode, path)."""

    ticks: int
    comm: bytes
    namespace_pid: int
    cgroup: bytes
    command: bytes
    maps: list[tuple[int, int, int, bool, int, bytes]]


@dataclass(frozen=True)
class Running:
    guest: EmulatedGuest
    kernel: LiveKernel
    files: dict[str, tuple[int, bytes]]
    #: What each mode of the puzzle runs as.
    pids: dict[str, int]


@pytest.fixture(scope="session")
def running(booted: Booted, opened: Opened) -> Running:
    return Running(booted.guest, opened.kernel, booted.files, booted.pids)


def _told(guest: EmulatedGuest) -> dict[int, Told]:
    return {told[0]: told[1] for part in re.split(rb"^PROCESS ", guest.run(_ALL), flags=re.M)[1:] if b"\nEND\n" in part for told in [_parse(part)]}


def _parse(text: bytes) -> tuple[int, Told]:
    head, comm, status, cgroup, command, maps = re.split(rb"^(?:COMM|STATUS|CGROUP|COMMAND|MAPS)\n", text, maxsplit=5, flags=re.M)
    lines = []
    for line in maps.partition(b"END\n")[0].splitlines():
        match = re.fullmatch(rb"(\w+)-(\w+) (\S+) (\w+) \S+ (\d+) *(.*)", line)
        assert match, line
        start, end, permissions, offset, inode, path = match.groups()
        lines.append((int(start, 16), int(end, 16), int(offset, 16), permissions[2:3] == b"x", int(inode), path))
    names = re.search(rb"^NSpid:.*?(\d+)$", status, re.M)
    group = re.search(rb"^0::(.*)$", cgroup, re.M)
    assert names and group
    number, stat = head.split(b"\n", 1)
    ticks = int(stat[stat.rindex(b")") + 2 :].split()[19])
    return int(number), Told(ticks, comm.removesuffix(b"\n"), int(names[1]), group[1], command.removesuffix(b"\n").split(b"\0")[0], lines)


def _maps(process: guest_pb2.Process) -> list[tuple[int, int, int, bool, int, bytes]]:
    return [(m.start, m.end, m.offset, m.executable, m.inode, m.path) for m in process.mappings]


def _key_of(process: guest_pb2.Process, path: bytes) -> str:
    return next(m.binary for m in process.mappings if m.path == path and m.executable)


def test_all_processes_are_as_the_guests_proc_has_them(running: Running, findings: Findings) -> None:
    before = _told(running.guest)
    read = {process.tgid: process for process in processes.read_all_processes(running.kernel)}
    after = _told(running.guest)
    steady = [tgid for tgid in before if tgid in after and before[tgid] == after[tgid]]
    assert set(running.pids.values()) <= set(steady)
    assert len(steady) > 30
    for tgid in steady:
        told, process = before[tgid], read[tgid]
        maps = [(*line[:5], b"<too_long>" if len(line[5]) > 4096 else line[5]) for line in told.maps]
        # For the kernel's threads /proc appends to what a task's name has room for.
        name = told.comm if told.maps else told.comm[: len(process.comm)]
        assert (process.pid, process.start_time // 10_000_000, process.comm) == (tgid, told.ticks, name)
        assert process.comm
        assert (process.namespace_pid, process.cgroup) == (told.namespace_pid, told.cgroup)
        if tgid == running.pids["threads"]:
            # Its leader has ended, and with it what /proc tells of them.
            assert (told.command, told.maps, process.command) == (b"", [], b"/usr/bin/puzzle")
        else:
            assert (process.command, _maps(process)) == (told.command, maps)
    count = sum(len(before[tgid].maps) for tgid in steady)
    findings.note(running.kernel.release, processes=str(len(steady)), mappings=f"{count:,}")


def test_processes_are_found_by_their_page_tables(running: Running) -> None:
    everyone = {(process.tgid, process.start_time): process.cr3 for process in processes.read_all_processes(running.kernel)}
    mine = {owner: cr3 for owner, cr3 in everyone.items() if owner[0] in running.pids.values()}
    assert len(mine) > 2
    assert all(mine.values())
    for tables in (set(mine.values()), {cr3 | 0x1000 for cr3 in mine.values()}):
        assert set(processes.owners(running.kernel, {*tables, 0x7FFF000})) == set(mine)
    assert processes.owners(running.kernel, {0x7FFF000}) == []


def test_names_that_the_puzzle_makes(running: Running) -> None:
    process = processes.inspect(running.kernel, running.pids["maps"])
    assert process is not None
    assert process.problems == []
    names = {mapping.path for mapping in process.message.mappings}
    assert {b"/memfd:jit code (deleted)", b"/tmp/gone (deleted)", b"/tmp/new\\012line \\ x", b"/dev/zero (deleted)", b"[vdso]", b"[stack]", b""} < names
    assert b"<too_long>" in names
    assert any(name.endswith(b"/deep") and len(name) > 3000 for name in names)
    assert not next(mapping for mapping in process.message.mappings if mapping.path == b"/tmp/data").binary


def test_process_whose_first_thread_has_ended(running: Running) -> None:
    pid = running.pids["threads"]
    process = processes.read_process(running.kernel, pid)
    assert process is not None
    thread = int(running.guest.run(f"ls /proc/{pid}/task").split()[-1])
    text = running.guest.run(f"cat /proc/{pid}/task/{thread}/maps")
    assert [path for *_, path in _maps(process)] == [line.split(maxsplit=5)[5] if len(line.split()) > 5 else b"" for line in text.splitlines()]


def test_start_time_tells_processes_of_one_pid_apart(running: Running) -> None:
    pid = running.pids["group"]
    process = processes.read_process(running.kernel, pid)
    assert process is not None
    assert processes.read_process(running.kernel, pid, process.start_time) == process
    # A thread of the process starts later; what started before it was another process.
    assert processes.read_process(running.kernel, pid, process.start_time + 1) == process
    assert processes.read_process(running.kernel, pid, process.start_time - 1) is None
    assert processes.read_process(running.kernel, 4_000_000) is None
    assert processes.read_process(running.kernel, 0) is None


def test_page_table_is_the_process_own(running: Running) -> None:
    process = processes.read_process(running.kernel, running.pids["script"])
    assert process is not None
    stack = next(mapping for mapping in process.mappings if mapping.path == b"[stack]")
    assert b"perl" in running.kernel.memory.read_virtual(process.cr3, stack.end - 4096, 4096)


def test_no_more_mappings_than_are_allowed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = processes.inspect(running.kernel, running.pids["many"])
    monkeypatch.setattr(mappings, "MAX_MAPPINGS", 50)
    part = processes.inspect(running.kernel, running.pids["many"])
    assert whole is not None
    assert part is not None
    assert len(whole.message.mappings) > 1000
    assert whole.problems == []
    assert part.message.mappings == whole.message.mappings[:50]
    assert part.problems == ["only the first 50 of the mappings"]


def test_signature_changes_with_the_mappings(running: Running) -> None:
    running.guest.run("sh -c 'until [ -e /tmp/go ]; do usleep 10000; done; exec /usr/bin/puzzle title /tmp/ready.execed' & echo $! >/tmp/execing")
    pid = int(running.guest.run("cat /tmp/execing"))
    process = processes.inspect(running.kernel, pid)
    assert process is not None
    assert processes.signature(running.kernel, pid, process.message.start_time) == process.signature
    running.guest.run(f"touch /tmp/go; until [ -e /tmp/ready.execed ]; do usleep 10000; done; kill -STOP {pid}")
    assert processes.signature(running.kernel, pid, process.message.start_time) not in (process.signature, None)
    running.guest.run(f"kill -9 {pid}; while [ -e /proc/{pid}/maps ]; do usleep 10000; done")
    assert processes.signature(running.kernel, pid, process.message.start_time) is None


@pytest.mark.parametrize("mode", ["perf_map", "inside"])
def test_perf_map_through_the_process_own_root(running: Running, mode: str) -> None:
    process = processes.inspect(running.kernel, running.pids[mode])
    assert process is not None
    assert process.problems == []
    own = process.message.namespace_pid
    assert (own == 1) == (mode == "inside")
    text = running.guest.run(f"cat {'/merged' * (mode == 'inside')}/tmp/perf-{own}.map")
    assert len(process.message.perf_map) > 4096 * 20
    assert process.message.perf_map == text.removesuffix(b"no end of li")


def test_perf_map_of_another_mount_namespace(running: Running) -> None:
    """The process has a file system of its own at /tmp; at the same path outside of it is another map."""
    pid = running.pids["private"]
    running.guest.run(f"cp /tmp/foreign /tmp/perf-{pid}.map; cat /tmp/perf-{pid}.map")
    own = running.guest.run(f"cat /proc/{pid}/root/tmp/perf-{pid}.map")
    process = processes.inspect(running.kernel, pid)
    assert process is not None
    assert process.problems == []
    assert own.startswith(b"0 800 function_0\n")
    assert process.message.perf_map == own.removesuffix(b"no end of li")
    # And the other way round: without one of its own it has none.
    running.guest.run(f"rm /proc/{pid}/root/tmp/perf-{pid}.map; cat /tmp/perf-{pid}.map")
    assert (again := processes.read_process(running.kernel, pid)) is not None
    assert again.perf_map == b""


def test_perf_map_that_was_deleted_is_none(running: Running) -> None:
    """It stays in its directory's list as long as somebody has it open."""
    running.guest.run(
        "sh -c 'exec 5>/tmp/perf-$$.map; echo 1000 10 old >&5; rm /tmp/perf-$$.map; : >/tmp/ready.deleted; exec sleep 1000' & echo $! >/tmp/deleted"
    )
    pid = int(running.guest.run("until [ -e /tmp/ready.deleted ]; do usleep 10000; done; cat /tmp/deleted"))
    for text in (b"", b"1000 10 new\n", b""):
        running.guest.run(f"echo '{text.decode().strip()}' >/tmp/perf-{pid}.map" if text else f"rm -f /tmp/perf-{pid}.map")
        process = processes.inspect(running.kernel, pid)
        assert process is not None
        assert (process.message.perf_map, process.problems) == (text, [])


def test_path_of_more_line_breaks_than_fit(running: Running) -> None:
    """/proc prints four characters for each: what goes to the recorder is no longer than it takes."""
    name = 'n=$(printf "%0250d" 0 | tr 0 "\\n"; printf x); p=/tmp/$n/$n/$n/$n/$n; mkdir -p "$p"; cp /bin/busybox "$p"'
    running.guest.run(name + '; ("$p/busybox" sleep 1000 >/dev/null & echo $!) >/tmp/breaks')
    pid = int(running.guest.run("p=$(cat /tmp/breaks); until grep -q busybox /proc/$p/maps; do usleep 10000; done; echo $p"))
    process = processes.inspect(running.kernel, pid)
    assert process is not None
    check_process(process.message)
    assert process.problems == []
    told = running.guest.run(f"cat /proc/{pid}/maps")
    assert max(map(len, told.splitlines())) > 5000
    assert b"<too_long>" in {mapping.path for mapping in process.message.mappings}


def test_pages_of_binaries_are_those_of_the_files(running: Running, findings: Findings) -> None:
    process = processes.read_process(running.kernel, running.pids["script"])
    assert process is not None
    handles = processes.files(process)
    compared = pages = 0
    for handle in handles.values():
        binary = read_binary(running.kernel, handle, 64 << 20)
        if handle.path == b"[vdso]":
            continue
        content = running.files[handle.path.decode()][1]
        assert binary.size == len(content)
        assert binary.build_id == build_id(lambda offset, size, content=content: content[offset : offset + size])  # type: ignore[misc]
        assert binary.build_id.hex() == handle.key
        # An initramfs is in the page cache as a whole.
        assert [run.address for run in binary.pages] == [0]
        assert binary.pages[0].data == content
        compared += 1
        pages += -(-len(content) // 4096)
    assert compared >= 4
    findings.note(running.kernel.release, pages=f"{pages:,}")


def test_pages_of_large_folios(running: Running) -> None:
    # Kernels switch them off in guests as small as this one.
    running.guest.run("cd /sys/kernel/mm/transparent_hugepage; echo always >enabled; echo always >defrag")
    before = _huge_files(running.guest)
    running.guest.run("mkdir /huge; mount -t tmpfs -o huge=always huge /huge; cp /usr/bin/perl /huge/large; (exec /huge/large -e sleep) & echo $! >/tmp/large")
    pid = int(running.guest.run("cat /tmp/large"))
    running.guest.run(f"until grep -q /huge/large /proc/{pid}/maps; do usleep 10000; done")
    assert _huge_files(running.guest) > before
    process = processes.read_process(running.kernel, pid)
    assert process is not None
    (key,) = {mapping.binary for mapping in process.mappings if mapping.path == b"/huge/large"}
    binary = read_binary(running.kernel, processes.files(process)[key], 64 << 20)
    assert [(run.address, run.data) for run in binary.pages] == [(0, running.files["/usr/bin/perl"][1])]


def _huge_files(guest: EmulatedGuest) -> int:
    """How often a huge page was given to a file. Not ShmemHugePages: a CPU adds its own to that now and then only."""
    return int(guest.run("grep -w thp_file_alloc /proc/vmstat").split()[1])


def test_holes_are_left_out(running: Running) -> None:
    process = processes.read_process(running.kernel, running.pids["maps"])
    assert process is not None
    handle = processes.files(process)[_key_of(process, b"/tmp/holes")]
    binary = read_binary(running.kernel, handle, 64 << 20)
    a, b = b"a" * 4096, b"b" * 4096
    assert [(run.address // 4096, run.data) for run in binary.pages] == [(0, a + b), (200, a), (8000, a + b"12345")]
    assert binary.size == 8001 * 4096 + 5
    assert [(run.address // 4096, run.data) for run in read_binary(running.kernel, handle, 3 * 4096).pages] == [(0, a + b), (200, a)]


def test_build_id_is_what_readelf_says(running: Running, puzzle: Path) -> None:
    process = processes.read_process(running.kernel, running.pids["group"])
    assert process is not None
    notes = subprocess.run(["readelf", "-n", puzzle], check=True, capture_output=True, text=True).stdout
    assert re.findall(r"Build ID: (\w+)", notes) == [_key_of(process, b"/usr/bin/puzzle")]


def test_vdso_is_what_the_process_has_mapped(running: Running) -> None:
    process = processes.read_process(running.kernel, running.pids["group"])
    assert process is not None
    vdso = next(mapping for mapping in process.mappings if mapping.path == b"[vdso]")
    binary = read_binary(running.kernel, processes.files(process)[vdso.binary], 1 << 20)
    own = running.guest.run(f"dd if=/proc/{process.tgid}/mem bs=4096 skip={vdso.start // 4096} count={(vdso.end - vdso.start) // 4096} 2>/dev/null")
    assert (binary.path, binary.size, binary.pages[0].data) == (b"[vdso]", len(own), own)
    assert own.startswith(b"\x7fELF")
    assert len(binary.build_id) == 20


def test_file_without_build_id_and_its_budget(running: Running) -> None:
    process = processes.read_process(running.kernel, running.pids["maps"])
    assert process is not None
    handles = processes.files(process)
    keys = {path: _key_of(process, path) for path in (b"/memfd:jit code (deleted)", b"/tmp/gone (deleted)", b"/tmp/new\\012line \\ x")}
    assert len(set(keys.values())) == 3
    for (path, key), pages in zip(keys.items(), (3, 2, 5), strict=True):
        binary = read_binary(running.kernel, handles[key], 64 << 20)
        assert (binary.path, binary.build_id) == (path, b"")
        assert [(run.address, run.data) for run in binary.pages] == [(0, b"".join(bytes([97 + page]) * 4096 for page in range(pages)))]
        assert len(read_binary(running.kernel, handles[key], 8191).pages[0].data) == 4096
        assert re.fullmatch(r"file-[0-9a-f]{40}", key)


def test_file_that_is_not_executed_is_never_read(running: Running) -> None:
    process = processes.read_process(running.kernel, running.pids["maps"])
    assert process is not None
    data = next(mapping for mapping in process.mappings if mapping.path == b"/tmp/data")
    for start in (data.start, process.mappings[0].start + 4096):
        handle = FileHandle("file-" + "0" * 40, b"/tmp/data", process.tgid, process.start_time, start)
        with pytest.raises(GuestUnreadable):
            read_binary(running.kernel, handle, 1 << 20)


def test_binary_of_a_process_that_is_gone(running: Running) -> None:
    running.guest.run("/usr/bin/puzzle group /tmp/ready.short & echo $! >/tmp/short; until [ -e /tmp/ready.short ]; do usleep 10000; done")
    process = processes.read_process(running.kernel, int(running.guest.run("cat /tmp/short")))
    assert process is not None
    handle = processes.files(process)[_key_of(process, b"/usr/bin/puzzle")]
    assert read_binary(running.kernel, handle, 1 << 20).pages
    running.guest.run(f"kill -9 {process.tgid}; while [ -e /proc/{process.tgid}/maps ] && [ -s /proc/{process.tgid}/maps ]; do usleep 10000; done")
    with pytest.raises(GuestUnreadable):
        read_binary(running.kernel, handle, 1 << 20)


def test_quick_enough_for_every_sampled_process(running: Running) -> None:
    process = processes.read_process(running.kernel, running.pids["script"])
    assert process is not None
    assert len(process.mappings) >= 20
    begun = time.process_time()
    for _ in range(10):
        processes.read_process(running.kernel, running.pids["script"])
    assert (time.process_time() - begun) / 10 < 0.05
