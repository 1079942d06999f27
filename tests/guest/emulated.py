# SPDX-License-Identifier: Apache-2.0
"""A plain guest in software emulation: a QEMU process here, whose memory is read as a VMM's is, through /proc/PID/mem. The guest itself is the oracle:
``run`` gives what a shell command in it prints. Needs no KVM."""

from __future__ import annotations

import gzip
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from perfguest.capture.lab.cpio import initramfs
from perfguest.capture.lab.kernels import find_kernel, image_release, load_order, module_bytes, module_name
from perfguest.capture.lab.machine import gone_with_us
from perfguest.capture.lab.payload import find_busybox
from perfguest.capture.lab.qmp import Qmp
from perfguest.formats.guest_stream import Memslot
from perfguest.guest.memory import GuestMemory

#: Kernels to test: the newest in /boot, and those that PERFGUEST_GUEST_KERNELS lists, separated by colons; each once.
KERNELS = list(
    dict.fromkeys([*sorted(map(str, Path("/boot").glob("vmlinuz-*")))[-1:], *filter(None, os.environ.get("PERFGUEST_GUEST_KERNELS", "").split(":"))])
)

_SECONDS = 240.0
# QEMU 7.2 gives wrong flags after cmpxchg16b now and then, which newer kernels do not survive.
_CPU = "max,la57=off,cx16=off"

# Commands come in as lines; "SIZE STATUS" and the gzipped output go back.
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
echo 0 >/proc/sys/kernel/kptr_restrict
echo 0 >/proc/sys/kernel/printk
while read -r module; do insmod "/modules/$module"; done </modules/order
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo up >&3
while read -r line <&3; do
    sh -c "$line" >/tmp/.answer 2>&1 </dev/null
    status=$?
    gzip -1 -c /tmp/.answer >/tmp/.packed
    echo "$(stat -c %s /tmp/.packed) $status" >&3
    cat /tmp/.packed >&3
done
"""


@dataclass(frozen=True)
class Registers:
    """Of one vCPU at a moment."""

    rip: int
    cr3: int
    cpl: int
    gs_base: int
    la57: bool


class EmulatedGuest:
    """A guest that runs from ``with`` to its end.

    ``files`` (absolute path to (permission bits, content)) are added to its initramfs, of busybox, which is installed in /bin. ``modules``
    are loaded at boot, with those that they need; one that the kernel does not have counts as built in.
    ``disk``: /dev/vda (where the kernel has virtio built in, or ``modules`` name it); read-only, or, if it is ``scratch``, with what is written going nowhere.
    """

    def __init__(
        self,
        kernel: str | Path,
        *,
        files: Mapping[str, tuple[int, bytes]] | None = None,
        modules: Sequence[str] = (),
        memory: int = 512,
        cpus: int = 1,
        cpu: str = _CPU,
        append: str = "",
        disk: Path | None = None,
        scratch: bool = False,
    ) -> None:
        self.kernel = Path(kernel)
        self.release = image_release(self.kernel)
        self.ram = memory << 20
        self._files = dict(files or {})
        self._modules = tuple(modules)
        self._settings = (cpus, cpu, append, disk, scratch)
        self._stack = ExitStack()

    def __enter__(self) -> EmulatedGuest:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perfguest-emulated-")))
            self.console = directory / "console"
            (directory / "initrd").write_bytes(self._initramfs())
            ports = {name: stack.enter_context(_listen(directory / name)) for name in ("shell", "qmp")}
            self.process = subprocess.Popen(gone_with_us(self._command()), cwd=directory, stdin=subprocess.DEVNULL)
            stack.callback(self._end)
            self._shell = stack.enter_context(self._accept(ports["shell"]))
            self.qmp = Qmp(stack.enter_context(self._accept(ports["qmp"])), _SECONDS)
            self._lines = stack.enter_context(self._shell.makefile("rb"))
            if self._receive() != b"up\n":
                raise self._dead("did not come up")
            self.fd = os.open(f"/proc/{self.process.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, self.fd)
            self._lstar: int | None = None
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """Of the QEMU process."""
        return self.process.pid

    def run(self, command: str, status: int | None = 0) -> bytes:
        """What a shell command (one line) prints in the guest, stderr too. Fails if it ends with another status than the given (None: any will do)."""
        assert "\n" not in command
        self._shell.sendall(command.encode() + b"\n")
        size, code = map(int, self._receive().split())
        output = gzip.decompress(self._receive(size))
        assert status is None or code == status, f"{command}: status {code}: {output.decode(errors='replace')}"
        return output

    def slots(self) -> list[Memslot]:
        """The guest's memory in QEMU's address space: its biggest mapping of just that size. In two pieces, as VMMs have holes."""
        for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            if end - start == self.ram and line.split()[1].startswith("rw"):
                middle = 0xC0000
                return [Memslot(middle, self.ram - middle, start + middle), Memslot(0, middle, start)]
        raise AssertionError(f"QEMU {self.pid} has no mapping of {self.ram} bytes")

    def memory(self) -> GuestMemory:
        """The guest's memory, as the package reads it."""
        return GuestMemory(self.fd, self.slots())

    def lstar(self) -> int:
        """LSTAR as the guest's CPU has it: its entry_SYSCALL_64."""
        if self._lstar is None:
            self._lstar = int(self.run("grep -w entry_SYSCALL_64 /proc/kallsyms").split()[0], 16)
        return self._lstar

    def registers(self) -> Registers:
        """Of the first vCPU, at this moment."""
        text = self.qmp.execute("human-monitor-command", **{"command-line": "info registers"})

        def number(pattern: str) -> int:
            match = re.search(pattern, text)
            assert match, text
            return int(match[1], 16)

        return Registers(
            number(r"RIP=([0-9a-f]+)"),
            number(r"CR3=([0-9a-f]+)"),
            number(r"CPL=(\d)"),
            number(r"GS =\S+ ([0-9a-f]+)"),
            bool(number(r"CR4=([0-9a-f]+)") & 1 << 12),
        )

    def hints(self) -> Iterator[tuple[int, int]]:
        """(CR3, LSTAR), again and again, as samples would give them."""
        lstar = self.lstar()
        while True:
            yield self.registers().cr3, lstar

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The guest stands still within."""
        self.qmp.execute("stop")
        try:
            yield
        finally:
            self.qmp.execute("cont")

    def _command(self) -> list[str]:
        cpus, cpu, append, disk, scratch = self._settings
        command = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", cpu, "-m", str(self.ram >> 20), "-smp", str(cpus)]
        command += ["-nodefaults", "-display", "none", "-no-reboot", "-chardev", "socket,id=shell,path=shell", "-chardev", "socket,id=qmp,path=qmp"]
        command += ["-serial", f"file:{self.console}", "-serial", "chardev:shell", "-mon", "chardev=qmp,mode=control"]
        if disk:
            command += ["-drive", f"file={disk},if=virtio,format=raw,{'snapshot' if scratch else 'readonly'}=on"]
        return [*command, "-kernel", str(self.kernel.resolve()), "-initrd", "initrd", "-append", f"console=ttyS0 quiet panic=-1 rdinit=/init {append}"]

    def _initramfs(self) -> bytes:
        modules = load_order(find_kernel(self.kernel, None, ()), (), self._modules) if self._modules else []
        return initramfs(
            {
                "/init": (0o755, _INIT.encode()),
                "/bin/busybox": (0o755, find_busybox().read_bytes()),
                "/modules/order": (0o644, "".join(f"{module_name(path)}\n" for path in modules).encode()),
                **{f"/modules/{module_name(path)}": (0o644, module_bytes(path)) for path in modules},
                **{f"/{name}/.keep": (0o644, b"") for name in ("proc", "sys", "dev", "tmp")},
                **self._files,
            }
        )

    def _accept(self, port: socket.socket) -> socket.socket:
        try:
            accepted, _ = port.accept()
        except TimeoutError as error:
            raise self._dead("did not begin") from error
        accepted.settimeout(_SECONDS)
        return accepted

    def _receive(self, size: int | None = None) -> bytes:
        """A line, or as many bytes."""
        try:
            data: bytes = self._lines.readline() if size is None else self._lines.read(size)
        except TimeoutError as error:
            raise self._dead("does not answer") from error
        if (size is None and not data.endswith(b"\n")) or (size is not None and len(data) < size):
            raise self._dead("is gone")
        return data

    def _dead(self, what: str) -> AssertionError:
        text = self.console.read_text(errors="replace")[-3000:] if self.console.exists() else ""
        return AssertionError(f"the guest {self.release} {what}; its console: {text}")

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()


def _listen(path: Path) -> socket.socket:
    port = socket.socket(socket.AF_UNIX)
    port.bind(str(path))
    port.listen(1)
    port.settimeout(_SECONDS)
    return port


def with_libraries(programs: Mapping[str, Path]) -> dict[str, tuple[int, bytes]]:
    """Programs, by their paths in a guest, and the libraries that they need, as its ``files``."""
    files = {path: (0o755, source.read_bytes()) for path, source in programs.items()}
    for source in programs.values():
        listing = subprocess.run(["ldd", source], check=True, capture_output=True, text=True).stdout
        files |= {path: (0o755, Path(path).read_bytes()) for path in re.findall(r"(/\S+) \(0x", listing)}
    return files
