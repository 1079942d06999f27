# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest
from hypothesis import given, settings

from perfguest.writers.text import escape
from tests.profiles import hostile_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ksys_read", "ksys_read"),
        ("имя", "имя"),
        ("a\nb", r"a\x0ab"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b2J", r"\xc2\x9b2J"),
        ("\u202etxt", r"\xe2\x80\xaetxt"),
        ("\u2028", r"\xe2\x80\xa8"),
        ("\udcff", r"\xff"),
        ("\ud800", r"\xed\xa0\x80"),
        ("a\\x0ab", r"a\x5cx0ab"),
        ("", ""),
    ],
)
def test_what_is_not_printable_becomes_its_bytes(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_further_characters_are_escaped_on_demand() -> None:
    assert escape("a;b c", ";") == r"a\x3bb c"


@settings(deadline=None)
@given(hostile_text)
def test_escaped_text_is_printable_and_gives_the_bytes_back(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    assert re.sub(rb"\\x(..)", lambda match: bytes.fromhex(match[1].decode()), shown.encode()) == _bytes(text)


@settings(deadline=None)
@given(hostile_text, hostile_text)
def test_two_names_never_look_the_same(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (_bytes(one) == _bytes(other))


def _bytes(text: str) -> bytes:
    """The bytes that a name was read from: undecodable ones stand as surrogates U+DC80 to U+DCFF."""
    return b"".join(char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass") for char in text)
