# SPDX-License-Identifier: Apache-2.0
"""What modules for Debian's kernels are built with, fetched once: ``python -m tests.kernel_headers [SERIES...]`` prints build directories.

The header packages of a kernel that :mod:`tests.guest_kernels` has are unpacked beside it, and made to work from there and on this machine: with this
machine's compiler, and with the C library of their own suite for programs that want a newer one than this machine has.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from perfguest.capture.lab.kernels import Kernel, find_kernel
from perfguest.errors import EnvironmentProblem
from tests.debian import Apt, cache_directory, locked, print_places, run
from tests.guest_kernels import SERIES, guest_kernel

#: Options that kernels of a newer compiler have, and gcc 12 does not know: -fmin-function-alignment, which only puts functions at multiples of 16.
_NOT_FOR_THIS_COMPILER = ("CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT",)
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True)
class BuildTree:
    """A kernel with its modules, and the directory to build modules for it in."""

    kernel: Kernel
    directory: Path


def build_tree(series: str) -> BuildTree:
    """A kernel of ``series`` as :func:`tests.guest_kernels.guest_kernel` finds it, and what is needed to build for it, fetched at first use.

    ``lib/modules/RELEASE/build`` of a fetched kernel leads there, as it does where these packages are installed. Raises EnvironmentProblem if Debian has them
    no more, or the installed kernel's are not installed.
    """
    image = guest_kernel(series)
    kernel = find_kernel(image, None, ())
    cache = cache_directory() / "test-kernels"
    if not image.is_relative_to(cache):
        build = kernel.modules / "build"
        if not (build / "Makefile").exists():
            raise EnvironmentProblem(f"{kernel.release}: no {build}", f"apt install linux-headers-{kernel.release}")
        return BuildTree(kernel, build.resolve())
    root = cache / f"headers-{kernel.release}"
    with locked(cache):
        if not root.exists():
            _fetch(series, kernel.release, root)
        directory = _directory(root, kernel.release)
        link = kernel.modules / "build"
        if link.resolve() != directory:
            link.unlink(missing_ok=True)
            link.symlink_to(directory)
    return BuildTree(kernel, directory)


def _directory(root: Path, release: str) -> Path:
    return root / f"usr/src/linux-headers-{release}"


def _fetch(series: str, release: str, place: Path) -> None:
    """Downloads and unpacks the headers; ``place`` is there only when all of it works."""
    apt = _suite(series, release, place.parent)
    print(f"fetching headers of Linux {release} of Debian {apt.suite}", file=sys.stderr)
    packages = _packages(apt, release)
    with tempfile.TemporaryDirectory(dir=place.parent) as directory:
        root = Path(directory) / "root"
        _unpack(apt, packages, root)
        programs = [path for path in _programs(root) if _needs_newer_libc(path)]
        if programs:
            # Suites of backports hold what is theirs only.
            base = Apt(apt.suite.removesuffix("-backports"), place.parent / "apt" / apt.suite.removesuffix("-backports"))
            _unpack(base, _libraries(apt, base, packages), root / "libraries")
        for program in programs:
            _wrap(program, place / "libraries", root / "libraries")
        _adapt(_directory(root, release), place)
        root.rename(place)


def _suite(series: str, release: str, cache: Path) -> Apt:
    reasons = []
    for suite in SERIES[series]:
        try:
            apt = Apt(suite, cache / "apt" / suite)
            if f"linux-headers-{release}" in apt.names("linux-headers-"):
                return apt
        except EnvironmentProblem as error:
            reasons.append(error.message)
            continue
        reasons.append(f"{suite} has none")
    raise EnvironmentProblem(f"no headers of Linux {release}: {'; '.join(reasons)}", "Build them from that kernel's sources, and name them: see docs/lab.md.")


def _packages(apt: Apt, release: str) -> list[str]:
    """The headers, those that all flavours share, and the programs that modules are built with."""
    headers = f"linux-headers-{release}"
    return [headers, *(name for name in apt.depends(headers) if re.match("linux-(headers|kbuild)-", name))]


def _libraries(apt: Apt, base: Apt, packages: list[str]) -> list[str]:
    """The shared libraries of these packages' programs, and those that these need in turn, all of them in ``base``."""
    pending = [name for package in packages for name in apt.depends(package)]
    wanted: dict[str, None] = {}
    while pending:
        name = pending.pop()
        if re.match("lib|zlib1g$", name) and name not in wanted:
            wanted[name] = None
            pending += base.depends(name)
    return list(wanted)


def _unpack(apt: Apt, packages: list[str], root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root.parent) as directory:
        for package in apt.download(packages, Path(directory)):
            run(["dpkg-deb", "-x", str(package), str(root)], f"{package.name} cannot be unpacked")


def _programs(root: Path) -> Iterator[Path]:
    for path in root.rglob("usr/lib/linux-kbuild-*/**/*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def _needs_newer_libc(program: Path) -> bool:
    """By the versions of the C library's symbols that it asks for (GNU_verneed)."""
    with program.open("rb") as file:
        sections = [section for section in ELFFile(file).iter_sections() if isinstance(section, GNUVerNeedSection)]
        names = [version.name for section in sections for _, versions in section.iter_versions() for version in versions]
    wanted = [_numbers(name.removeprefix("GLIBC_")) for name in names if re.fullmatch(r"GLIBC_[\d.]+", name)]
    return max(wanted, default=[]) > _numbers((os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(" ")[2])


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _wrap(program: Path, libraries: Path, unpacked: Path) -> None:
    """Puts a script in the program's place that runs it with those libraries, which are still ``unpacked`` elsewhere."""
    loader = next(path for path in ("lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2") if (unpacked / path).exists())
    real = program.rename(program.with_name(f"{program.name}.elf"))
    program.write_text(f'#!/bin/sh\nexec "{libraries / loader}" --library-path "{libraries / _LIBRARIES}:{libraries / "lib/x86_64-linux-gnu"}" "$0.elf" "$@"\n')
    program.chmod(real.stat().st_mode)


def _adapt(directory: Path, place: Path) -> None:
    """Debian's headers name their place, and the compiler that has built the kernel."""
    makefile = directory / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{place}/usr/src/"))
    variables = directory / ".kernelvariables"
    text = re.sub(r"^CC = .*", "CC = $(CROSS_COMPILE)gcc", variables.read_text(), flags=re.MULTILINE)
    variables.write_text(text + "".join(f"override {option} :=\n" for option in _NOT_FOR_THIS_COMPILER))


def main(arguments: list[str]) -> int:
    """Prints the build directories of the series that are named, of all by default."""
    return print_places(arguments, SERIES, lambda series: build_tree(series).directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
