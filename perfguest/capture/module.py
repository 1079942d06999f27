# SPDX-License-Identifier: Apache-2.0
"""Loads and unloads the kernel module, and tells what is loaded."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

import perfguest
from perfguest.capture import module_build
from perfguest.capture.host import HostPaths
from perfguest.capture.module_build import Say
from perfguest.errors import EnvironmentProblem, ModuleProblem, PerfguestError

NAME = "perfguest"

#: System calls of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl in the kernel).
_DELETE_MODULE = 176
_FINIT_MODULE = 313


class Kernel(Protocol):
    """What loads modules; both raise OSError."""

    def load(self, path: Path) -> None: ...

    def unload(self, name: str) -> None: ...


class LinuxKernel:
    """The running kernel's finit_module(2) and delete_module(2): their errors tell more than insmod's messages."""

    def load(self, path: Path) -> None:
        with path.open("rb") as file:
            self._call(_FINIT_MODULE, ctypes.c_int(file.fileno()), ctypes.c_char_p(b""), ctypes.c_int(0))

    def unload(self, name: str) -> None:
        self._call(_DELETE_MODULE, ctypes.c_char_p(name.encode()), ctypes.c_int(os.O_NONBLOCK))

    @staticmethod
    def _call(number: int, *arguments: ctypes._SimpleCData[int] | ctypes._SimpleCData[bytes | None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(ctypes.c_long(number), *arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


@dataclass(frozen=True)
class LoadedModule:
    """What /sys/module tells of the loaded module. ``users``: how many files of it are open, or -1."""

    version: str
    source_version: str
    users: int


def loaded_module(paths: HostPaths) -> LoadedModule | None:
    """The module that is loaded now, or None."""
    directory = paths.sys / "module" / NAME
    if not directory.is_dir():
        return None
    users = _read(directory / "refcnt")
    return LoadedModule(_read(directory / "version"), _read(directory / "srcversion"), int(users) if re.fullmatch("[0-9]+", users) else -1)


def object_source_version(path: Path) -> str:
    """The ``srcversion`` that modpost wrote into a module: a hash of its sources; empty if it has none. Raises :class:`ModuleProblem` if it is no module."""
    try:
        with path.open("rb") as file:
            section = ELFFile(file).get_section_by_name(".modinfo")
            information = section.data() if section else b""
    except OSError as error:
        raise ModuleProblem(f"cannot read {path}: {error.strerror}") from error
    except (ELFError, ValueError, KeyError) as error:
        raise ModuleProblem(f"{path} is not a kernel module: {error}", "Build it again: perfguest module build --force.") from error
    found = re.search(rb"(?:^|\0)srcversion=([^\0]*)", information)
    return found[1].decode(errors="replace") if found else ""


def load(path: Path, paths: HostPaths, kernel: Kernel | None = None) -> bool:
    """Loads the object; False if it is loaded already. Raises :class:`ModuleProblem` if the kernel refuses, or if another build of the module is loaded."""
    if loaded := loaded_module(paths):
        _check_same(path, loaded)
        return False
    try:
        (kernel or LinuxKernel()).load(path)
    except OSError as error:
        if error.errno == errno.EEXIST and (loaded := loaded_module(paths)):
            _check_same(path, loaded)
            return False
        raise _refused(path, error, paths) from error
    return True


def unload(paths: HostPaths, kernel: Kernel | None = None) -> bool:
    """Unloads the module; False if it is not loaded. Raises :class:`ModuleProblem` if it is in use."""
    if not loaded_module(paths):
        return False
    try:
        (kernel or LinuxKernel()).unload(NAME)
    except OSError as error:
        match error.errno:
            case errno.ENOENT:
                return False
            case errno.EAGAIN | errno.EBUSY:
                raise ModuleProblem("the module is in use: a recorder is running", "End it first; its streams hold the module.") from error
            case errno.EPERM:
                raise ModuleProblem("not allowed to unload the module", "Run as root.") from error
        raise ModuleProblem(f"the module cannot be unloaded: {error.strerror}", "See dmesg.") from error
    return True


def prepare(kdir: Path | None, paths: HostPaths, say: Say) -> Path | None:
    """The object to load, built if need be; None where there are no headers but this version of the module is loaded already."""
    try:
        headers = module_build.find_headers(kdir)
    except EnvironmentProblem:
        now = loaded_module(paths)
        if now is None or now.version != perfguest.__version__:
            raise
        return None
    return module_build.build(headers, say=say)


@contextmanager
def loaded(path: Path | None, paths: HostPaths, say: Say, kernel: Kernel | None = None) -> Iterator[None]:
    """The object is loaded within; afterwards it is unloaded if it was loaded here. None: it is there already."""
    ours = path is not None and load(path, paths, kernel)
    try:
        yield
    finally:
        if ours:
            _unload_ours(paths, kernel, say)


def _unload_ours(paths: HostPaths, kernel: Kernel | None, say: Say) -> None:
    try:
        unload(paths, kernel)
    except PerfguestError as error:
        # Another recorder has begun to use it, or somebody looks at its files; the recording is whole.
        say(f"the module stays loaded: {error.message}")


def _check_same(path: Path, loaded_now: LoadedModule) -> None:
    ours = object_source_version(path)
    if ours and loaded_now.source_version and ours != loaded_now.source_version:
        raise ModuleProblem(
            f"another build of the module is loaded (version {loaded_now.version or '?'}, sources {loaded_now.source_version}; this perfguest's are {ours})",
            "Load this one instead: perfguest module load --reload.",
        )


def _refused(path: Path, error: OSError, paths: HostPaths) -> ModuleProblem:
    lockdown = re.search(r"\[(integrity|confidentiality)\]", _read(paths.sys / "kernel/security/lockdown"))
    code = error.errno
    what = f"the kernel refuses the module {path}: "
    if lockdown and code in (errno.EPERM, errno.EKEYREJECTED, errno.ENOKEY):
        hint = "Sign the module with a key that the kernel trusts (mokutil), or turn off Secure Boot or lockdown."
        return ModuleProblem(f"{what}it is in lockdown ({lockdown[1]}) and takes signed modules only", hint)
    if code in (errno.EKEYREJECTED, errno.ENOKEY):
        return ModuleProblem(f"{what}it takes signed modules only", "Sign it with a key that the kernel trusts (mokutil), or boot with module.sig_enforce=0.")
    if code == errno.EPERM and _read(paths.proc / "sys/kernel/modules_disabled") == "1":
        return ModuleProblem(f"{what}loading modules is turned off until the next boot (kernel.modules_disabled)", "Boot again without that setting.")
    if code == errno.EPERM:
        return ModuleProblem(f"{what}not permitted", "Run as root, on the host itself and not in a container.")
    if code == errno.ENOSYS:
        return ModuleProblem(f"{what}it was built without loadable modules", "Use a kernel with CONFIG_MODULES; `perfguest lab` works without.")
    if code in (errno.ENOEXEC, errno.EINVAL):
        return ModuleProblem(
            f"{what}it was built for another kernel than {os.uname().release}", "Install this kernel's headers and build again: perfguest module build --force."
        )
    if code == errno.ENOENT:
        return ModuleProblem(
            f"{what}it needs a symbol that is not there", "Load kvm first (modprobe kvm_intel or kvm_amd), and see dmesg for the symbol's name."
        )
    return ModuleProblem(f"{what}{error.strerror}", "See dmesg.")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
