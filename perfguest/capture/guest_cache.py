# SPDX-License-Identifier: Apache-2.0
"""Guests' kernels kept across recordings: ``$XDG_CACHE_HOME/perfguest/guest-kernels/KEY-FINGERPRINT.pb.gz``, as a recording's ``guests/kernels/`` has them.

A guest may give any build id, so a kernel is found again only by the fingerprint of what was read (:func:`perfguest.guest.wire.fingerprint`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from pathlib import Path

#: Kernels that are kept, the latest used.
_MOST = 32
_NAME = re.compile(r"([0-9a-f]{1,128})-([0-9a-f]{64})\.pb\.gz")


def cache_directory() -> Path | None:
    """None if there is no place for one."""
    base, home = Path(os.environ.get("XDG_CACHE_HOME", "")), Path(os.environ.get("HOME", ""))
    if not base.is_absolute():
        base = home / ".cache"
    return base / "perfguest/guest-kernels" if base.is_absolute() else None


class KernelCache:
    """The kernels in ``directory``. One that cannot be used (it is not there and cannot be made, or others may write to it) is as an empty one."""

    def __init__(self, directory: Path | None) -> None:
        self._fd = -1
        self._names: dict[str, str] = {}
        if directory is None:
            return
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            status = os.fstat(self._fd)
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                self.close()
                return
            self._names = {
                match[2]: match[0]
                for name in os.listdir(self._fd)  # noqa: PTH208 - by descriptor
                if (match := _NAME.fullmatch(name))
            }

    def known(self) -> list[str]:
        """Fingerprints of the kernels that are here."""
        return list(self._names)

    def fetch(self, fingerprint: str, to: Path) -> bool:
        """Copies the kernel to a file; False if it is not here. Raises OSError if the file cannot be written."""
        name = self._names.get(fingerprint)
        if name is None:
            return False
        try:
            source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            del self._names[fingerprint]
            return False
        with os.fdopen(source, "rb") as packed:
            _copy(packed.fileno(), to)
            with contextlib.suppress(OSError):
                os.utime(source)
        return True

    def keep(self, key: str, fingerprint: str, path: Path) -> None:
        """Takes a copy of the file; without one if there is no room."""
        name = f"{key}-{fingerprint}.pb.gz"
        if self._fd < 0 or fingerprint in self._names or not _NAME.fullmatch(name):
            return
        temporary = f".new.{os.getpid()}"
        try:
            with path.open("rb") as packed:
                _copy(packed.fileno(), Path(f"/proc/self/fd/{self._fd}/{temporary}"))
            os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            self._names[fingerprint] = name
            self._prune()
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._names = {}

    def _prune(self) -> None:
        def age(fingerprint: str) -> int:
            return os.stat(self._names[fingerprint], dir_fd=self._fd, follow_symlinks=False).st_mtime_ns

        for fingerprint in sorted(self._names, key=age)[:-_MOST]:
            os.unlink(self._names.pop(fingerprint), dir_fd=self._fd)


def _copy(source: int, to: Path) -> None:
    target = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(target, "wb") as copy, os.fdopen(os.dup(source), "rb") as packed:
        shutil.copyfileobj(packed, copy, 1 << 20)
