# SPDX-License-Identifier: Apache-2.0
"""Functions of a few instructions of assembler, and what the unwinder makes of them."""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfguest.unwind import _native

TEXT = 4096
_NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)), "rip")
_CFA_REGISTER, _CFA_DEREF_LAST, _CFA_DEREF_ADD = 0, 1, 4
_SAVED = {2: "bp", 6: "sp"}
_AT_CFA, _IN_REGISTER = 0, 3
_ENDS = {getattr(_native, name): name.removeprefix("END_") for name in dir(_native) if name.startswith("END_")}


@dataclass(frozen=True)
class Snippet:
    """``file``: an ELF file whose offsets are its addresses. ``labels``: where they are in it."""

    file: bytes
    labels: dict[str, int]

    def rule(self, label: str = "here", returned: bool = False, since: str | None = None, missing: range = range(0)) -> str:
        """As :func:`told` writes it. ``missing``: bytes of the file that are not there."""
        unwinder = _native.Unwinder()
        runs = [(0, self.file[: missing.start]), (missing.stop, self.file[missing.stop :])] if missing else [(0, self.file)]
        binary = unwinder.add_binary(len(self.file), runs)
        return told(unwinder.code_rule(binary, self.labels[label], returned, None if since is None else self.labels[since]))


def assemble(directory: Path, text: str) -> Snippet:
    source, built, linked, flat = (directory / f"snippet{ending}" for ending in (".s", ".o", "", ".bin"))
    source.write_text(f"\t.text\n{text}\n")
    subprocess.run(["as", "-o", built, source], check=True)
    subprocess.run(["ld", f"-Ttext={TEXT:#x}", "-e", "0", "-o", linked, built], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", linked, flat], check=True)
    symbols = subprocess.run(["nm", linked], check=True, capture_output=True, text=True).stdout
    labels = {name: int(value, 16) for value, name in re.findall(r"^([0-9a-f]+) . (\w+)$", symbols, re.MULTILINE)}
    return Snippet(elf(flat.read_bytes()), labels)


def elf(code: bytes) -> bytes:
    """A file of one segment that is the whole file, with the code at offset and address TEXT."""
    size = TEXT + len(code)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, TEXT, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return (header + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, size, size, 4096)).ljust(TEXT, b"\0") + code


def told(rule: dict[str, Any]) -> str:
    """The CFA, and where of it registers stand: "rsp+24 rbx-16". "rip-8" goes without saying."""
    if "end" in rule:
        return _ENDS[rule["end"]]
    cfa = f"{_NAMES[rule['cfa_register']]}{rule['cfa_offset']:+d}"
    if rule["cfa_kind"] != _CFA_REGISTER:
        assert rule["cfa_kind"] in (_CFA_DEREF_LAST, _CFA_DEREF_ADD)
        cfa = f"*({cfa})" + (f"{rule['cfa_size']:+d}" if rule["cfa_kind"] == _CFA_DEREF_ADD else "")
    parts = [cfa]
    for number, (kind, offset, _) in sorted(rule["saved"].items()):
        if kind == _AT_CFA and (number, offset) != (16, -8):
            parts.append(f"{_NAMES[number]}{offset:+d}")
        elif kind == _IN_REGISTER:
            parts.append(f"{_NAMES[number]}={_NAMES[offset]}")
        elif kind != _AT_CFA:
            parts.append(f"{_NAMES[number]}={_SAVED[kind]}{offset:+d}")
    parts += [f"{name}?" for number, name in enumerate(_NAMES) if rule["forgotten"] >> number & 1]
    return " ".join(parts)
