# SPDX-License-Identifier: Apache-2.0
"""A host to record on that is made of files: /proc with a VM, and debugfs with a module whose streams are FIFOs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import perfguest
from perfguest.capture.host import HostPaths

FORMAT = b"abi: 1\n\nstruct: sample\n"

_FAKE_PERF = """#!{python}
import os, pathlib, signal, sys, time
if sys.argv[1:] == ["--version"]:
    print("perf version 9.9")
    sys.exit()
here = pathlib.Path(__file__).parent
mode = (here / "perf.mode").read_text()
notes = open(here / "perf.notes", "w", buffering=1)
def note(what):
    print(what, (here / "debugfs/perfguest/enable").read_text().strip(), file=notes)
option = next(word for word in sys.argv if word.startswith("--control=fd:"))
control, acknowledge = map(int, option.removeprefix("--control=fd:").split(","))
if mode == "refuses":
    sys.exit("event syntax error: 'nonsense'")
def stop(number, frame):
    note("stopped")
    sys.exit(0)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
data = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
assert os.read(control, 64) == b"enable\\n"
note("enabled")
print("pid", os.getpid(), file=notes)
data.write_bytes(b"PERFILE2")
os.write(acknowledge, b"ack\\n\\0")
if mode == "dies":
    sys.exit("failed to write perf data, error: No space left on device")
if mode == "targets gone":
    sys.exit(0)
while True:
    signal.pause()
"""


class FakeHost:
    """``streams``: the FIFO of each CPU, kept open so that it never ends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = HostPaths(root / "proc", root / "sys", root / "dev", root / "debugfs")
        self.perf = root / "perf"
        self.streams: list[int] = []
        self._make_proc()
        self._make_module()
        self.perf.write_text(_FAKE_PERF.format(python=sys.executable))
        self.perf.chmod(0o755)
        self.perf_mode("works")

    def _make_proc(self) -> None:
        proc = self.paths.proc
        self.paths.dev.mkdir(parents=True)
        (proc / "sys/kernel").mkdir(parents=True)
        (proc / "sys/kernel/kptr_restrict").write_text("0\n")
        (proc / "mounts").write_text(f"debugfs {self.paths.debugfs} debugfs rw 0 0\n")
        (proc / "kallsyms").write_text("ffffffff81000000 T _text\n")
        (proc / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu svm\n\nprocessor\t: 1\n")
        for name in ("kvm", "kvm_amd", "perfguest"):
            (self.paths.sys / "module" / name).mkdir(parents=True)
        (self.paths.sys / "module/perfguest/version").write_text(perfguest.__version__ + "\n")
        online = self.paths.sys / "devices/system/cpu/online"
        online.parent.mkdir(parents=True)
        online.write_text("0-1\n")

    def _make_module(self) -> None:
        files = self.paths.debugfs / "perfguest"
        files.mkdir(parents=True)
        contents = {"trigger": "[probe] nmi", "locator": "[auto] preempt scan", "clock": "[local] mono", "enable": "0", "pids": ""}
        contents |= dict.fromkeys(("kernel_stack", "user_stack", "chain_depth", "buffer_kb"), "1")
        for name, text in contents.items():
            (files / name).write_text(text + "\n")
        (files / "format").write_bytes(FORMAT)
        counts = "taken 12 written 10 full 2 nested 0 no_reader 0 no_vcpu 0"
        (files / "stats").write_text(f"enabled 0\ntrigger probe\nlocators preempt scan\ndisagreements 0\nvms 1\nmissed 0\ncpu0 {counts}\ncpu1 {counts}\n")
        for cpu in range(2):
            fifo = files / f"cpu{cpu}/stream"
            fifo.parent.mkdir()
            os.mkfifo(fifo)
            self.streams.append(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))

    def add_vm(self, pid: int, name: str, start_time: int = 100) -> Path:
        """A QEMU with two threads; gives its directory."""
        process = self.add_process(pid, "qemu-system-x86", ["qemu-system-x86_64", "-name", f"guest={name},debug-threads=on"], start_time)
        (process / "fd/9").symlink_to("anon_inode:kvm-vm")
        thread = process / "task" / str(pid + 1)
        thread.mkdir()
        (thread / "comm").write_text("CPU 0/KVM\n")
        return process

    def add_process(self, pid: int, comm: str, command_line: list[str], start_time: int = 100) -> Path:
        process = self.paths.proc / str(pid)
        (process / "fd").mkdir(parents=True)
        (process / "fd/0").symlink_to("/dev/null")
        (process / "task" / str(pid)).mkdir(parents=True)
        for directory in (process, process / "task" / str(pid)):
            (directory / "comm").write_text(comm + "\n")
        (process / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in command_line))
        fields = ["S", *["0"] * 18, str(start_time), *["0"] * 20]
        (process / "stat").write_text(f"{pid} ({comm}) {' '.join(fields)}\n")
        return process

    def perf_mode(self, mode: str) -> None:
        """How the fake perf behaves: works, refuses, dies, targets gone."""
        (self.root / "perf.mode").write_text(mode)

    def perf_notes(self) -> dict[str, str]:
        """What ``enable`` held when perf was told to sample and when it was stopped; perf's pid."""
        notes = self.root / "perf.notes"
        return dict(line.split(" ", 1) for line in notes.read_text().splitlines()) if notes.exists() else {}

    def setting(self, name: str) -> str:
        """The first line of the module's file: what was written there last."""
        return (self.paths.debugfs / "perfguest" / name).read_text().splitlines()[0]
