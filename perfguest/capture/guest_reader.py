# SPDX-License-Identifier: Apache-2.0
"""The recorder's side of the process that reads one guest's memory (:mod:`perfguest.guest.reader`). Never waits for it, and believes nothing that it says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from dataclasses import dataclass
from typing import Any

from perfguest.capture.guest_zygote import Zygote, cpu_seconds
from perfguest.capture.waiting import wait_readable
from perfguest.errors import CaptureError
from perfguest.guest import wire
from perfguest.guest.wire import Kind

_READ_SIZE = 1 << 20
# A process that was killed is gone as soon as it gets a CPU.
_END_SECONDS = 10.0


@dataclass(frozen=True)
class ReaderLimits:
    """Of one reader. ``memory``: bytes of address space beyond what Python and its libraries take; ``cpu``: seconds in all; ``request_cpu``: for one request;
    ``request_wall``: of waiting for one answer; ``answer``: bytes of one answer."""

    memory: int = 1 << 30
    cpu: int = 3600
    request_cpu: float = 60.0
    request_wall: float = 300.0
    answer: int = 256 << 20


@dataclass(frozen=True)
class Message:
    """What the reader sent: ``payload`` is bytes of a protobuf message, or ``value`` what was JSON."""

    kind: Kind
    payload: bytes
    value: dict[str, Any]


class ReaderProcess:
    """One reader, from its start to its end. ``fd`` becomes readable when it has said something or ended; ``memory`` is handed over and closed here.

    Methods raise :class:`CaptureError` with why there will be nothing more.
    """

    def __init__(self, memory: int, limits: ReaderLimits, zygote: Zygote) -> None:
        self._limits = limits
        self._zygote = zygote
        self._received = bytearray()
        self._unsent = bytearray()
        self._answered = 0
        self._asked: tuple[float, float] | None = None
        self._socket, theirs = socket.socketpair()
        try:
            self.pid, self._pidfd = zygote.fork(memory, theirs.fileno(), {"memory": limits.memory, "cpu": limits.cpu})
        except CaptureError:
            self._socket.close()
            raise
        finally:
            theirs.close()
            os.close(memory)
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()
        self._begin()

    @property
    def busy(self) -> bool:
        """Whether it owes an answer (at first its ``HELLO``)."""
        return self._asked is not None

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def ask(self, request: dict[str, Any], behind: bytes = b"") -> None:
        """``behind``: a frame that follows the request."""
        self._unsent += wire.pack(Kind.REQUEST, request) + behind
        self._begin()
        self.write()

    def push(self, data: bytes) -> None:
        """Sends a frame that the reader wants for its answer."""
        self._unsent += data
        self.write()

    def write(self) -> None:
        """Sends what the socket takes now."""
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            return
        except OSError:
            # It has ended: read() says how.
            self._unsent.clear()

    def read(self) -> list[Message]:
        """What has come whole since the last time. Raises once it has ended or sent what cannot be."""
        ended = False
        # One round only: a reader that sends without end must not keep us here.
        for _ in range(16):
            try:
                data = self._socket.recv(_READ_SIZE)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                ended = True
                break
            self._received += data
        messages = self._split()
        if ended and not messages:
            raise CaptureError(f"the reader of the guest's memory {self._fate()}", "Recording went on without it.")
        return messages

    def check_time(self) -> None:
        """Raises if the answer takes too long."""
        if self._asked is None:
            return
        wall, cpu = self._asked
        if self.cpu_seconds() - cpu > self._limits.request_cpu or time.monotonic() - wall > self._limits.request_wall:
            raise CaptureError("reading the guest's memory took too long", "Recording went on without it.")

    def busy_seconds(self) -> float:
        """For how long it has owed an answer."""
        return time.monotonic() - self._asked[0] if self._asked else 0.0

    def cpu_seconds(self) -> float:
        """That it has used. 0 if it has ended."""
        return cpu_seconds(self.pid)

    def close(self) -> None:
        """Afterwards it is gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        wait_readable([self._pidfd], _END_SECONDS)
        os.close(self._pidfd)
        self._socket.close()

    def _begin(self) -> None:
        self._asked = (time.monotonic(), self.cpu_seconds())
        self._answered = 0

    def _split(self) -> list[Message]:
        messages = []
        at = 0
        while len(self._received) - at >= wire.HEAD.size:
            length, number = wire.HEAD.unpack_from(self._received, at)
            if number not in _FROM_READER or length > wire.LIMITS[Kind(number)]:
                raise CaptureError("the reader of the guest's memory sent garbage", "The guest may be hostile. Recording went on without it.")
            if len(self._received) - at - wire.HEAD.size < length:
                break
            at += wire.HEAD.size
            messages.append(self._message(Kind(number), bytes(self._received[at : at + length])))
            at += length
        del self._received[:at]
        return messages

    def _message(self, kind: Kind, payload: bytes) -> Message:
        self._answered += len(payload) + wire.HEAD.size
        if self._answered > self._limits.answer or self._asked is None:
            raise CaptureError("the reader of the guest's memory sent what was not asked for", "The guest may be hostile. Recording went on without it.")
        if kind not in _JSON:
            return Message(kind, payload, {})
        if kind != Kind.WANT:
            self._asked = None
        try:
            value = json.loads(payload)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise CaptureError("the reader of the guest's memory sent garbage", "The guest may be hostile. Recording went on without it.")
        return Message(kind, b"", value)

    def _fate(self) -> str:
        status = self._zygote.status(self.pid, 1.0)
        if status is None:
            return "closed its channel"
        if status == -signal.SIGXCPU:
            return "used up its time"
        return f"was ended by signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"


_JSON = {Kind.HELLO, Kind.DONE, Kind.WANT}
_FROM_READER = {kind.value for kind in Kind if kind != Kind.REQUEST}
