# SPDX-License-Identifier: Apache-2.0
"""Guests' kernels kept across recordings, in ``$XDG_CACHE_HOME/perfguest/guest-kernels``. Of each kernel there are:

- ``KEY-FINGERPRINT.pb.gz``, as a recording's ``guests/kernels/`` has it. A guest may give any build id, so a kernel is found again only by the fingerprint of
  what was read (:func:`perfguest.guest.wire.fingerprint`).
- ``KEY-FINGERPRINT.tables``, where they could be made, what its next reader need not decode (:mod:`perfguest.guest.tables`): 8 bytes ``PGTABLES``, the
  SHA-256 of the ``.pb.gz`` and of all that follows here, and a KernelTables in protobuf.

A file is used only if it is this user's, and is what its name and its hash say.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import zlib
from pathlib import Path

from google.protobuf.message import DecodeError

from perfguest.capture.guest_check import check_kernel, check_tables
from perfguest.errors import CaptureError
from perfguest.formats.guest_snapshot import MAX_UNPACKED
from perfguest.guest import wire
from perfguest.proto import guest_pb2 as pb
from perfguest.proto import tables_pb2

#: Kernels that are kept, the latest used, and their bytes in all.
MOST_KERNELS, MOST_BYTES = 32, 512 << 20
_MAX_PACKED = 256 << 20
_NAME = re.compile(r"([0-9a-f]{1,128})-([0-9a-f]{64})\.(pb\.gz|tables)")
_MAGIC = b"PGTABLES"
_HASH = hashlib.sha256().digest_size
_GZIP = 31


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
        # Names of files without their suffix, by fingerprint.
        self._names: dict[str, str] = {}
        self._with_tables: set[str] = set()
        if directory is None:
            return
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            status = os.fstat(self._fd)
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                self.close()
                return
            found = [match for name in os.listdir(self._fd) if (match := _NAME.fullmatch(name))]  # noqa: PTH208 - by descriptor
            self._names = {match[2]: f"{match[1]}-{match[2]}" for match in found if match[3] == "pb.gz"}
            self._with_tables = {match[2] for match in found if match[3] == "tables"} & self._names.keys()

    def known(self) -> list[str]:
        """Fingerprints of the kernels that are here."""
        return list(self._names)

    def fetch(self, fingerprint: str, to: Path) -> bool:
        """Copies the kernel to a file; False if it is not here, or damaged. Raises OSError if the file cannot be written."""
        if fingerprint not in self._names:
            return False
        packed = self._read(f"{self._names[fingerprint]}.pb.gz", _MAX_PACKED)
        if packed is None or not self._is_kernel(packed, fingerprint):
            self._forget(fingerprint)
            return False
        _write(to, packed)
        return True

    def keep(self, key: str, fingerprint: str, path: Path) -> None:
        """Takes a copy of the file; without one if there is no room."""
        name = f"{key}-{fingerprint}"
        if self._fd < 0 or fingerprint in self._names or not _NAME.fullmatch(f"{name}.pb.gz"):
            return
        with contextlib.suppress(OSError):
            if path.stat().st_size <= _MAX_PACKED and self._place(f"{name}.pb.gz", path.read_bytes()):
                self._names[fingerprint] = name
                self._prune()

    def tables(self, fingerprint: str) -> tables_pb2.KernelTables | None:
        """Of a kernel that is here; None where there are none, or they are damaged."""
        if fingerprint not in self._with_tables:
            return None
        data = self._read(f"{self._names[fingerprint]}.tables", wire.LIMITS[wire.Kind.TABLES])
        body = _body(data or b"")
        tables = tables_pb2.KernelTables()
        try:
            tables.ParseFromString(body or b"")
            check_tables(tables, tables.raw, fingerprint)
        except (DecodeError, CaptureError):
            self._with_tables.discard(fingerprint)
            self._remove(f"{self._names[fingerprint]}.tables")
            return None
        return tables

    def with_tables(self) -> list[str]:
        """Fingerprints of the kernels whose tables are here, as far as names tell, the latest used first."""

        def used(fingerprint: str) -> int:
            with contextlib.suppress(OSError):
                return os.stat(f"{self._names[fingerprint]}.tables", dir_fd=self._fd, follow_symlinks=False).st_mtime_ns
            return 0

        return sorted(self._with_tables, key=used, reverse=True)

    def keep_tables(self, fingerprint: str, tables: tables_pb2.KernelTables) -> None:
        """Of a kernel that is here."""
        if self._fd < 0 or fingerprint not in self._names or fingerprint in self._with_tables:
            return
        packed = self._read(f"{self._names[fingerprint]}.pb.gz", _MAX_PACKED)
        if packed is not None:
            body = hashlib.sha256(packed).digest() + tables.SerializeToString()
            if self._place(f"{self._names[fingerprint]}.tables", _MAGIC + body[:_HASH] + hashlib.sha256(body).digest() + body[_HASH:]):
                self._with_tables.add(fingerprint)
                self._prune()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._names, self._with_tables = {}, set()

    def _is_kernel(self, packed: bytes, fingerprint: str) -> bool:
        if fingerprint in self._with_tables:
            data = self._read(f"{self._names[fingerprint]}.tables", wire.LIMITS[wire.Kind.TABLES]) or b""
            if _body(data) is not None and data[len(_MAGIC) : len(_MAGIC) + _HASH] == hashlib.sha256(packed).digest():
                return True
        stream, kernel = zlib.decompressobj(wbits=_GZIP), pb.Kernel()
        try:
            kernel.ParseFromString(stream.decompress(packed, MAX_UNPACKED))
            check_kernel(kernel)
        except (zlib.error, DecodeError, CaptureError):
            return False
        return stream.eof and not stream.unused_data and wire.fingerprint(kernel) == fingerprint

    def _read(self, name: str, most: int) -> bytes | None:
        """None for what is no file of this user's."""
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

    def _place(self, name: str, data: bytes) -> bool:
        temporary = f".new.{os.getpid()}"
        try:
            _write(Path(f"/proc/self/fd/{self._fd}/{temporary}"), data)
            os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            self._remove(temporary)
            return False
        return True

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._fd)

    def _forget(self, fingerprint: str) -> None:
        name = self._names.pop(fingerprint)
        self._with_tables.discard(fingerprint)
        for suffix in ("pb.gz", "tables"):
            self._remove(f"{name}.{suffix}")

    def _prune(self) -> None:
        """Forgets the longest unused beyond the bounds."""
        sizes: dict[str, tuple[int, int]] = {}
        for fingerprint, name in self._names.items():
            size = newest = 0
            for suffix in ("pb.gz", "tables"):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(f"{name}.{suffix}", dir_fd=self._fd, follow_symlinks=False)
                    size, newest = size + status.st_size, max(newest, status.st_mtime_ns)
            sizes[fingerprint] = newest, size
        total = 0
        for number, fingerprint in enumerate(sorted(sizes, key=lambda one: sizes[one][0], reverse=True)):
            total += sizes[fingerprint][1]
            if number >= MOST_KERNELS or total > MOST_BYTES:
                self._forget(fingerprint)


def _body(data: bytes) -> bytes | None:
    """The tables in a file of them; None if it is damaged."""
    hashes, body = data[len(_MAGIC) : len(_MAGIC) + 2 * _HASH], data[len(_MAGIC) + 2 * _HASH :]
    if not data.startswith(_MAGIC) or hashlib.sha256(hashes[:_HASH] + body).digest() != hashes[_HASH:]:
        return None
    return body


def _write(to: Path, data: bytes) -> None:
    target = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(target, "wb") as copy:
        copy.write(data)
