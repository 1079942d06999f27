# SPDX-License-Identifier: Apache-2.0
"""A real kernel's table in every layout: told apart, and each kind of entry read as the kernel's own unwinder reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest.capture.lab.kernels import find_kernel
from perfguest.formats.kernel_image import KernelImage, read_kernel_image
from perfguest.unwind import _native
from perfguest.unwind.orc import ENTRY, orc_layout
from tests.unwind import kernel_stacks as k

RELEASES = {
    _native.ORC_V1: "4.14.0",
    _native.ORC_V2: "5.10.0-32-amd64",
    _native.ORC_V3: "6.1.0-50-amd64",
    _native.ORC_V4: "6.3.0-1",
    _native.ORC_V5: "6.12.0-1-amd64",
    _native.ORC_V6: "7.3.4+deb13-amd64",
}
CFA_REGISTER, CFA_DEREF_LAST, CFA_DEREF_FIRST = range(3)
RULE_KINDS = {k.TYPE_CALL: 1, k.TYPE_REGS: 2, k.TYPE_PARTIAL: 3}
BASES = {k.DX: 2, k.DI: 7, k.BP: 5, k.SP: 4, k.R10: 10, k.R13: 13, k.BP_INDIRECT: 5, k.SP_INDIRECT: 4}
BASES_V6 = BASES | {k.AX: 0}
RBP, RIP = 5, 16


@pytest.fixture(scope="module")
def image() -> KernelImage:
    return read_kernel_image(str(find_kernel(None, None, []).image))


@pytest.fixture(scope="module")
def table(image: KernelImage) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.void]]:
    """Addresses and entries of the kernel in /boot (.orc_unwind_ip: 32 bits, each relative to itself)."""
    ip, entries = image.section(".orc_unwind_ip"), image.section(".orc_unwind")
    assert ip and entries
    offsets = image.content(ip).view("<i4").astype(np.int64)
    places = np.uint64(ip.address) + np.arange(len(offsets), dtype=np.uint64) * 4
    return places + offsets.astype(np.uint64), image.content(entries).view(ENTRY)


def meaning(layout: int, entry: np.void) -> tuple[int, int, int, int, int, bool]:
    """(type as the newest layout has it, sp_reg, sp_offset, bp_reg, bp_offset, signal) by the fields in each release's asm/orc_types.h."""
    flags = int(entry["flags"])
    sp, bp = flags & 15, flags >> 4 & 15
    if layout == _native.ORC_V6:
        old = [k.UNDEFINED, k.AX, k.DX, k.SP, k.BP, k.DI, k.R10, k.R13, k.PREV_SP, k.SP_INDIRECT, k.BP_INDIRECT, *[-1] * 5]
        sp, bp = old[sp], old[bp]
    if layout >= _native.ORC_V5:
        kind, signal = flags >> 8 & 7, bool(flags >> 11 & 1)
    else:
        kind = (flags >> 8 & 3) + k.TYPE_CALL
        signal = bool(flags >> 10 & 1) if layout == _native.ORC_V4 else kind > k.TYPE_CALL
        end = {_native.ORC_V1: True, _native.ORC_V2: flags & 1 << 10, _native.ORC_V3: flags & 1 << 10, _native.ORC_V4: flags & 1 << 11}[layout]
        if sp == k.UNDEFINED:
            kind = k.TYPE_END if end else k.TYPE_UNDEFINED
    return kind, sp, int(entry["sp_offset"]), bp, int(entry["bp_offset"]), signal


def expected(layout: int, entry: np.void) -> dict[str, Any]:
    kind, sp, sp_offset, bp, bp_offset, signal = meaning(layout, entry)
    bases = BASES_V6 if layout == _native.ORC_V6 else BASES
    if kind == k.TYPE_END:
        return {"end": _native.END_THREAD_START}
    if kind not in RULE_KINDS or sp not in bases or bp not in (k.UNDEFINED, k.PREV_SP, k.BP):
        return {"end": _native.END_NO_RULE}
    indirect = {k.BP_INDIRECT: CFA_DEREF_LAST, k.SP_INDIRECT: CFA_DEREF_LAST if layout < _native.ORC_V3 else CFA_DEREF_FIRST}
    saved: dict[int, tuple[int, int, int]] = {RIP: (0, -8, 0)} if kind == k.TYPE_CALL else {}
    if bp != k.UNDEFINED:
        saved[RBP] = (0 if bp == k.PREV_SP else 2, bp_offset, 0)
    return {"kind": RULE_KINDS[kind], "exact": signal, "cfa": (indirect.get(sp, CFA_REGISTER), bases[sp], sp_offset), "saved": saved}


def found(rule: dict[str, Any]) -> dict[str, Any]:
    if "end" in rule:
        return rule
    return {name: rule[name] for name in ("kind", "exact", "saved")} | {"cfa": (rule["cfa_kind"], rule["cfa_register"], rule["cfa_offset"])}


def in_layout(table: npt.NDArray[np.void], before: int, layout: int) -> npt.NDArray[np.void]:
    """The entries of one layout in another."""
    kinds, back = np.unique(table["flags"], return_inverse=True)
    flags = []
    for one in kinds:
        entry = np.array((0, 0, one), ENTRY)[()]
        kind, sp, _, bp, _, signal = meaning(before, entry)
        made = k.entry(layout, kind, sp=sp, bp=bp, signal=signal)
        flags.append(np.frombuffer(made, ENTRY)[0]["flags"])
    result = table.copy()
    result["flags"] = np.array(flags, "<u2")[back]
    return result


@pytest.mark.parametrize("layout", RELEASES)
def test_layouts_are_told_apart(image: KernelImage, table: tuple[npt.NDArray[np.uint64], npt.NDArray[np.void]], layout: int) -> None:
    own = orc_layout(image.release, table[1].tobytes())
    entries = in_layout(table[1], own, layout).tobytes()
    assert orc_layout(RELEASES[layout], entries) == layout
    if layout >= _native.ORC_V4:
        # The table itself tells, whatever the release is called.
        assert {orc_layout(release, entries) for release in (*RELEASES.values(), "rubbish")} == {layout}
    else:
        assert orc_layout("rubbish", entries) == _native.ORC_V3


def test_releases() -> None:
    assert [orc_layout(release, b"") for release in RELEASES.values()] == list(RELEASES)
    assert [orc_layout(release, b"") for release in ("4.18.20", "4.19.0", "5.11.22", "5.12.0", "6.2.9", "6.3.10", "6.4.0", "7.0.1", "7.1.0", "10.0", "")] == [
        1,
        2,
        2,
        3,
        3,
        4,
        5,
        5,
        6,
        6,
        6,
    ]


@pytest.mark.parametrize("layout", RELEASES)
def test_each_kind_of_entry(image: KernelImage, table: tuple[npt.NDArray[np.uint64], npt.NDArray[np.void]], layout: int) -> None:
    entries = np.unique(in_layout(table[1], orc_layout(image.release, table[1].tobytes()), layout))
    assert len(entries) > 100
    addresses = np.arange(len(entries), dtype=np.uint64) * 16 + k.TEXT
    unwinder = _native.Unwinder()
    number = unwinder.add_kernel([(addresses, entries.tobytes())], layout, [])
    for address, entry in zip(addresses.tolist(), entries, strict=True):
        for place in (address, address + 15):
            assert found(unwinder.kernel_rule(number, place)) == expected(layout, entry)
    assert unwinder.kernel_rule(number, k.TEXT - 1) == {"end": _native.END_NO_RULE}


@given(st.sampled_from(list(RELEASES)), st.integers(0, 65535), st.integers(-32768, 32767), st.integers(-32768, 32767))
def test_any_entry(layout: int, flags: int, sp_offset: int, bp_offset: int) -> None:
    entry = np.array([(sp_offset, bp_offset, flags)], ENTRY)
    unwinder = _native.Unwinder()
    number = unwinder.add_kernel([(np.array([k.TEXT], np.uint64), entry.tobytes())], layout, [])
    assert found(unwinder.kernel_rule(number, k.TEXT)) == expected(layout, entry[0])


def test_a_real_table(image: KernelImage, table: tuple[npt.NDArray[np.uint64], npt.NDArray[np.void]]) -> None:
    """Found where it stands among 400,000 others; in no order, too, and in two halves."""
    addresses, entries = table
    layout = orc_layout(image.release, entries.tobytes())
    generator = np.random.default_rng(1)
    mixed = generator.permutation(len(addresses))
    unwinder = _native.Unwinder()
    numbers = [
        unwinder.add_kernel([(addresses, entries.tobytes())], layout, []),
        unwinder.add_kernel([(addresses[mixed], entries[mixed].tobytes())], layout, []),
        unwinder.add_kernel([(addresses[half::2].copy(), entries[half::2].tobytes()) for half in (1, 0)], layout, []),
    ]
    order = np.argsort(addresses, kind="stable")
    unique = np.flatnonzero(np.diff(addresses[order]) != 0)[1:]
    for at in generator.choice(unique, 2000, replace=False).tolist():
        # Of several entries for one address, which one holds is the sorting's choice.
        row = order[at]
        if addresses[order[at - 1]] == addresses[row]:
            continue
        for number in numbers:
            assert found(unwinder.kernel_rule(number, int(addresses[row]))) == expected(layout, entries[row])


def test_bad_tables() -> None:
    unwinder = _native.Unwinder()
    with pytest.raises(ValueError, match="as many"):
        unwinder.add_kernel([(bytes(16), bytes(6))], _native.ORC_V5, [])
    with pytest.raises(ValueError, match="layout"):
        unwinder.add_kernel([], 7, [])
    with pytest.raises(ValueError, match="8 bytes"):
        unwinder.add_kernel([(bytes(15), bytes(6))], _native.ORC_V5, [])
    assert unwinder.kernel_rule(unwinder.add_kernel([], _native.ORC_V5, []), k.TEXT) == {"end": _native.END_NO_TABLE}
