# SPDX-License-Identifier: Apache-2.0
"""VMs that a test starts by itself in the lab's host, each with a kernel and a workload of its own, and what they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfguest.capture.lab import payload
from perfguest.capture.lab.boot import guest_argv
from perfguest.capture.lab.cpio import initramfs, tree
from perfguest.capture.lab.kernels import Kernel
from perfguest.capture.lab.options import LabOptions
from perfguest.commands.lab import _TROUBLE
from tests.lab.conftest import Host

_WORKLOAD = b"exec /bin/workload"
_KALLSYMS_END = b"PERFGUEST-KALLSYMS-END\n"


def compiled(source: str, directory: Path, *flags: str) -> bytes:
    """A program beside this file, for a guest."""
    program = directory / source.removesuffix(".c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-static", *flags, "-o", program, Path(__file__).with_name(source)], check=True)
    return program.read_bytes()


def make_initrd(directory: Path, kernel: Kernel, files: Mapping[str, bytes] | None = None, workload: str = "exec /bin/workload") -> Path:
    """The initramfs of the lab's guest for a kernel, with more files, and with these lines of shell in place of its workload."""
    made = payload.guest_payload(kernel, directory)
    for path, content in (files or {}).items():
        place = made.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        place.chmod(0o755)
    init = made.root / "init"
    script = init.read_bytes()
    assert script.count(_WORKLOAD) == 1
    init.write_bytes(script.replace(_WORKLOAD, workload.encode()))
    made.initrd.write_bytes(initramfs(tree(made.root)))
    return made.initrd


def vm_spec(options: LabOptions, name: str, kernel: Kernel, initrd: Path, prefix: Sequence[str] = ()) -> dict[str, Any]:
    """For ``vms_inside.py``, which runs it in a directory of its own; ``prefix``: what starts the VMM. The guest has a port for a log beside the one for
    its kallsyms."""
    log = ["-chardev", "file,id=log,path=log", "-device", "virtserialport,chardev=log,name=perfguest.log"]
    return {"name": name, "argv": [*prefix, *guest_argv(options, name, ".", kernel.image, initrd), *log]}


@dataclass(frozen=True)
class Ran:
    """What a VM left in the attempt that came to its end: its VMM's process, and ``directory`` with what it wrote."""

    pid: int
    directory: Path

    def kallsyms(self) -> list[list[tuple[int, str, str]]]:
        """(address, type, name) of each boot."""
        boots = (self.directory / "kallsyms.raw").read_bytes().split(_KALLSYMS_END)[:-1]
        lines = [[line.split() for line in boot.decode().splitlines()] for boot in boots]
        return [[(int(words[0], 16), words[1], words[2]) for words in boot] for boot in lines]

    def log(self) -> list[list[str]]:
        """The words of each whole line that it logged."""
        return [line.split(" ") for line in (self.directory / "log").read_text().rpartition("\n")[0].splitlines()]

    def console(self) -> str:
        return (self.directory / "console").read_text(errors="replace")


def run_scenario(host: Host, scenario: str, specs: Sequence[dict[str, Any]]) -> dict[str, Ran]:
    """Runs it in the lab's host, and gives what each VM left by its name. Fails if the host's kernel found fault with anything."""
    (host.work / "specs.json").write_text(json.dumps(list(specs)))
    host.run(sys.executable, Path(__file__).with_name("vms_inside.py"), scenario, "specs.json", timeout=3000)
    log = host.lab.dmesg()
    assert not [line for line in log.splitlines() if _TROUBLE.search(line)], log
    ran = json.loads((host.work / "vms.json").read_text())
    return {name: Ran(one["pid"], host.work / "vms" / one["attempt"]) for name, one in ran.items()}
