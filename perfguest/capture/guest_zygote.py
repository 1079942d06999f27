# SPDX-License-Identifier: Apache-2.0
"""The recorder's side of :mod:`perfguest.guest.zygote`, which forks the readers of guests' memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from perfguest.capture.waiting import wait_readable
from perfguest.errors import CaptureError

# Loading all that a reader needs, on a busy machine.
_START_SECONDS = 60.0
_MESSAGE = 4096
# -P: the directory that it runs in holds no modules.
_COMMAND = (sys.executable, "-P", "-m", "perfguest.guest.zygote")


class Zygote:
    """To be made in the thread that lives as long as it: it dies with that, and its readers with it. Raises :class:`CaptureError` if it cannot be started."""

    def __init__(self, command: Sequence[str] = ()) -> None:
        # Exit statuses of readers that have ended.
        self._ended: dict[int, int] = {}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [*(command or _COMMAND), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            self._socket.close()
            raise CaptureError(f"the reader of guests' memory cannot be started: {error.strerror}", "Record with --guest-memory off.") from error
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        """That it has used itself, nearly all of it to load. 0 if it has ended."""
        return cpu_seconds(self.pid)

    def fork(self, memory: int, channel: int, limits: dict[str, int]) -> tuple[int, int]:
        """(pid, pidfd) of a new reader, which has these two descriptors. The pidfd is the caller's. Raises :class:`CaptureError`."""
        try:
            socket.send_fds(self._socket, [json.dumps(limits).encode()], [memory, channel])
            while True:
                value, fds = self._receive(_START_SECONDS)
                if "pid" in value:
                    return value["pid"], fds[0]
        except OSError as error:
            raise CaptureError("the reader of guests' memory cannot be started", "Record with --guest-memory off.") from error

    def status(self, pid: int, seconds: float) -> int | None:
        """How a reader ended: its exit status, or minus the number of the signal; None if it has not within so many seconds."""
        while pid not in self._ended:
            try:
                self._receive(seconds)
            except OSError:
                return None
        return self._ended.pop(pid)

    def close(self) -> None:
        """Afterwards it is gone, and its readers are or will be."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _receive(self, seconds: float) -> tuple[dict[str, Any], list[int]]:
        if not wait_readable([self._socket.fileno()], seconds):
            raise TimeoutError
        data, fds, _, _ = socket.recv_fds(self._socket, _MESSAGE, 1)
        if not data:
            raise ConnectionResetError
        value = json.loads(data)
        if "ended" in value:
            self._ended[value["ended"]] = value["status"]
        return value, fds


def cpu_seconds(pid: int) -> float:
    """That a process has used; 0 if it has ended."""
    try:
        # Of a process by its id: clock_getcpuclockid(3).
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _environment() -> dict[str, str]:
    """Modules are found where this process finds them. Libraries are to start no threads, which would only wait."""
    path = os.pathsep.join(os.path.abspath(part) for part in sys.path)  # noqa: PTH100 - an empty part is the current directory
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**{name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")}, **threads, "PYTHONPATH": path}
