# SPDX-License-Identifier: Apache-2.0
"""One QEMU in software emulation: the lab's host. Whatever becomes of this process, QEMU and its directory go with it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from perfguest.capture.lab.payload import share_tag
from perfguest.capture.lab.qmp import Qmp
from perfguest.errors import EnvironmentProblem, LabError, UsageError

PORTS = ("agent", "control")
_QEMU = "qemu-system-x86_64"
# Of Debian's packages seabios and qemu-system-data.
_FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu")
# For the emulator's speed. On a loaded machine Linux 5.10 takes the TSC for unstable, and each look at the clock is then one at a device; and it clears what
# 9p allocates for a message, twice 500 KB for the smallest.
_HOST_OPTIONS = "console=ttyS0 loglevel=5 panic=-1 mitigations=off init_on_alloc=0 tsc=reliable log_buf_len=8M rdinit=/init"
# A path of a socket may be 107 bytes long (unix(7)).
_LONGEST_DIRECTORY = 80


def find_qemu() -> str:
    """QEMU's path, the same outside and inside."""
    found = shutil.which(_QEMU)
    if not found:
        raise EnvironmentProblem(f"no {_QEMU}", "apt install qemu-system-x86")
    return found


def _emulator(directory: Path | None) -> list[str]:
    """The first words of the host's command line: the installed QEMU, or another one with its firmware, or else the installed one's."""
    if directory is None:
        return [find_qemu()]
    program = directory / "usr/bin" / _QEMU
    if not program.is_file():
        raise UsageError(f"{directory}: no usr/bin/{_QEMU} in it", "Give a directory as dpkg-deb -x makes it of qemu-system-x86 and qemu-system-data.")
    return [str(program), *(word for place in (directory / "usr/share/qemu", *_FIRMWARE) for word in ("-L", str(place)))]


class ScratchDirectory:
    """A directory that is removed when it is closed or this process ends, in whatever way: a shell waits for the end of a pipe that only we hold."""

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        self.path = Path(tempfile.mkdtemp(prefix="perfguest-lab-", dir=parent if len(parent) < _LONGEST_DIRECTORY else "/tmp"))  # noqa: S108
        self._remover = subprocess.Popen(
            ["/bin/sh", "-c", 'trap "" HUP INT TERM; read -r _; exec /bin/rm -rf "$1"', "lab", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """Removes it now."""
        self._remover.communicate()

    def __enter__(self) -> ScratchDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _escape(path: str | Path) -> str:
    return str(path).replace(",", ",,")


def host_argv(
    *,
    kernel: Path,
    initrd: Path,
    directory: Path,
    shared: Sequence[Path],
    cpus: int,
    memory: int,
    fds: Mapping[str, int],
    emulator: Path | None = None,
) -> list[str]:
    """QEMU's command line for a KVM host. ``fds`` holds a connected socket for each of PORTS and one named ``qmp``."""
    argv = [*_emulator(emulator), "-name", "perfguest-lab", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]
    argv += ["-smp", str(cpus), "-m", f"{memory}M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-kernel", str(kernel), "-initrd", str(initrd)]
    argv += ["-append", _HOST_OPTIONS]
    argv += ["-serial", f"file:{_escape(directory / 'console')}"]
    argv += ["-virtfs", "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap"]
    for number, path in enumerate(shared):
        argv += ["-virtfs", f"local,path={_escape(path)},mount_tag={share_tag(number)},security_model=none,multidevs=remap"]
    argv += ["-chardev", f"socket,id=qmp,fd={fds['qmp']}", "-mon", "chardev=qmp,mode=control"]
    argv += ["-qmp", f"unix:{_escape(directory / 'qmp')},server=on,wait=off"]
    argv += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
    for port in PORTS:
        argv += ["-chardev", f"socket,id={port},fd={fds[port]}", "-device", f"virtserialport,chardev={port},name=perfguest.{port}"]
    return argv


def gone_with_us(argv: Sequence[str]) -> list[str]:
    """The command, which ends with the thread that starts it, should that be killed."""
    return ["setpriv", "--pdeathsig", "KILL", *argv]


class Machine:
    """A running host. ``ports`` are our ends of its virtio ports; ``directory / "qmp"`` is a monitor for others."""

    def __init__(self, *, kernel: Path, initrd: Path, directory: Path, shared: Sequence[Path], cpus: int, memory: int, emulator: Path | None = None) -> None:
        self.directory = directory
        self.console = directory / "console"
        self._log = directory / "qemu.log"
        pairs = {name: socket.socketpair() for name in ("qmp", *PORTS)}
        theirs = {name: pair[1].fileno() for name, pair in pairs.items()}
        argv = host_argv(kernel=kernel, initrd=initrd, directory=directory, shared=shared, cpus=cpus, memory=memory, fds=theirs, emulator=emulator)
        self.process = self._start(argv, list(theirs.values()))
        for _, their in pairs.values():
            their.close()
        self.ports = {name: pairs[name][0] for name in PORTS}
        try:
            self.qmp = Qmp(pairs["qmp"][0])
        except LabError as error:
            self.stop()
            raise LabError(f"{_QEMU} did not start: {self.messages() or error}") from error

    def _start(self, argv: Sequence[str], fds: Sequence[int]) -> subprocess.Popen[bytes]:
        # In a session of its own, so that Ctrl-C reaches us alone.
        with self._log.open("wb") as log:
            return subprocess.Popen(gone_with_us(argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=fds, start_new_session=True)

    def messages(self) -> str:
        """What QEMU itself said."""
        return self._log.read_text(errors="replace").strip()

    def stop(self) -> None:
        """Ends QEMU now."""
        self.process.kill()
        self.process.wait()
        for port in getattr(self, "ports", {}).values():
            port.close()


def tail(path: Path, lines: int) -> str:
    """The last lines of a console, or nothing if there is none."""
    if not path.exists():
        return ""
    text = path.read_bytes()[-65536:].decode(errors="replace")
    return "\n".join("".join(c for c in line if c.isprintable() or c == "\t") for line in text.splitlines()[-lines:])
