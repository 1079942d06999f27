# SPDX-License-Identifier: Apache-2.0
"""The agent's side of one guest: its VMM, its console, its heartbeat. Standard library alone."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO

from perfguest.capture.lab.wire import Kind

_UP = b"PERFGUEST-GUEST-UP"
_FAILED = (b"PERFGUEST-WORKLOAD-FAILED", b"KVM internal error", b"Kernel panic")
_ENDED = b"terminating on signal"
_KALLSYMS_END = b"PERFGUEST-KALLSYMS-END\n"


class Guest:
    """Starts a VMM and reads its console. ``settings``: ``argv``, ``directory`` (for console and kallsyms) and ``stall`` in seconds."""

    def __init__(
        self,
        number: int,
        settings: dict[str, str],
        send: Callable[[Kind, bytes], None],
        watch: Callable[[int, int, Callable[[], None] | None], None],
    ) -> None:
        self._number = number
        self._settings = settings
        self._send = send
        self._watch = watch
        self._directory = Path(settings["directory"])
        self._silent = 0.0
        self._line = b""
        self._up = False
        self._over = False
        self._ended_from_outside = False
        self._vmm: subprocess.Popen[bytes] | None = None
        self._console: IO[bytes] | None = None

    def start(self) -> None:
        """Starts the VMM; its console and its own messages come through one pipe."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._console = (self._directory / "console").open("wb", buffering=0)
        self._vmm = subprocess.Popen(
            self._settings["argv"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )
        assert self._vmm.stdout  # noqa: S101
        self._watch(self._vmm.stdout.fileno(), selectors.EVENT_READ, self._read)

    def tick(self, seconds: float) -> None:
        """Counts ``seconds`` without a sign of life, unless the VMM is stopped."""
        if self._over or not self._vmm:
            return
        self._silent += seconds
        limit = float(self._settings["stall"])
        if self._silent > limit:
            if _stopped(self._vmm.pid):
                self._silent = 0.0
            else:
                self._lost(f"no {'heartbeat' if self._up else 'word on its console'} for {limit:.0f} s")

    def _read(self) -> None:
        assert self._vmm and self._vmm.stdout and self._console  # noqa: S101
        data = os.read(self._vmm.stdout.fileno(), 65536)
        if not data:
            self._watch(self._vmm.stdout.fileno(), 0, None)
            status = self._vmm.wait()
            # SIGKILL and SIGTERM are somebody's will, not an accident of the emulator.
            self._ended_from_outside |= status == -9
            self._lost(f"its VMM ended with status {status}")
            return
        self._silent = 0.0
        self._console.write(data)
        self._send(Kind.GUEST_CONSOLE, json.dumps({"guest": self._number}).encode() + b"\n" + data)
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-4096:]
        for line in lines:
            self._look_at(line)

    def _look_at(self, line: bytes) -> None:
        if line.strip() == _UP and not self._up:
            if not self._take_kallsyms():
                return
            self._up = True
            assert self._vmm  # noqa: S101
            self._send(Kind.GUEST_UP, json.dumps({"guest": self._number, "pid": self._vmm.pid}).encode())
        elif any(word in line for word in _FAILED):
            self._lost(line.decode(errors="replace").strip())
        elif _ENDED in line:
            self._ended_from_outside = True

    def _take_kallsyms(self) -> bool:
        raw = self._directory / "kallsyms.raw"
        content = raw.read_bytes() if raw.exists() else b""
        if content.endswith(_KALLSYMS_END):
            (self._directory / "kallsyms").write_bytes(content.removesuffix(_KALLSYMS_END))
            raw.unlink()
            return True
        self._lost("its kallsyms did not come out whole")
        return False

    def _lost(self, reason: str) -> None:
        if not self._over:
            self._over = True
            payload = {"guest": self._number, "reason": reason, "ended": self._ended_from_outside}
            self._send(Kind.GUEST_LOST, json.dumps(payload).encode())


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
    except OSError:
        return False
