# SPDX-License-Identifier: Apache-2.0
"""Builds the kernel module from the sources in the package and keeps what was built, per kernel.

A built object lies in ``CACHE/perfguest/kmod/RELEASE-HASH/perfguest.ko``. The hash is over the bytes of the sources and of what identifies the kernel's
headers, never over times, so that any machine that sees the same cache, headers and sources finds it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import perfguest
from perfguest.errors import EnvironmentProblem, ModuleProblem

OBJECT = "perfguest.ko"

_SOURCE_SUFFIXES = (".c", ".h")
_SOURCE_NAMES = ("Kbuild", "Makefile")
#: BTF for modules is made from a vmlinux, which header packages do not have.
_MAKE_VARIABLES = ("CONFIG_DEBUG_INFO_BTF_MODULES=",)
_OUTPUT_LINES = 30

Say = Callable[[str], None]


@dataclass(frozen=True)
class Headers:
    """A kernel's build directory and the release it builds for."""

    directory: Path
    release: str


def find_headers(kdir: Path | None = None) -> Headers:
    """The headers in ``kdir``, by default those of the running kernel. Raises :class:`EnvironmentProblem` if modules cannot be built there."""
    directory = kdir or Path("/lib/modules") / os.uname().release / "build"
    # Debian's include/config/kernel.release holds the version of the sources instead.
    release_file = directory / "include/generated/utsrelease.h"
    try:
        found = re.search(r'UTS_RELEASE "([^"/]+)"', release_file.read_text(errors="replace"))
    except OSError:
        wanted = os.uname().release
        if kdir:
            raise EnvironmentProblem(
                f"{kdir} has no headers to build modules with: {release_file} does not exist", "Give the build directory of a kernel."
            ) from None
        raise EnvironmentProblem(
            f"the headers of this kernel ({wanted}) are not installed: {release_file} does not exist",
            f"Install them (Debian and Ubuntu: apt install linux-headers-{wanted}), or give their directory with --kdir.",
        ) from None
    if not found:
        raise EnvironmentProblem(f"{release_file} does not tell the kernel's release", "Install the kernel's headers again, or give others with --kdir.")
    return Headers(directory.resolve(), found[1])


def source_directory() -> Path:
    """The module's sources: in the installed package, or ``kmod/`` of a checkout."""
    package = Path(perfguest.__file__).parent
    for directory in (package / "kmod", package.parent / "kmod"):
        if (directory / "Kbuild").is_file():
            return directory
    raise ModuleProblem(f"the module's sources are not in {package / 'kmod'}", "Install perfguest again.")


def build(headers: Headers, sources: Path | None = None, force: bool = False, say: Say = lambda _: None) -> Path:
    """The path of the module for these headers, built if it is not there yet.

    Two builds of the same object wait for each other. Raises :class:`EnvironmentProblem` if make or a compiler is missing, :class:`ModuleProblem` with the
    end of the compiler's output if the build fails.
    """
    sources = sources or source_directory()
    entry = f"{headers.release}-{identity(headers, sources)}"
    if not force and (found := find_built(entry)):
        return found
    directory = _writable_cache() / entry
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _lock(directory / "lock", say):
        built = directory / OBJECT
        if force or not built.is_file():
            say(f"building {OBJECT} for Linux {headers.release} ({headers.directory})")
            _build_into(built, headers, sources)
            say(f"built {built}")
        return built


def identity(headers: Headers, sources: Path) -> str:
    """Hex digits that are others as soon as the object would be another."""
    digest = hashlib.sha256(headers.release.encode())
    try:
        for path in [*source_files(sources), headers.directory / ".config", headers.directory / "Module.symvers"]:
            content = path.read_bytes() if path.parent == sources or path.exists() else b""
            digest.update(f"\0{path.name}\0{len(content)}\0".encode())
            digest.update(content)
    except OSError as error:
        raise ModuleProblem(f"cannot read {error.filename}: {error.strerror}") from error
    return digest.hexdigest()[:16]


def source_files(sources: Path) -> list[Path]:
    return sorted(path for path in sources.iterdir() if (path.suffix in _SOURCE_SUFFIXES and not path.name.endswith(".mod.c")) or path.name in _SOURCE_NAMES)


def find_built(entry: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The object in the first cache that has it and whose files nobody else can have put there."""
    for cache in cache_directories(environment):
        built = cache / entry / OBJECT
        if built.is_file() and is_trusted(built):
            return built
    return None


def cache_directories(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where built modules may be: the cache the environment names, then that of the user's own home (sudo may keep another's $HOME)."""
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    base = environment.get("XDG_CACHE_HOME", "")
    first = Path(base) if base.startswith("/") else Path(environment.get("HOME") or home) / ".cache"
    return list(dict.fromkeys(path / "perfguest/kmod" for path in (first, home / ".cache")))


def is_trusted(path: Path) -> bool:
    """Whether nobody but root, this user and the owner of perfguest itself can change what ``path`` is: it will be loaded into the kernel."""
    trusted = {0, os.geteuid(), Path(perfguest.__file__).stat().st_uid}
    path = path.resolve()
    for part in (path, *path.parents):
        status = part.stat()
        others_write = status.st_mode & 0o022 and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX)
        if status.st_uid not in trusted or others_write:
            return False
    return True


def _writable_cache() -> Path:
    for cache in cache_directories():
        try:
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(cache, os.W_OK) and is_trusted(cache):
            return cache
    raise EnvironmentProblem(
        f"no directory to keep the built module in: {', '.join(map(str, cache_directories()))}", "Set XDG_CACHE_HOME to one that only you can write to."
    )


@contextmanager
def _lock(path: Path, say: Say) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build of the same module")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_into(built: Path, headers: Headers, sources: Path) -> None:
    if not shutil.which("make"):
        raise EnvironmentProblem("make is not installed", f"Install it (Debian and Ubuntu: apt install make gcc linux-headers-{headers.release}).")
    with tempfile.TemporaryDirectory(prefix="perfguest-kmod-") as temporary:
        for path in source_files(sources):
            shutil.copyfile(path, Path(temporary, path.name))
        _make(Path(temporary), headers)
        staged = built.with_suffix(f".new{os.getpid()}")
        try:
            shutil.copyfile(Path(temporary, OBJECT), staged)
            staged.replace(built)
        except OSError as error:
            staged.unlink(missing_ok=True)
            raise EnvironmentProblem(f"cannot write {built}: {error.strerror}", "Set XDG_CACHE_HOME to a directory with room.") from error


def _make(directory: Path, headers: Headers) -> None:
    command = ["make", "-C", str(headers.directory), f"M={directory}", f"-j{os.cpu_count() or 1}", *_MAKE_VARIABLES, "modules"]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "KDIR", "M")}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode == 0 and (directory / OBJECT).is_file():
        return
    output = done.stdout.decode(errors="replace").splitlines()
    end = "\n".join(output[-_OUTPUT_LINES:])
    raise ModuleProblem(
        f"the module could not be built for Linux {headers.release}: {' '.join(command)} failed\n{end}", _build_hint("\n".join(output), headers)
    )


def _build_hint(output: str, headers: Headers) -> str:
    if "not found" in output or "No such file" in output or "command not found" in output:
        return f"If a program is missing, install what modules are built with (Debian and Ubuntu: apt install make gcc linux-headers-{headers.release})."
    return "If this kernel is newer than this perfguest, get a newer perfguest; else report the output above."
