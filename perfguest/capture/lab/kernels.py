# SPDX-License-Identifier: Apache-2.0
"""Finds a kernel image, its release and its modules, in the order in which they load."""

from __future__ import annotations

import lzma
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perfguest.errors import EnvironmentProblem, FormatError

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst")


@dataclass(frozen=True)
class Kernel:
    """A bootable image, its release (``uname -r``) and the directory of its modules, ``lib/modules/RELEASE``."""

    image: Path
    release: str
    modules: Path


def image_release(image: Path) -> str:
    """The release named in a bzImage's header (Documentation/arch/x86/boot.rst: ``kernel_version`` at 0x20e, relative to 0x200).

    Raises FormatError if this is no bzImage, EnvironmentProblem if it cannot be read.
    """
    try:
        with image.open("rb") as file:
            head = file.read(0x200 + 0x10000 + 256)
    except OSError as error:
        raise EnvironmentProblem(f"{image}: {error.strerror}", "Name a kernel image with --kernel, or: apt install linux-image-amd64") from error
    if len(head) < 0x210 or head[0x202:0x206] != b"HdrS":
        raise FormatError(f"{image}: not a bzImage: no HdrS at offset 0x202", "Name a vmlinuz as in /boot, not a vmlinux.")
    (offset,) = struct.unpack_from("<H", head, 0x20E)
    text = head[0x200 + offset :].split(b"\0", 1)[0].split(b" ", 1)[0] if offset else b""
    if not re.fullmatch(rb"[\w.+~-]{1,128}", text):
        raise FormatError(f"{image}: its header at offset 0x20e names no release")
    return text.decode()


def find_kernel(image: Path | None, modules: Path | None, needed: Iterable[str]) -> Kernel:
    """The kernel of ``image``, or the newest in /boot whose modules include ``needed``. ``modules`` overrides where modules are looked for."""
    if image is not None:
        release = image_release(image)
        return Kernel(image.resolve(), release, _modules_of(image.resolve(), release, modules))
    wanted = list(needed)
    for candidate in sorted(Path("/boot").glob("vmlinuz-*"), key=_version_key, reverse=True):
        release = candidate.name.removeprefix("vmlinuz-")
        kernel = Kernel(candidate, release, Path("/lib/modules") / release)
        if (kernel.modules / "modules.dep").exists() and not _missing(kernel, wanted):
            return kernel
    raise EnvironmentProblem("no kernel with its modules in /boot and /lib/modules", "apt install linux-image-amd64, or name an image with --kernel.")


def _version_key(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _modules_of(image: Path, release: str, given: Path | None) -> Path:
    if given is not None:
        candidates = [given, given / release, given / "lib/modules" / release]
    else:
        root = image.parent.parent
        candidates = [base / release for base in (root / "lib/modules", root / "usr/lib/modules", image.parent, Path("/lib/modules"))]
    for candidate in candidates:
        if (candidate / "modules.dep").exists():
            return candidate.resolve() if candidate != Path("/lib/modules") / release else candidate
    for candidate in candidates:
        if (candidate / "kernel").is_dir():
            raise EnvironmentProblem(f"{candidate}: no modules.dep", f"Make it: depmod -b {candidate.parents[2]} {release}")
    raise EnvironmentProblem(f"{image}: no modules of {release}", "Name their directory with --modules-dir.")


def _missing(kernel: Kernel, names: Iterable[str]) -> list[str]:
    known = _known(kernel)
    return [name for name in names if name not in known]


def _name(path: str) -> str:
    return Path(path).name.split(".ko", 1)[0].replace("-", "_")


def _known(kernel: Kernel) -> dict[str, list[str]]:
    """Module name to the paths that are to be loaded for it, its own last; none for what is built in."""
    known: dict[str, list[str]] = {}
    builtin = kernel.modules / "modules.builtin"
    if builtin.exists():
        known.update((_name(line), []) for line in builtin.read_text().splitlines() if line)
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        known[_name(path)] = [*reversed(dependencies.split()), path]
    return known


def load_order(kernel: Kernel, needed: Iterable[str], optional: Iterable[str] = ()) -> list[Path]:
    """Module files to load, each after those it depends on (``modules.dep`` lists the ones needed first last); nothing for what is built in.

    Raises EnvironmentProblem when one of ``needed`` does not exist for this kernel.
    """
    wanted = list(needed)
    known = _known(kernel)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise EnvironmentProblem(
            f"{kernel.modules}: no module {', '.join(missing)}",
            "The lab needs a kernel with 9p over virtio, overlayfs and kvm_amd, as Debian's linux-image-amd64.",
        )
    order: dict[str, None] = {}
    for name in [*wanted, *(name for name in optional if name in known)]:
        order.update(dict.fromkeys(known[name]))
    return [kernel.modules / path for path in order]


def module_bytes(path: Path) -> bytes:
    """The ELF of a module file, which may be packed with xz or zstd."""
    if path.name.endswith(".xz"):
        return lzma.decompress(path.read_bytes())
    if path.name.endswith(".zst"):
        zstd = shutil.which("zstd")
        if not zstd:
            raise EnvironmentProblem(f"{path}: packed with zstd", "apt install zstd")
        return subprocess.run([zstd, "-dcq", str(path)], check=True, stdout=subprocess.PIPE).stdout
    return path.read_bytes()


def module_name(path: Path) -> str:
    """The file name of the unpacked module."""
    return next(path.name.removesuffix(suffix) for suffix in reversed(_SUFFIXES) if path.name.endswith(suffix)) + ".ko"
