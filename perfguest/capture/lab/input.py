# SPDX-License-Identifier: Apache-2.0
"""Carries a command's standard input into the lab, never more of it ahead than the command takes."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable

from perfguest.capture.lab.wire import Kind

_AHEAD = 64 << 10


class Input:
    """The input of one command: a file descriptor, or bytes."""

    def __init__(self, source: int | bytes, selector: selectors.BaseSelector, send: Callable[[Kind, bytes], None]) -> None:
        self._fd = source if isinstance(source, int) else -1
        self._rest = memoryview(b"" if isinstance(source, int) else source)
        self._selector = selector
        self._send = send
        self._ahead = 0
        self._started = False

    def start(self) -> None:
        """The command runs: it can take input now."""
        self._started = True
        self._more()

    def taken(self, count: int) -> None:
        """The command took ``count`` bytes."""
        self._ahead -= count
        self._more()

    def close(self) -> None:
        """The command has ended."""
        self._watch(False)

    def _more(self) -> None:
        if self._fd >= 0:
            self._watch(self._ahead < _AHEAD)
            return
        while self._started and self._ahead < _AHEAD:
            chunk = bytes(self._rest[: _AHEAD - self._ahead])
            self._rest = self._rest[len(chunk) :]
            self._give(chunk)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _AHEAD - self._ahead)
        except BlockingIOError:
            return
        except OSError:
            # A terminal that hung up, or that is another job's: no more input comes from there.
            data = b""
        self._give(data)
        self._watch(self._started and self._ahead < _AHEAD)

    def _give(self, data: bytes) -> None:
        self._ahead += len(data)
        self._started = bool(data)
        self._send(Kind.STDIN, data)

    def _watch(self, wanted: bool) -> None:
        registered = self._fd >= 0 and self._fd in self._selector.get_map()
        if wanted and not registered and self._started:
            self._selector.register(self._fd, selectors.EVENT_READ, self._read)
        elif registered and not wanted:
            self._selector.unregister(self._fd)
