# SPDX-License-Identifier: Apache-2.0
"""The few words of QMP (docs/interop/qmp-spec.txt of QEMU) that the lab says to its host's QEMU."""

from __future__ import annotations

import json
import socket
from typing import Any

from perfguest.errors import LabError


class Qmp:
    """A QMP monitor over a connected socket."""

    def __init__(self, sock: socket.socket, timeout: float = 60.0) -> None:
        sock.settimeout(timeout)
        self._socket = sock
        self._file = sock.makefile("rb")
        self._answer("QMP")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """What QEMU returns for ``command``. Raises LabError for its errors and when it does not answer."""
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except OSError as error:
            raise LabError(f"QMP {command}: {error.strerror}: the lab's QEMU is gone") from error
        return self._answer("return")

    def _answer(self, key: str) -> Any:
        while True:
            try:
                line = self._file.readline()
            except OSError as error:
                raise LabError(f"QMP: {error}: the lab's QEMU does not answer") from error
            if not line:
                raise LabError("QMP: the lab's QEMU is gone")
            message = json.loads(line)
            if key in message:
                return message[key]
            if "error" in message:
                raise LabError(f"QMP: {message['error'].get('desc', message['error'])}")
