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
import re
import zlib
from pathlib import Path

from google.protobuf.message import DecodeError

from perfguest.capture.guest_check import check_kernel, check_tables
from perfguest.errors import CaptureError
from perfguest.formats.guest_snapshot import MAX_UNPACKED
from perfguest.guest import wire
from perfguest.private_directory import PrivateDirectory, write_new
from perfguest.proto import guest_pb2 as pb
from perfguest.proto import tables_pb2

#: Kernels that are kept, the latest used, and their bytes in all.
MOST_KERNELS, MOST_BYTES = 32, 512 << 20
_MAX_PACKED = 256 << 20
_NAME = re.compile(r"([0-9a-f]{1,128})-([0-9a-f]{64})\.(pb\.gz|tables)")
_MAGIC = b"PGTABLES"
_HASH = hashlib.sha256().digest_size
_GZIP = 31


class KernelCache:
    """The kernels in ``directory``. One that cannot be used (it is not there and cannot be made, or others may write to it) is as an empty one."""

    def __init__(self, directory: Path | None) -> None:
        self._files = PrivateDirectory(directory)
        found = [match for name in self._files.names() if (match := _NAME.fullmatch(name))]
        # Names of files without their suffix, by fingerprint.
        self._names = {match[2]: f"{match[1]}-{match[2]}" for match in found if match[3] == "pb.gz"}
        self._with_tables = {match[2] for match in found if match[3] == "tables"} & self._names.keys()

    def known(self) -> list[str]:
        """Fingerprints of the kernels that are here."""
        return list(self._names)

    def fetch(self, fingerprint: str, to: Path) -> bool:
        """Copies the kernel to a file; False if it is not here, or damaged. Raises OSError if the file cannot be written."""
        if fingerprint not in self._names:
            return False
        packed = self._files.read(f"{self._names[fingerprint]}.pb.gz", _MAX_PACKED)
        if packed is None or not self._is_kernel(packed, fingerprint):
            self._forget(fingerprint)
            return False
        write_new(to, packed)
        return True

    def keep(self, key: str, fingerprint: str, path: Path) -> None:
        """Takes a copy of the file; without one if there is no room."""
        name = f"{key}-{fingerprint}"
        if not self._files or fingerprint in self._names or not _NAME.fullmatch(f"{name}.pb.gz"):
            return
        with contextlib.suppress(OSError):
            if path.stat().st_size <= _MAX_PACKED and self._files.place(f"{name}.pb.gz", path.read_bytes()):
                self._names[fingerprint] = name
                self._prune()

    def tables(self, fingerprint: str) -> tables_pb2.KernelTables | None:
        """Of a kernel that is here; None where there are none, or they are damaged."""
        if fingerprint not in self._with_tables:
            return None
        data = self._files.read(f"{self._names[fingerprint]}.tables", wire.LIMITS[wire.Kind.TABLES])
        body = _body(data or b"")
        tables = tables_pb2.KernelTables()
        try:
            tables.ParseFromString(body or b"")
            check_tables(tables, tables.raw, fingerprint)
        except (DecodeError, CaptureError):
            self._with_tables.discard(fingerprint)
            self._files.remove(f"{self._names[fingerprint]}.tables")
            return None
        return tables

    def with_tables(self) -> list[str]:
        """Fingerprints of the kernels whose tables are here, as far as names tell, the latest used first."""

        return sorted(self._with_tables, key=lambda one: self._files.size_and_use(f"{self._names[one]}.tables")[1], reverse=True)

    def keep_tables(self, fingerprint: str, tables: tables_pb2.KernelTables) -> None:
        """Of a kernel that is here."""
        if not self._files or fingerprint not in self._names or fingerprint in self._with_tables:
            return
        packed = self._files.read(f"{self._names[fingerprint]}.pb.gz", _MAX_PACKED)
        if packed is not None:
            body = hashlib.sha256(packed).digest() + tables.SerializeToString()
            if self._files.place(f"{self._names[fingerprint]}.tables", _MAGIC + body[:_HASH] + hashlib.sha256(body).digest() + body[_HASH:]):
                self._with_tables.add(fingerprint)
                self._prune()

    def close(self) -> None:
        self._files.close()
        self._names, self._with_tables = {}, set()

    def _is_kernel(self, packed: bytes, fingerprint: str) -> bool:
        if fingerprint in self._with_tables:
            data = self._files.read(f"{self._names[fingerprint]}.tables", wire.LIMITS[wire.Kind.TABLES]) or b""
            if _body(data) is not None and data[len(_MAGIC) : len(_MAGIC) + _HASH] == hashlib.sha256(packed).digest():
                return True
        stream, kernel = zlib.decompressobj(wbits=_GZIP), pb.Kernel()
        try:
            kernel.ParseFromString(stream.decompress(packed, MAX_UNPACKED))
            check_kernel(kernel)
        except (zlib.error, DecodeError, CaptureError):
            return False
        return stream.eof and not stream.unused_data and wire.fingerprint(kernel) == fingerprint

    def _forget(self, fingerprint: str) -> None:
        name = self._names.pop(fingerprint)
        self._with_tables.discard(fingerprint)
        for suffix in ("pb.gz", "tables"):
            self._files.remove(f"{name}.{suffix}")

    def _prune(self) -> None:
        """Forgets the longest unused beyond the bounds."""
        sizes: dict[str, tuple[int, int]] = {}
        for fingerprint, name in self._names.items():
            files = [self._files.size_and_use(f"{name}.{suffix}") for suffix in ("pb.gz", "tables")]
            sizes[fingerprint] = max(used for _, used in files), sum(size for size, _ in files)
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
