# SPDX-License-Identifier: Apache-2.0
"""Names that a guest made to do harm, from a recording through convert: each format stays what its readers take, and nothing of them reaches a terminal."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfguest.formats.guest_snapshot import SnapshotWriter
from perfguest.formats.recording import FORMAT_VERSION, RecordingPaths, write_recording
from perfguest.proto import guest_pb2, profile_pb2
from perfguest.proto import recording_pb2 as pb
from tests.snapshots import events, stamp_tasks
from tests.writers.flamegraph_pages import Browser, Page

DATA = Path(__file__).parent / "data"
LSTAR, OFFSET, VM_PID = 0xFFFFFFFF8FC00080, 0xE000000, 135
TABLES = [0x282C000, 0x28C2000, 0x28C6000, 0x28C8000, 0x28CA000, 0xC010000]

#: What is put into names. No NUL: it ends them.
HARM = [
    b"new\nline",
    b"\x1b]0;owned\x07\x1b[31mred\x1b[0m",
    b"semi;colon and space",
    b"not UTF-8 \xff\xfe\xc0\x80",
    "right to left \u202e\u200f".encode(),
    "line \u2028 paragraph \u2029 next \x85".encode(),
    b"\ttab\rreturn\x0b\x0c",
    b" 12 34",
    b"a (deleted) (x)\n\tffff y (z)",
    b"\\x1b[31m",
    b"</script><b>\"'&",
    b"#comment",
    "lone \ud800".encode("utf-8", "surrogatepass"),
    b"->inlined (anonymous)::x",
    b"\x9b31m\x7f",
]


_MEGABYTE = 1 << 20
#: No line is longer: paths are 4,096 bytes at most, each of four characters when it is escaped.
_MAX_LINE = 40_000


def harmful(name: bytes, number: int) -> bytes:
    return HARM[number % len(HARM)] + name


def named(rows: list[tuple[int, bytes, bytes]]) -> guest_pb2.Symbols:
    rows = sorted(rows, key=lambda row: row[0])
    return guest_pb2.Symbols(
        addresses=np.array([row[0] for row in rows], "<u8").tobytes(), types=b"".join(row[1] for row in rows), names=b"".join(row[2] + b"\0" for row in rows)
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the lab's, whose VM, kernel, modules, processes, files, functions, cgroups and problems have such names, each another."""
    directory = tmp_path_factory.mktemp("hostile") / "perfguest.data"
    directory.mkdir()
    paths = RecordingPaths(directory)
    paths.perf_data.write_bytes(lzma.decompress((DATA / "perf.data.xz").read_bytes()))
    paths.kallsyms.write_bytes(gzip.compress(b"ffffffff81000000 T _text\n"))
    vm = pb.VirtualMachine(pid=VM_PID, name="web\x1b[31m;\n\u202e")
    host = pb.Host(hostname="host\x1b]0;x\x07")
    write_recording(directory, pb.Recording(format_version=FORMAT_VERSION, complete=True, vms=[vm], host=host, ended_by="a\x1b[31mb\nc"))
    functions, modules = symbols()
    kernel = guest_pb2.VmKernel(vm_pid=VM_PID, vm_id=1, time=112 * 10**9, kernel="aa", kaslr_offset=OFFSET, lstar=LSTAR, modules=modules)
    kernel.level, kernel.reason = "symbols", "no \x1b[31m types\n"
    processes, threads = [], []
    for number, cr3 in enumerate(TABLES):
        process = guest_pb2.Process(vm_pid=VM_PID, time=112 * 10**9, cr3=cr3, tgid=100 + number, pid=100 + number, start_time=10**9 + number)
        process.comm, process.cgroup = harmful(b"", number)[:15], b"/" + harmful(b"/x", number + 3)
        process.mappings.add(start=0x400000, end=0x500000, executable=True, path=b"/" + harmful(b"file", number + 6))
        # A line break ends a line of a perf map, and with it a name.
        process.perf_map = b"400000 100000 " + harmful(b"jit", number + 9).replace(b"\n", b"\x1b") + b"\n"
        if number == 2:
            # And of endless length.
            process.cgroup += b"c" * _MEGABYTE
            process.mappings[0].path += b"p" * _MEGABYTE
            process.perf_map = process.perf_map[:-1] + b"j" * _MEGABYTE + b"\n"
        processes.append(process)
        threads.append((cr3, (200 + number, 100 + number, 10**9 + number, harmful(b"", number)[:15])))
    kernel.reason += "r" * _MEGABYTE
    problems = [guest_pb2.Problem(vm_pid=VM_PID, text=harm.decode(errors="replace")) for harm in HARM]
    with SnapshotWriter(directory / "guests") as writer:
        writer.kernel("aa", guest_pb2.Kernel(release="6.1\x1b[31m\n", symbols=functions))
        for event in events(kernel, *processes, *problems):
            writer.event(event)
    paths.guest_stream.write_bytes(stamp_tasks(lzma.decompress((DATA / "guest.stream.xz").read_bytes()), threads))
    return directory


def symbols() -> tuple[guest_pb2.Symbols, list[guest_pb2.Module]]:
    """Those of the guest's /proc/kallsyms under harmful names."""
    rows: list[tuple[int, bytes, bytes]] = []
    modules: dict[bytes, list[tuple[int, bytes, bytes]]] = {}
    for number, line in enumerate(lzma.decompress((DATA / "guest.kallsyms.xz").read_bytes()).splitlines()):
        symbol, tab, module = line.partition(b"\t")
        address, kind, name = symbol.split(b" ", 2)
        row = int(address, 16), kind, harmful(name, number)
        if tab:
            modules.setdefault(module.strip(b"[]"), []).append(row)
        else:
            rows.append((row[0] - OFFSET if row[0] >> 63 else row[0], kind, row[2]))
    made = []
    for number, (name, inside) in enumerate(modules.items()):
        low, high = min(row[0] for row in inside), max(row[0] for row in inside)
        made.append(guest_pb2.Module(name=harmful(name, number), address=low, size=(high - low | 4095) + 1, symbols=named(inside)))
    return named(rows), made


def convert(recording: Path, *arguments: str) -> bytes:
    """What it writes; what it says must be safe for a terminal."""
    command = [sys.executable, "-m", "perfguest", "convert", "--no-keep-tables", str(recording), *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    check_said(done.stderr)
    return done.stdout


def check_said(stderr: bytes) -> None:
    lines = stderr.decode().split("\n")
    assert max(map(len, lines)) < 4000
    assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
    assert all(line.startswith("perfguest: ") for line in lines[:-1])


def samples_of(script: bytes) -> Iterator[tuple[str, list[str]]]:
    """(header, frames) of each sample, by the form of the text alone."""
    for block in script.decode().removesuffix("\n\n").split("\n\n"):
        header, *frames = block.split("\n")
        yield header, frames


def test_notes_are_told_and_are_safe(recording: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "perfguest", "convert", "--no-keep-tables", str(recording), "--folded"], capture_output=True, check=True)
    check_said(done.stderr)
    text = done.stderr.decode()
    for shown in (r"new\x0aline", r"\x1b]0;owned\x07", r"\xe2\x80\xae", r"its memory told symbols only: no \x1b[31m types\x0a", r"\x5cx1b"):
        assert shown in text


def test_script_has_a_line_for_each_frame(recording: Path) -> None:
    frames = 0
    for header, lines in samples_of(convert(recording, "--script")):
        assert re.fullmatch(r"\S.* +\d+/\d+ +\[\d{3}\] +\d+\.\d{6}: +\d+ \S+: ", header), header
        for line in lines:
            assert re.fullmatch(r"\t *[0-9a-f]+ \S.* \(.+\)", line), line
            assert line[1:].isprintable(), line
            assert len(line) < _MAX_LINE
        frames += len(lines)
    assert frames > 5000


def test_names_come_back_once_unescaped(recording: Path) -> None:
    """Escaped is not lost. Bytes that are no UTF-8 were replaced when they were read."""
    text = convert(recording, "--script").decode()
    whole = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), text.encode())
    # Each is in the names of thousands of functions.
    for harm in HARM:
        assert harm in whole or harm.decode(errors="replace").encode() in whole, harm
    for number in range(len(TABLES)):
        assert harmful(b"file", number + 6) in whole or harmful(b"jit", number + 9).replace(b"\n", b"\x1b") in whole


def test_folded_has_the_frames_of_the_script(recording: Path) -> None:
    folded = convert(recording, "--folded").decode()
    expected = Counter(len(lines) for _, lines in samples_of(convert(recording, "--script")))
    found: Counter[int] = Counter()
    for line in folded.removesuffix("\n").split("\n"):
        assert line.isprintable(), line
        assert len(line) < 100 * _MAX_LINE
        match = re.fullmatch(r"(.+) (\d+)", line)
        assert match, line
        parts = match[1].split(";")
        assert all(parts), line
        # The host's own threads stand in front of their stacks.
        found[len(parts) - (not parts[0].startswith("web"))] += int(match[2])
    assert found == expected


def test_chrome_is_json_of_safe_text(recording: Path, tmp_path: Path) -> None:
    convert(recording, "--chrome", "-o", str(tmp_path / "trace.json"))
    data = (tmp_path / "trace.json").read_bytes()
    assert b"</" not in data
    texts = list(_texts(json.loads(data.decode())))
    assert all(text.isprintable() and len(text) < _MAX_LINE for text in texts)
    assert any("owned" in text for text in texts)


def test_flame_graph_opens(recording: Path, tmp_path: Path) -> None:
    """In each frame's words, too, when they are looked at one by one."""
    convert(recording, "--flamegraph", "-o", str(tmp_path / "guest.html"))
    page = Page((tmp_path / "guest.html").read_bytes())
    assert not set(page.block.text) & set("<>&")
    assert all(text.isprintable() and len(text) < _MAX_LINE for text in _texts(page.data))
    browser = Browser(page)
    assert not browser.error
    for expression in ("owned", "semi;colon", r"new\\x0aline"):
        browser.type("search", expression)
        assert float(browser.text("matched").partition("%")[0]) > 0
    browser.key("Home", on_graph=True)
    depth = 0
    while browser.text("stack").count("\n") >= depth - 1:
        browser.key("ArrowUp", on_graph=True)
        depth += 1
    assert depth > 4 and browser.text("stack").replace("\n", "").isprintable()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)


def test_pprof_is_taken_by_go(recording: Path, tmp_path: Path) -> None:
    target = tmp_path / "p.pb.gz"
    convert(recording, "--pprof", "-o", str(target))
    profile = profile_pb2.Profile.FromString(gzip.decompress(target.read_bytes()))
    assert all(text.isprintable() and len(text) < _MAX_LINE for text in profile.string_table)
    labels = {profile.string_table[label.str] for sample in profile.sample for label in sample.label if label.str}
    assert r"new\x0aline" in labels and any(text.startswith("/semi") or "semi;colon" in text for text in labels)
    shown = {}
    for form in ("-raw", "-top", "-tags"):
        done = subprocess.run(["go", "tool", "pprof", form, target], capture_output=True, check=True, env={**os.environ, "HOME": str(tmp_path)})
        shown[form] = done.stdout.decode()
        assert all(line.expandtabs().isprintable() for line in shown[form].split("\n"))
    assert len(profile.function) > 300
    assert all(profile.string_table[function.name] in shown["-raw"] for function in profile.function)


@pytest.mark.parametrize("option", ["--guest-comm", "--cgroup"])
def test_refusals_are_safe(recording: Path, option: str) -> None:
    """The message names threads that are there, and the recording's place is one that the user gave."""
    done = subprocess.run([sys.executable, "-m", "perfguest", "convert", str(recording), option, "no\x1b[31mbody"], capture_output=True, check=False)
    assert done.returncode == 2
    assert all(line.isprintable() for line in done.stderr.decode().split("\n"))
    assert rb"new\x0aline" in done.stderr
    done = subprocess.run([sys.executable, "-m", "perfguest", "convert", "/no/such/\x1b[31mplace\u202e"], capture_output=True, check=False)
    assert done.returncode
    assert all(line.isprintable() for line in done.stderr.decode().split("\n"))


def test_selection_takes_such_names(recording: Path) -> None:
    assert b"semi" in convert(recording, "--folded", "--guest-comm", "semi;colon and ")
