# SPDX-License-Identifier: Apache-2.0
"""A directory of this user's alone, for what is kept from one run to the next: files that are read and written whole."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def cache_directory(part: str) -> Path | None:
    """``$XDG_CACHE_HOME/perfguest/PART``, or below ~/.cache; None if there is neither."""
    base, home = Path(os.environ.get("XDG_CACHE_HOME", "")), Path(os.environ.get("HOME", ""))
    if not base.is_absolute():
        base = home / ".cache"
    return base / "perfguest" / part if base.is_absolute() else None


class PrivateDirectory:
    """Files in ``path``, which is made if it is not there. One that cannot be used (it cannot be made, or others may write to it) is as an empty one where
    nothing can be placed."""

    def __init__(self, path: Path | None) -> None:
        self._fd = -1
        if path is None:
            return
        with contextlib.suppress(OSError):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            status = os.fstat(self._fd)
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                self.close()

    def __bool__(self) -> bool:
        return self._fd >= 0

    def names(self) -> list[str]:
        """Of all that is in it."""
        if self._fd < 0:
            return []
        with contextlib.suppress(OSError):
            return os.listdir(self._fd)  # noqa: PTH208 - by descriptor
        return []

    def read(self, name: str, most: int) -> bytes | None:
        """None for what is no file of this user's, or has more than ``most`` bytes. The file counts as used now."""
        if self._fd < 0:
            return None
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size > most:
                    return None
                data = file.read(most + 1)
                os.utime(fd)
        except OSError:
            return None
        return data

    def place(self, name: str, data: bytes) -> bool:
        """The file appears whole, in the place of an older one, or not at all: False if there is no room."""
        if self._fd < 0:
            return False
        temporary = f".new.{os.getpid()}"
        try:
            write_new(Path(f"/proc/self/fd/{self._fd}/{temporary}"), data)
            os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            self.remove(temporary)
            return False
        return True

    def remove(self, name: str) -> None:
        """Nothing if it is not there."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._fd)

    def size_and_use(self, name: str) -> tuple[int, int]:
        """Bytes, and when it was used last (nanoseconds); (0, 0) if it is not there."""
        with contextlib.suppress(OSError):
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            return status.st_size, status.st_mtime_ns
        return 0, 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def write_new(to: Path, data: bytes) -> None:
    """Writes a file that nobody else may read. Raises OSError, also if it is there already."""
    target = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(target, "wb") as copy:
        copy.write(data)
