# SPDX-License-Identifier: Apache-2.0
"""What goes between the recorder and the process that reads a guest: frames of 8 bytes' head, length and kind (32 bits each, little-endian), and that payload.

The recorder asks one thing at a time. An answer is any number of messages of ``proto/guest.proto`` and one ``DONE``, whose JSON says how it went. Within it a
reader may ask back once or more: after ``WANT`` the recorder sends ``TABLES`` (``proto/tables.proto``). A request for tables is followed by ``RAW``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from enum import IntEnum
from typing import Any

from perfguest.formats.guest_snapshot import FORMAT_VERSION
from perfguest.proto import guest_pb2 as pb

HEAD = struct.Struct("<II")


class Kind(IntEnum):
    """Of a frame. ``REQUEST``, ``HELLO``, ``DONE`` and ``WANT`` are JSON objects; the others messages of their names."""

    REQUEST = 1
    HELLO = 2
    DONE = 3
    KERNEL = 4
    EVENT = 5
    BINARY = 6
    TABLES = 7
    RAW = 8
    WANT = 9


#: The longest payload of each kind, in bytes. Longer ones are not sent, and not taken.
LIMITS = {
    Kind.REQUEST: 4 << 20,
    Kind.HELLO: 1 << 16,
    Kind.DONE: 4 << 20,
    Kind.KERNEL: 192 << 20,
    Kind.EVENT: 48 << 20,
    Kind.BINARY: 80 << 20,
    Kind.TABLES: 64 << 20,
    Kind.RAW: 64 << 20,
    Kind.WANT: 1 << 12,
}


def frame(kind: Kind, payload: bytes) -> bytes:
    """Raises ValueError if it is too long."""
    if len(payload) > LIMITS[kind]:
        raise ValueError(f"{kind.name.lower()} of {len(payload)} bytes is longer than {LIMITS[kind]}")
    return HEAD.pack(len(payload), kind) + payload


def pack(kind: Kind, value: dict[str, Any]) -> bytes:
    return frame(kind, json.dumps(value).encode())


def send(fd: int, data: bytes) -> None:
    """Writes all of it, waiting. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def receive(fd: int) -> dict[str, Any] | None:
    """The next request, waiting for it; None at the end."""
    head = _read(fd, HEAD.size)
    if len(head) < HEAD.size:
        return None
    length, kind = HEAD.unpack(head)
    if kind != Kind.REQUEST or length > LIMITS[Kind.REQUEST]:
        return None
    payload = _read(fd, length)
    return json.loads(payload) if len(payload) == length else None


def receive_payload(fd: int, kind: Kind) -> bytes:
    """The payload of the next frame, which must be of this kind, waiting for it. Raises OSError at the end and for another frame."""
    head = _read(fd, HEAD.size)
    length, number = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0)
    if number != kind or length > LIMITS[kind]:
        raise OSError(errno.EPROTO, f"no {kind.name.lower()} came")
    payload = _read(fd, length)
    if len(payload) != length:
        raise OSError(errno.EPROTO, f"half a {kind.name.lower()} came")
    return payload


def fingerprint(kernel: pb.Kernel) -> str:
    """Tells kernels apart that give the same build id, as a guest may give any. Text is left out: a running kernel patches its own."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} ".encode())
    parts = (kernel.release.encode(), kernel.build_id, kernel.symbols.addresses, kernel.symbols.types, kernel.symbols.names)
    for part in (*parts, kernel.orc.addresses, kernel.orc.entries):
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.hexdigest()


def _read(fd: int, size: int) -> bytes:
    parts, left = [], size
    while left and (part := os.read(fd, min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
