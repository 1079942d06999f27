# SPDX-License-Identifier: Apache-2.0
"""Waits for file descriptors of any number, which select(2) does not: a host may have a thousand CPUs' streams open."""

from __future__ import annotations

import math
import select
from collections.abc import Iterable


def wait_readable(fds: Iterable[int], seconds: float | None = None) -> set[int]:
    """Those that are readable or at their end, as soon as there is one; none after the time given."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if seconds is None else math.ceil(max(0.0, seconds) * 1000))}
