# SPDX-License-Identifier: Apache-2.0
"""One boot of each guest kernel for all tests here: with the modules, programs and processes that they look for."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from perfguest.capture.lab.kernels import find_kernel, load_order
from perfguest.errors import EnvironmentProblem
from perfguest.guest.kernel import LiveKernel, open_kernel
from perfguest.proto import guest_pb2
from tests.guest.emulated import KERNELS, EmulatedGuest, with_libraries
from tests.guest.matrix import LEGEND, Findings

#: Loaded where the kernel's modules are at hand.
MODULES = ("ext4", "overlay")
#: Of processes_puzzle.c, and a script.
MODES = ("maps", "many", "perf_map", "title", "threads", "group", "inside", "private", "script")
_FINDINGS = pytest.StashKey[Findings]()


@dataclass(frozen=True)
class Booted:
    """A guest with everything running in it. ``files``: (permission bits, content) by path. ``pids``: what each mode of the puzzle runs as."""

    guest: EmulatedGuest
    files: dict[str, tuple[int, bytes]]
    pids: dict[str, int]
    #: Of a process that computes and never sleeps.
    busy: int


@dataclass(frozen=True)
class Opened:
    """A guest's kernel, and what the guest itself says of it."""

    guest: EmulatedGuest
    kernel: LiveKernel
    image: guest_pb2.Kernel
    vm: guest_pb2.VmKernel
    #: (address, type, name, module or empty) as the guest's /proc/kallsyms has them.
    kallsyms: list[tuple[int, str, str, str]]
    busy: int


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FINDINGS] = Findings()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    findings = config.stash[_FINDINGS]
    if findings.rows:
        terminalreporter.section("read out of guests' memory")
        for line in [*findings.table(), "", *LEGEND.splitlines()]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def findings(pytestconfig: pytest.Config) -> Findings:
    return pytestconfig.stash[_FINDINGS]


@pytest.fixture(scope="session")
def loader(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    program = tmp_path_factory.mktemp("bpf") / "bpf"
    subprocess.run(["gcc", "-O1", "-static", "-o", program, Path(__file__).with_name("bpf_program.c")], check=True)
    return program.read_bytes()


@pytest.fixture(scope="session")
def puzzle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("puzzle") / "puzzle"
    source = Path(__file__).with_name("processes_puzzle.c")
    subprocess.run(["gcc", "-O1", "-pthread", "-Wl,--build-id", "-o", program, source], check=True)
    return program


@pytest.fixture(scope="session", params=KERNELS, ids=lambda path: Path(path).name)
def booted(request: pytest.FixtureRequest, loader: bytes, puzzle: Path) -> Iterator[Booted]:
    files = with_libraries({"/usr/bin/puzzle": puzzle, "/usr/bin/perl": Path("/usr/bin/perl")})
    files |= {f"/image{path}": file for path, file in files.items()} | {"/image/tmp/.keep": (0o644, b""), "/cgroups/.keep": (0o644, b"")}
    modules = _modules(request.param)
    with EmulatedGuest(request.param, files={**files, "/bpf": (0o755, loader)}, modules=modules) as guest:
        guest.run("echo 1 >/proc/sys/net/core/bpf_jit_kallsyms; /bpf >/tmp/bpf & while ! grep -q . /tmp/bpf; do :; done; grep loaded /tmp/bpf")
        guest.run("mkdir -p /merged /layers; mount -t tmpfs layers /layers; mkdir /layers/upper /layers/work; mount -t cgroup2 cgroups /cgroups")
        guest.run("mkdir -p /cgroups/machine.slice/unit; echo kept >/tmp/plain")
        for mode in ("maps", "many", "perf_map", "title", "threads"):
            guest.run(f"/usr/bin/puzzle {mode} /tmp/ready.{mode} &")
        guest.run("(echo 0 >/cgroups/machine.slice/unit/cgroup.procs; exec /usr/bin/puzzle group /tmp/ready.group) &")
        overlay = "mount -t overlay -o lowerdir=/image,upperdir=/layers/upper,workdir=/layers/work overlay /merged"
        guest.run(overlay if modules else "mount --bind /image /merged")
        guest.run("unshare -p -f chroot /merged /usr/bin/puzzle perf_map /tmp/ready.inside &")
        # At the same path as its perf map is another one, which it does not see.
        guest.run("echo 1000 10 not_its_own >/tmp/foreign; unshare -m sh -c 'mount -t tmpfs own /tmp; exec /usr/bin/puzzle perf_map /tmp/ready.private' &")
        guest.run('/usr/bin/perl -e \'open my $f, ">", "/tmp/ready.script"; close $f; sleep\' a b &')
        for mode in MODES:
            path = {"inside": "/merged/tmp/ready.inside", "private": "/proc/[0-9]*/root/tmp/ready.private"}.get(mode, f"/tmp/ready.{mode}")
            guest.run(f"i=0; until ls {path} || [ $i = 300 ]; do i=$((i+1)); usleep 100000; done; ls {path}")
        busy = int(guest.run("sh -c 'while :; do :; done' >/dev/null & echo $!"))
        yield Booted(guest, files, _pids(guest), busy)


@pytest.fixture(scope="session")
def opened(booted: Booted) -> Opened:
    listing = booted.guest.run("cat /proc/kallsyms").decode()
    words = [line.split() for line in listing.splitlines()]
    symbols = [(int(line[0], 16), line[1], line[2], line[3] if len(line) > 3 else "") for line in words]
    kernel = open_kernel(booted.guest.memory(), booted.guest.hints())
    return Opened(booted.guest, kernel, kernel.kernel_proto(), kernel.vm_kernel_proto(7, 8, 9), symbols, booted.busy)


def _modules(kernel: str) -> tuple[str, ...]:
    try:
        load_order(find_kernel(Path(kernel), None, ()), (), MODULES)
    except EnvironmentProblem:
        return ()
    return MODULES


def _pids(guest: EmulatedGuest) -> dict[str, int]:
    names = {"perl": "script", "odd \x1b[1m na:": "title", **{mode: mode for mode in MODES}}
    lines = guest.run("for p in /proc/[0-9]*; do echo ${p#/proc/} $(cat $p/comm); done 2>/dev/null", status=None).decode().splitlines()
    found = {names[name]: int(pid) for pid, _, name in (line.partition(" ") for line in lines) if name in names}
    assert set(found) == set(MODES)
    return found
