# SPDX-License-Identifier: Apache-2.0
"""Makes names safe to print. Names come out of guests: they may hold line breaks, terminal sequences, or text that a parser takes for something else.

What is not shown as it is becomes ``\\xNN``, one for each byte of its UTF-8 form; a backslash too, so that two names never look the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection


def hex_escape(text: str) -> str:
    r"""``\xNN`` for each byte. Bytes that a reader could not decode (``surrogateescape``) come back as they were in the file."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def escape(text: str, also: Collection[str] = "") -> str:
    """``text`` in printable characters only: no control or format characters, no line or paragraph separators, no backslash that is not an escape.

    ``also``: further characters that the format at hand cannot take.
    """
    if text.isprintable() and "\\" not in text and not any(char in text for char in also):
        return text
    return "".join(char if char.isprintable() and char != "\\" and char not in also else hex_escape(char) for char in text)


def escape_matches(pattern: re.Pattern[str], text: str) -> str:
    """``text`` with everything that ``pattern`` matches escaped; for what is harmful only where it stands."""
    return pattern.sub(lambda match: hex_escape(match[0]), text)
