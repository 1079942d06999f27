# SPDX-License-Identifier: Apache-2.0
"""What the lab and the agent inside it say to each other over a virtio port: frames of one kind byte, a length and the payload.

The agent imports this with the standard library alone.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator

_HEADER = struct.Struct("<BI")
MAX_PAYLOAD = 1 << 20


class Kind(enum.IntEnum):
    """Kinds of frames. The payload is JSON where a dictionary or number is named, bytes otherwise."""

    # To the agent
    RUN = 1  # {"argv", "env", "cwd", "pty": null | [rows, columns]}
    STDIN = 2  # bytes; none: end of input
    SIGNAL = 3  # number, for the running command's process group
    RESIZE = 4  # [rows, columns]
    DMESG = 5
    POWEROFF = 6
    # From the agent
    HELLO = 32  # {"release"}
    GUEST_CONSOLE = 33  # {"guest"}, newline, bytes
    GUEST_UP = 34  # {"guest"}
    GUEST_LOST = 35  # {"guest", "reason"}
    STARTED = 36  # output and EXIT from here on are those of the last RUN
    STDOUT = 37  # bytes
    STDERR = 38  # bytes
    STDIN_TAKEN = 39  # number of bytes
    EXIT = 40  # status as in subprocess
    DMESG_PART = 41  # bytes; none: end
    ALIVE = 43  # every few seconds
    FAILED = 42  # {"reason"}: the lab cannot be used


def pack(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame, ready to send."""
    return _HEADER.pack(kind, len(payload)) + payload


class Unpacker:
    """Collects bytes as they arrive and gives whole frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Frames completed by ``data``. Raises ValueError on what is no frame."""
        self._pending += data
        while len(self._pending) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._pending)
            if length > MAX_PAYLOAD:
                raise ValueError(f"a frame of {length} bytes")
            end = _HEADER.size + length
            if len(self._pending) < end:
                return
            payload = bytes(self._pending[_HEADER.size : end])
            del self._pending[:end]
            yield Kind(kind), payload
