# SPDX-License-Identifier: Apache-2.0
"""What a program inside can ask of the lab outside: lines on the virtio port ``perfguest.control``, each answered by one line.

``inject-nmi`` sends one NMI to the host's CPU 0 and answers ``ok``; anything else, ``error WHY``.
"""

from __future__ import annotations

import os
import socket
import time

from perfguest.capture.lab.qmp import Qmp
from perfguest.errors import EnvironmentProblem, LabError

PORT_VARIABLE = "PERFGUEST_LAB_CONTROL"
_LONGEST_LINE = 1024


class ControlPort:
    """Our end of the port."""

    def __init__(self, sock: socket.socket, qmp: Qmp) -> None:
        self._socket = sock
        self._qmp = qmp
        self._pending = b""

    def read(self) -> None:
        """Answers the lines that have come."""
        *lines, self._pending = (self._pending + self._socket.recv(4096)).split(b"\n")
        self._pending = self._pending[:_LONGEST_LINE]
        for line in lines:
            self._socket.sendall(self._answer(line.decode(errors="replace").split()).encode() + b"\n")

    def _answer(self, words: list[str]) -> str:
        if words != ["inject-nmi"]:
            return "error not a request; there is one: inject-nmi"
        try:
            self._qmp.execute("inject-nmi")
        except LabError as error:
            return f"error {error.message}"
        return "ok"


def ask(request: str, count: int = 1, interval: float = 0.0) -> None:
    """For programs inside: sends one line ``count`` times, ``interval`` seconds apart, and waits for the answer to each.

    Raises EnvironmentProblem outside a lab, LabError when the lab refuses.
    """
    path = os.environ.get(PORT_VARIABLE)
    if not path:
        raise EnvironmentProblem("this is not a lab", f"Run it by `perfguest lab -- …`, which sets {PORT_VARIABLE}.")
    try:
        with open(path, "r+b", buffering=0) as port:  # noqa: PTH123
            for _ in range(count):
                port.write(request.encode() + b"\n")
                answer = b""
                while not answer.endswith(b"\n"):
                    answer += port.read(256) or b""
                if not answer.startswith(b"ok"):
                    raise LabError(f"the lab refused {request!r}: {answer.decode().strip().removeprefix('error ')}")
                time.sleep(interval)
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}", "One program at a time can have it open.") from error
