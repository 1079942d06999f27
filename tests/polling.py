# SPDX-License-Identifier: Apache-2.0
"""Waits for what only looking again and again can tell. Everything else has a descriptor to wait on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_PAUSE_SECONDS = 0.005


def wait_until(condition: Callable[[], T], seconds: float, told: Callable[[], object] = str) -> T:
    """What ``condition`` gives once that is true; fails after so many seconds, with what is ``told`` then."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, told()
        time.sleep(_PAUSE_SECONDS)
    return found
