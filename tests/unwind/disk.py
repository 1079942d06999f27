# SPDX-License-Identifier: Apache-2.0
"""The guests' disk: an ext4 image with this machine's own perl, python3, openssl and perf, unmodified, with all that they need, and the programs of
``guest/``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

SOURCES = Path(__file__).parent / "guest"
PROGRAMS = ("/usr/bin/perl", "/usr/bin/python3", "/usr/bin/openssl", "/usr/bin/perf")
#: Where the programs of ``guest/`` are on the disk.
HOME = "/usr/lib/truth"

_FLAGS = ("gcc", "-O2", "-g0", "-fomit-frame-pointer", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id")
_LEFT_OUT = shutil.ignore_patterns(
    "test", "idlelib", "ensurepip", "tkinter", "lib2to3", "distutils", "pydoc_data", "config-3*", "dist-packages", "__pycache__", "turtledemo"
)
_MIB = 320


def build_programs(directory: Path) -> None:
    """Compiles ``guest/``: truth with its libraries, storm."""

    def compile_(target: str, *arguments: str) -> None:
        subprocess.run([*_FLAGS, "-o", target, *arguments], check=True, cwd=directory)

    for library, source in (("libtruth.so", "truth_library.c"), ("truth_plugin.so", "truth_plugin.c")):
        compile_(library, "-shared", "-fPIC", str(SOURCES / source))
    # Lazily bound, so that ld.so's resolver is on some stacks.
    compile_("truth", "-pthread", "-Wl,-z,lazy", str(SOURCES / "truth.c"), "-L.", "-ltruth", f"-Wl,-rpath,{HOME}")
    compile_("storm", "-pthread", str(SOURCES / "storm.c"))
    for script in ("load.pl", "load.py"):
        shutil.copy(SOURCES / script, directory)


def make_disk(directory: Path, programs: Path) -> Path:
    """The image, made in ``directory``; ``programs``: where :func:`build_programs` put them. Needs no root."""
    root = directory / "root"
    for name in ("proc", "sys", "dev", "tmp", "work"):
        (root / name).mkdir(parents=True)
    shutil.copytree(programs, root / HOME.lstrip("/"))
    for program in PROGRAMS:
        _copy(root, Path(program))
    python = Path(os.path.realpath("/usr/bin/python3")).name
    libraries = Path("/usr/lib") / python
    shutil.copytree(libraries, root / str(libraries).lstrip("/"), ignore=_LEFT_OUT)
    for base in Path("/usr/lib/x86_64-linux-gnu").glob("perl-base"):
        shutil.copytree(base, root / str(base).lstrip("/"))
    needed = _libraries([*map(Path, PROGRAMS), *(libraries / "lib-dynload").glob("*.so")])
    for library in needed:
        _copy(root, library)
    image = directory / "disk.ext4"
    # Without what older kernels cannot mount.
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^orphan_file,^metadata_csum_seed", "-d", root, image, f"{_MIB}M"], check=True)
    shutil.rmtree(root)
    return image


def _copy(root: Path, path: Path) -> None:
    target = root / str(path).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def _libraries(binaries: Iterable[Path]) -> list[Path]:
    """What the dynamic linker loads for them."""
    listing = subprocess.run(["ldd", *binaries], check=True, capture_output=True, text=True).stdout
    return sorted({Path(path) for path in re.findall(r"(/\S+) \(0x", listing)})
