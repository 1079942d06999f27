# SPDX-License-Identifier: Apache-2.0
"""Every row of real binaries' .eh_frame, against pyelftools."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from perfguest.unwind import _native
from tests.unwind.traced import without_header

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
BINARIES = [LIBRARIES / "libc.so.6", LIBRARIES / "libcrypto.so.3", LIBRARIES / "ld-linux-x86-64.so.2", Path("/usr/bin/perl"), Path("/usr/bin/python3")]

RULE_CALL, CFA_REGISTER, CFA_EXPRESSION = 1, 0, 3
AT_CFA, IS_CFA, IN_REGISTER, AT_EXPRESSION, IS_EXPRESSION = 0, 1, 3, 4, 5
# Of DWARF's numbers, the hardware's (System V ABI AMD64, figure 3.36).
HARDWARE = [0, 2, 1, 3, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16]
RIP = 16


def expected(row: dict[Any, Any]) -> dict[str, Any]:
    """A row of pyelftools in the terms of binary_rule()."""
    if RIP not in row or row[RIP].type == "UNDEFINED":
        return {"end": _native.END_START}
    cfa = row["cfa"]
    place = (CFA_REGISTER, HARDWARE[cfa.reg], cfa.offset) if cfa.expr is None else (CFA_EXPRESSION, bytes(cfa.expr))
    saved: dict[int, tuple[Any, ...]] = {}
    forgotten = 0
    for number, rule in row.items():
        if number in ("pc", "cfa") or number > RIP:
            continue
        match rule.type:
            case "OFFSET":
                saved[HARDWARE[number]] = AT_CFA, rule.arg
            case "VAL_OFFSET":
                saved[HARDWARE[number]] = IS_CFA, rule.arg
            case "REGISTER":
                saved[HARDWARE[number]] = IN_REGISTER, HARDWARE[rule.arg]
            case "EXPRESSION":
                saved[HARDWARE[number]] = AT_EXPRESSION, bytes(rule.arg)
            case "VAL_EXPRESSION":
                saved[HARDWARE[number]] = IS_EXPRESSION, bytes(rule.arg)
            case "UNDEFINED":
                forgotten |= 1 << HARDWARE[number]
            case other:
                assert other == "SAME_VALUE"
    return {"cfa": place, "saved": saved, "forgotten": forgotten}


def found(rule: dict[str, Any], data: bytes) -> dict[str, Any]:
    if "end" in rule:
        return rule
    assert rule["kind"] == RULE_CALL
    if rule["cfa_kind"] == CFA_EXPRESSION:
        place = CFA_EXPRESSION, data[rule["cfa_offset"] :][: rule["cfa_size"]]
    else:
        place = rule["cfa_kind"], rule["cfa_register"], rule["cfa_offset"]
    saved = {
        register: (kind, data[offset : offset + size] if kind in (AT_EXPRESSION, IS_EXPRESSION) else offset)
        for register, (kind, offset, size) in rule["saved"].items()
    }
    return {"cfa": place, "saved": saved, "forgotten": rule["forgotten"]}


def decoded(data: bytes) -> list[tuple[FDE, list[dict[Any, Any]]]]:
    result, unknown = [], 0
    for entry in ELFFile(io.BytesIO(data)).get_dwarf_info().EH_CFI_entries():
        if not isinstance(entry, FDE) or not entry["address_range"]:
            continue
        try:
            result.append((entry, entry.get_decoded().table))
        except ValueError:  # pyelftools has no DW_CFA_val_expression, and fails to say so
            unknown += 1
    assert unknown <= 2
    return result


@pytest.mark.parametrize("path", BINARIES, ids=lambda path: path.name)
@pytest.mark.parametrize("by", ["search table", "section"])
def test_every_row(path: Path, by: str) -> None:
    """At the first and last address of each row; by .eh_frame_hdr, and by the index of the section where the file has no such header."""
    data = path.read_bytes()
    section = ELFFile(io.BytesIO(data)).get_section_by_name(".eh_frame")
    unwinder = _native.Unwinder()
    if by == "search table":
        binary = unwinder.add_binary(len(data), [(0, data)])
    else:
        binary = unwinder.add_binary(len(data), [(0, without_header(data))], eh_frame=(section["sh_offset"], section["sh_size"]))
    seen = 0
    for fde, table in decoded(data):
        end = fde["initial_location"] + fde["address_range"]
        # Of rows for the same address the last one holds.
        rows = {row["pc"]: row for row in table if row["pc"] < end}
        starts = sorted(rows)
        for start, following in zip(starts, [*starts[1:], end], strict=True):
            wanted = expected(rows[start])
            for address in {start, following - 1}:
                seen += 1
                assert found(unwinder.binary_rule(binary, address), data) == wanted, hex(address)
        if by == "search table":
            assert fde.cie.augmentation_dict.get("S") is None or unwinder.binary_rule(binary, starts[0])["exact"]
    assert seen > 300


def test_outside_of_functions() -> None:
    data = BINARIES[0].read_bytes()
    unwinder = _native.Unwinder()
    binary = unwinder.add_binary(len(data), [(0, data)])
    assert unwinder.binary_rule(binary, 0) == {"end": _native.END_NO_RULE}
    assert unwinder.binary_rule(binary, 1 << 62) == {"end": _native.END_NO_RULE}
    rubbish = unwinder.add_binary(64, [(0, bytes(64))])
    assert unwinder.binary_rule(rubbish, 0) == {"end": _native.END_NO_TABLE}
    nothing = unwinder.add_binary(len(data), [])
    assert unwinder.binary_rule(nothing, 0) == {"end": _native.END_PAGES}


def test_signal_frame() -> None:
    """The C library's __restore_rt: all registers by expressions, and what they give was interrupted."""
    data = BINARIES[0].read_bytes()
    unwinder = _native.Unwinder()
    binary = unwinder.add_binary(len(data), [(0, data)])
    signals = [fde for fde, _ in decoded(data) if "S" in fde.cie["augmentation"].decode()]
    assert signals
    for fde in signals:
        rule: dict[str, Any] = unwinder.binary_rule(binary, fde["initial_location"])
        assert rule["exact"] and rule["cfa_kind"] == CFA_EXPRESSION and len(rule["saved"]) == 17


def test_pages_that_are_not_there() -> None:
    """With any page missing, a rule is the whole file's, or END_PAGES."""
    data = BINARIES[2].read_bytes()
    whole = _native.Unwinder()
    all_of_it = whole.add_binary(len(data), [(0, data)])
    addresses = [fde["initial_location"] for fde, _ in decoded(data)]
    ends = 0
    for page in range(0, len(data), 4096):
        unwinder = _native.Unwinder()
        binary = unwinder.add_binary(len(data), [(0, data[:page]), (page + 4096, data[page + 4096 :])])
        for address in addresses:
            rule = unwinder.binary_rule(binary, address)
            assert rule in (whole.binary_rule(all_of_it, address), {"end": _native.END_PAGES})
            ends += "end" in rule
    assert ends > len(addresses)


def test_runs_that_touch_are_one() -> None:
    data = BINARIES[2].read_bytes()
    pages = [(at, data[at : at + 4096]) for at in range(0, len(data), 4096)]
    whole, cut = _native.Unwinder(), _native.Unwinder()
    first, second = whole.add_binary(len(data), [(0, data)]), cut.add_binary(len(data), pages)
    for fde, _ in decoded(data):
        address = fde["initial_location"] + fde["address_range"] - 1
        assert whole.binary_rule(first, address) == cut.binary_rule(second, address)
