# SPDX-License-Identifier: Apache-2.0
"""Drops every right of the process that reads guests' memory, for what it reads is hostile. What it has open it keeps; nothing can be opened again.

In order: limits, an unprivileged user, no new privileges, Landlock (Documentation/userspace-api/landlock.rst in the kernel), a system call filter
(Documentation/userspace-api/seccomp_filter.rst). The first three must succeed; Landlock and the filter are there where the kernel has them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct

from perfguest.errors import EnvironmentProblem

#: The user and group that own nothing.
NOBODY = 65534

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

# x86-64's numbers of what a reader of memory needs: read and write what is open, memory, time, waiting, the end.
_SYS_SECCOMP, _SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_RESTRICT = 317, 444, 446
_ALLOWED = {
    **{"read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15},
    **{"pread64": 17, "readv": 19, "sched_yield": 24, "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39, "exit": 60, "gettimeofday": 96},
    **{"getrusage": 98, "times": 100, "sigaltstack": 131, "gettid": 186, "futex": 202, "sched_getaffinity": 204, "restart_syscall": 219},
    **{"clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "set_robust_list": 273, "preadv": 295, "getrandom": 318},
    **{"preadv2": 327},
}
# Of these the third argument must not have PROT_EXEC.
_MAPPING = {"mmap": 9, "mprotect": 10}
_PROT_EXEC = 4

# linux/bpf_common.h, linux/seccomp.h, linux/audit.h
_LD_ABS, _JUMP_EQUAL, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_RET_KILL, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_ARCH_X86_64, _X32 = 0xC000003E, 0x40000000
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENT_2 = 0, 4, 32
_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1
_CREATE_RULESET_VERSION = 1
# LANDLOCK_ACCESS_FS_* by version of Landlock's ABI: how many there are, from bit 0 on.
_LANDLOCK_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def die_with(parent: int) -> None:
    """From now on this process dies with the thread that started it, until it changes its user."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def enter(parent: int, memory_bytes: int, cpu_seconds: int) -> list[str]:
    """Afterwards this process can open nothing and ask for ``memory_bytes`` more than it has; it ends after ``cpu_seconds``, and with its parent.

    Gives what is in force of ``landlock`` and ``seccomp``. Raises :class:`EnvironmentProblem` if the rest cannot be had.
    """
    try:
        _limit(memory_bytes, cpu_seconds)
        _leave_root()
        die_with(parent)
        _prctl(_PR_SET_DUMPABLE, 0)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(f"the reader of guests' memory cannot give up its rights: {error}", "Record with --guest-memory off.") from error
    return [name for name, apply in (("landlock", _landlock), ("seccomp", _seccomp)) if apply()]


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    limits = {
        resource.RLIMIT_AS: _address_space() + memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        # No new file descriptor of any kind: no file, no socket.
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for which, limit in limits.items():
        resource.setrlimit(which, (limit, limit))


def _address_space() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - as light as can be
        return int(file.read().split()[0]) * resource.getpagesize()


def _leave_root() -> None:
    if os.geteuid() != 0 and os.getuid() != 0:
        return
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _landlock() -> bool:
    """No access to any path. RLIMIT_NOFILE stands already, so a ruleset can only be made by lifting it for a moment: done before, see :func:`prepare`."""
    if _ruleset < 0:
        return False
    result = _libc.syscall(_SYS_LANDLOCK_RESTRICT, _ruleset, 0)
    os.close(_ruleset)
    return bool(result == 0)


_ruleset = -1


def prepare() -> None:
    """Before :func:`enter`, while files can be opened."""
    global _ruleset  # noqa: PLW0603 - one process, one sandbox
    if platform.machine() != "x86_64":
        return
    version = _libc.syscall(_SYS_LANDLOCK_CREATE, None, 0, _CREATE_RULESET_VERSION)
    if version < 1:
        return
    rights = ctypes.c_uint64((1 << _LANDLOCK_RIGHTS.get(version, 16)) - 1)
    _ruleset = _libc.syscall(_SYS_LANDLOCK_CREATE, ctypes.byref(rights), ctypes.sizeof(rights), 0)


def _seccomp() -> bool:
    if platform.machine() != "x86_64":
        return False
    program = filter_program()
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    return bool(_libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _FLAG_TSYNC, header) == 0)


def filter_program() -> bytes:
    """The filter, ``struct sock_filter`` after ``struct sock_filter``: what is not allowed fails with EPERM, other machines' system calls end the process."""
    deny = _RET_ERRNO | errno.EPERM
    lines = [(_LD_ABS, 0, 0, _AT_ARCH), (_JUMP_EQUAL, 1, 0, _ARCH_X86_64), (_RETURN, 0, 0, _RET_KILL)]
    lines += [(_LD_ABS, 0, 0, _AT_NUMBER), (_JUMP_GE, 0, 1, _X32), (_RETURN, 0, 0, _RET_KILL)]
    for number in _ALLOWED.values():
        lines += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _RET_ALLOW)]
    for number in _MAPPING.values():
        lines += [(_JUMP_EQUAL, 0, 4, number), (_LD_ABS, 0, 0, _AT_ARGUMENT_2), (_JUMP_SET, 0, 1, _PROT_EXEC)]
        lines += [(_RETURN, 0, 0, deny), (_RETURN, 0, 0, _RET_ALLOW)]
    lines.append((_RETURN, 0, 0, deny))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
