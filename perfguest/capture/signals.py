# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and its like, for a program that must bring things to their end in order."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from perfguest.capture.waiting import wait_readable

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Within, SIGINT, SIGTERM and SIGHUP raise as usual until :meth:`hold`; from then on they only make ``fd`` readable, however often they come."""

    def __enter__(self) -> Signals:
        self.fd, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._held = False
        self._received: list[int] = []
        self._former: dict[int, Any] = {number: signal.signal(number, self._handle) for number in _NUMBERS}
        self._former_wakeup = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._former_wakeup)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._wakeup)

    def hold(self) -> None:
        self._held = True

    @property
    def received(self) -> list[int]:
        """What came since :meth:`hold`, in order."""
        return list(self._received)

    def clear(self) -> None:
        """Makes ``fd`` unreadable until the next signal."""
        while wait_readable([self.fd], 0):
            os.read(self.fd, 64)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._received.append(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(128 + number)
