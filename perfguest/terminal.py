# SPDX-License-Identifier: Apache-2.0
"""Text for a terminal: names out of guests, of VMs and in damaged files may hold anything."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """The text with everything escaped that could do something to a terminal, but the characters to ``keep``. What is printable stays as it is."""
    return "".join(char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text)
