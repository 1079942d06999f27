# SPDX-License-Identifier: Apache-2.0
"""What the lab boots: the initramfs of its host, and the guest's initramfs with the workload, which is compiled at first use."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perfguest.capture.lab.cpio import initramfs, tree
from perfguest.capture.lab.kernels import Kernel, load_order, module_bytes, module_name
from perfguest.errors import EnvironmentProblem

HOST_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")
KVM_MODULES = ("kvm_amd",)
GUEST_MODULES = ("virtio_mmio", "virtio_console")
GUEST_OPTIONAL_MODULES = ("algif_hash",)

# Non-PIE, so that addresses are those in the file; each function keeps its frame, the leaves too.
_CFLAGS = ("-O2", "-g", "-static", "-no-pie", "-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer", "-fno-optimize-sibling-calls", "-fno-builtin-gamma")


@dataclass(frozen=True)
class GuestPayload:
    """The guest's initramfs, and ``root``: a directory with the same files under the same paths."""

    initrd: Path
    root: Path
    truth: Path


def data(name: str) -> bytes:
    """A file of ``perfguest.lab_guest``."""
    return importlib.resources.files("perfguest.lab_guest").joinpath(name).read_bytes()


def find_busybox() -> Path:
    """A statically linked busybox; one that needs libraries is of no use in an initramfs."""
    for name in ("busybox", "/bin/busybox", "/usr/lib/initramfs-tools/bin/busybox"):
        found = shutil.which(name)
        if found and _is_static(Path(found)):
            return Path(found)
    raise EnvironmentProblem("no statically linked busybox", "apt install busybox-static")


def _is_static(program: Path) -> bool:
    """An ELF without PT_INTERP (Elf64_Ehdr, Elf64_Phdr of the System V ABI)."""
    content = program.read_bytes()
    if content[:5] != b"\x7fELF\x02":
        return False
    (offset,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    return all(struct.unpack_from("<I", content, offset + size * index)[0] != 3 for index in range(count))


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/perfguest/lab``, or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "perfguest/lab"


def workload(compiler: str = "gcc") -> bytes:
    """The workload, compiled, out of the cache if this source was compiled before.

    Raises EnvironmentProblem, with the compiler's own words, when it cannot be.
    """
    source = data("workload.c")
    key = hashlib.sha256(source + shlex.join([compiler, *_CFLAGS]).encode()).hexdigest()[:24]
    cached = cache_directory() / f"workload-{key}"
    if cached.exists():
        return cached.read_bytes()
    with tempfile.TemporaryDirectory(prefix="perfguest-build-") as directory:
        program = Path(directory) / "workload"
        command = [compiler, *_CFLAGS, "-x", "c", "-", "-o", str(program)]
        hint = "apt install gcc libc6-dev"
        try:
            done = subprocess.run(command, input=source, capture_output=True, check=False)
        except OSError as error:
            raise EnvironmentProblem(f"{compiler}: {error.strerror}: the guest's workload cannot be compiled", hint) from error
        if done.returncode:
            raise EnvironmentProblem(f"{compiler} cannot compile the guest's workload:\n{done.stderr.decode(errors='replace').strip()}", hint)
        content = program.read_bytes()
    _keep(cached, content)
    return content


def _keep(path: Path, content: bytes) -> None:
    """A cache that cannot be written costs a second at the next start, nothing else."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def guest_payload(kernel: Kernel, directory: Path) -> GuestPayload:
    """Writes the guest's files into ``directory``."""
    root = directory / "root"
    modules = load_order(kernel, GUEST_MODULES, GUEST_OPTIONAL_MODULES)
    files = {
        "/init": (0o755, data("guest_init.sh")),
        "/bin/busybox": (0o755, find_busybox().read_bytes()),
        "/bin/workload": (0o755, workload()),
        "/tmp/.keep": (0o644, b""),  # noqa: S108
        "/proc/.keep": (0o644, b""),
        "/sys/.keep": (0o644, b""),
        "/dev/.keep": (0o644, b""),
        "/modules/order": (0o644, _order(modules)),
        **{f"/modules/{module_name(path)}": (0o644, module_bytes(path)) for path in modules},
    }
    for path, (mode, content) in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        place.chmod(mode)
    initrd = directory / "initrd.gz"
    initrd.write_bytes(initramfs(tree(root)))
    truth = directory / "truth.json"
    truth.write_bytes(data("truth.json"))
    return GuestPayload(initrd, root, truth)


@dataclass(frozen=True)
class Agent:
    """``script`` is the host's first process after ``host_init.sh``; ``guests`` is what the agent is told of each guest."""

    script: str
    guests: list[dict[str, object]]


def share_tag(number: int) -> str:
    """The 9p tag of a directory that is shared read-write."""
    return f"share{number}"


def host_initrd(kernel: Kernel, settings: dict[str, str], shared: Sequence[Path], agent: Agent, path: Path) -> None:
    """Writes the host's initramfs. ``settings`` are shell variables of ``host_init.sh``."""
    load_order(kernel, KVM_MODULES)
    modules = load_order(kernel, HOST_MODULES)
    config = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    path.write_bytes(
        initramfs(
            {
                "/init": (0o755, data("host_init.sh")),
                "/bin/busybox": (0o755, find_busybox().read_bytes()),
                "/config": (0o644, config.encode()),
                "/shares": (0o644, "".join(f"{share_tag(number)} {path}\n" for number, path in enumerate(shared)).encode()),
                "/agent.sh": (0o755, agent.script.encode()),
                "/agent.json": (0o600, json.dumps(agent.guests).encode()),
                "/modules/order": (0o644, _order(modules)),
                "/proc/.keep": (0o644, b""),
                "/sys/.keep": (0o644, b""),
                "/dev/.keep": (0o644, b""),
                **{f"/modules/{module_name(module)}": (0o644, module_bytes(module)) for module in modules},
            }
        )
    )


def _order(modules: list[Path]) -> bytes:
    return "".join(f"{module_name(path)}\n" for path in modules).encode()
