# SPDX-License-Identifier: Apache-2.0
"""What a recorder tells its user, on stderr: lines that stay, and one that is written over while it records."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

from perfguest.terminal import printable

# Of what compilers and perf say.
_LINES = "\n\t"


class Messages:
    """Lines to a stream, of which each is printable, whatever the text holds. The live line is there only if the stream is a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.live_line = self._stream.isatty()
        self._shown = False

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._print(f"perfguest: {printable(text, _LINES)}\n")

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def result(self, text: str) -> None:
        """A line that stays, without our name."""
        self.clear()
        self._print(f"{printable(text, _LINES)}\n")

    def live(self, text: str) -> None:
        """Shows the text in place of the one before."""
        if self.live_line:
            width = shutil.get_terminal_size().columns - 1
            self._print(f"\r{printable(text)[:width]}\x1b[K")
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            self._print("\r\x1b[K")
            self._shown = False

    def _print(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # The terminal is gone (SIGHUP): nobody reads this, and the recording is what counts.
            self.live_line = False


def human_size(size: float) -> str:
    """Bytes as ``3.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def plural(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")
