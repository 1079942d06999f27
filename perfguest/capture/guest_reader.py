# SPDX-License-Identifier: Apache-2.0
"""The recorder's side of the process that reads one guest's memory (:mod:`perfguest.guest.reader`). Never waits for it, and believes nothing that it says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perfguest.errors import CaptureError
from perfguest.guest import wire
from perfguest.guest.wire import Kind

_READ_SIZE = 1 << 20


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
    """What the reader sent: ``payload`` is bytes of a protobuf message, or for ``HELLO`` and ``DONE`` a JSON object."""

    kind: Kind
    payload: bytes
    value: dict[str, Any]


class ReaderProcess:
    """One reader, from its start to its end. ``fd`` becomes readable when it has said something or ended; ``memory`` is handed over and closed here.

    To be made in the thread that lives as long as it: the reader dies with that. Methods raise :class:`CaptureError` with why there will be nothing more.
    """

    def __init__(self, memory: int, limits: ReaderLimits, command: Sequence[str] = ()) -> None:
        self._limits = limits
        self._received = bytearray()
        self._unsent = bytearray()
        self._answered = 0
        self._asked: tuple[float, float] | None = None
        ours, theirs = socket.socketpair()
        self._socket = ours
        try:
            options = json.dumps({"memory": limits.memory, "cpu": limits.cpu})
            arguments = [*(command or _COMMAND), str(memory), str(theirs.fileno()), str(os.getpid()), options]
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(memory, theirs.fileno()),
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise CaptureError(f"the reader of guests' memory cannot be started: {error.strerror}", "Record with --guest-memory off.") from error
        finally:
            theirs.close()
            os.close(memory)
        ours.setblocking(False)
        self.fd = ours.fileno()
        self._begin()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def busy(self) -> bool:
        """Whether it owes an answer (at first its ``HELLO``)."""
        return self._asked is not None

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def ask(self, request: dict[str, Any]) -> None:
        self._unsent += wire.pack(Kind.REQUEST, request)
        self._begin()
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

    def cpu_seconds(self) -> float:
        """That it has used. 0 if it has ended."""
        try:
            # Of a process by its id: clock_getcpuclockid(3).
            return time.clock_gettime((~self._process.pid << 3) | 2)
        except OSError:
            return 0.0

    def close(self) -> None:
        """Afterwards it is gone."""
        self._process.kill()
        self._process.wait()
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
        if kind not in (Kind.HELLO, Kind.DONE):
            return Message(kind, payload, {})
        self._asked = None
        try:
            value = json.loads(payload)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise CaptureError("the reader of the guest's memory sent garbage", "The guest may be hostile. Recording went on without it.")
        return Message(kind, b"", value)

    def _fate(self) -> str:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "closed its channel"
        if status == -signal.SIGXCPU:
            return "used up its time"
        return f"was ended by signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"


_FROM_READER = {kind.value for kind in Kind if kind != Kind.REQUEST}
# -P: the directory that it runs in holds no modules.
_COMMAND = (sys.executable, "-P", "-m", "perfguest.guest.reader")


def _environment() -> dict[str, str]:
    """Modules are found where this process finds them. Libraries are to start no threads, which would only wait."""
    path = os.pathsep.join(os.path.abspath(part) for part in sys.path)  # noqa: PTH100 - an empty part is the current directory
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**{name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")}, **threads, "PYTHONPATH": path}
