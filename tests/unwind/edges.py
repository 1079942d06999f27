# SPDX-License-Identifier: Apache-2.0
"""Whether a kernel function can have been called from where a chain says it was: by the instructions in the guest's memory, as objdump reads them.

A call leads to the function itself, or to one that ends in a jump to it (a tail call, a part that was split off, a static call's trampoline), or through
a register or memory, which may lead anywhere.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from perfguest.symbols.module_texts import ModuleTexts
from tests.unwind.names import KernelNames
from tests.unwind.stacks import Evidence

_LINE = re.compile(r"^\s*([0-9a-f]+):\t(?:[0-9a-f]{2} )+\s*\t(?:(?:bnd|notrack|cs|ds|rex\.W) )*(\S+)(?:\s+(.*))?$")
_DIRECT = re.compile(r"(?:0x)?([0-9a-f]{16})\b")
_JUMP = re.compile(r"j[a-z]+")
_THUNK = re.compile(r"__x86_indirect_(?:thunk|call_thunk|jump_thunk|its_thunk)_\w+|__x86_indirect_(?:call_|jump_)?thunk_array")
# What the last instruction of a function is, and what fills the space behind it.
_ENDS = {"ret", "jmp", "int3", "ud2", "nop", "nopl", "nopw", "xchg", "(bad)"}
# Longest tail of tail calls that is followed.
_TAILS = 4
_MARGIN = 48


class Edges:
    """Of the kernel's and its modules' code as it was in the guest's memory."""

    def __init__(self, evidence: Evidence, names: KernelNames) -> None:
        self._names = names
        moved = evidence.vm_kernel.kaslr_offset
        self._text = [(run.address + moved, run.data) for run in evidence.kernel().text]
        self._text += [(address, code.tobytes()) for address, code in ModuleTexts(evidence.snapshot.module_texts).of(evidence.vm_kernel)]
        self.why = cache(self._why)
        self._jumps = cache(self._find_jumps)
        self._instructions = cache(self._disassemble)

    def covers(self, address: int) -> bool:
        return any(start <= address < start + len(data) for start, data in self._text)

    def _why(self, returns_to: int, callee: int) -> str:
        """How the callee was reached by the call before ``returns_to``: "direct", "indirect", "jump", or what is wrong. ``callee``: any address in it."""
        call = next((line for line in self._instructions(self._names.span(returns_to - 1)[0]) if line[2] == returns_to), None)
        if call is None or not call[1].startswith("call"):
            return "no call"
        target = self._target(call[3])
        if target is None or self._is_thunk(target):
            return "indirect"
        wanted = self._names.span(callee)[0]
        if self._names.span(target)[0] == wanted:
            return "direct"
        seen, front = {target}, {target}
        for _ in range(_TAILS):
            reached = {jump for function in front for jump in self._jumps(self._names.span(function)[0])}
            if None in reached or any(jump is not None and self._names.span(jump)[0] == wanted for jump in reached):
                return "jump"
            front = {jump for jump in reached if jump is not None} - seen
            seen |= front
        return f"calls {self._names.at(target)}"

    def _find_jumps(self, start: int) -> frozenset[int | None]:
        """Where a function jumps to outside of itself; None for a jump through a register or memory."""
        end = self._names.span(start)[1]
        found: set[int | None] = set()
        mnemonic = "ret"
        for _, mnemonic, _, operand in self._instructions(start):
            if not _JUMP.fullmatch(mnemonic):
                continue
            target = self._target(operand)
            if target is None or self._is_thunk(target):
                found.add(None)
            elif not start <= target < end:
                found.add(target)
        if mnemonic not in _ENDS:
            # It goes on into the next one: an entry in the middle of a function.
            found.add(end)
        return frozenset(found)

    def _is_thunk(self, address: int) -> bool:
        """Whether this calls what a register holds: arch/x86/lib/retpoline.S."""
        return any(_THUNK.fullmatch(name) for name in self._names.all_at(address))

    def _target(self, operand: str) -> int | None:
        match = _DIRECT.match(operand)
        return int(match[1], 16) if match and not operand.startswith("*") else None

    def _disassemble(self, start: int) -> list[tuple[int, str, int, str]]:
        """(address, mnemonic, address of the next, operand) of the instructions of the function that begins there."""
        end = self._names.span(start)[1]
        for base, data in self._text:
            if base <= start < base + len(data):
                code = data[start - base : end - base + _MARGIN]
                break
        else:
            return []
        with tempfile.NamedTemporaryFile(prefix="perfguest-code-") as file:
            Path(file.name).write_bytes(code)
            command = ["objdump", "-D", "-w", "-b", "binary", "-m", "i386:x86-64", f"--adjust-vma={start:#x}", f"--stop-address={end:#x}", file.name]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows = [(int(match[1], 16), match[2], match[3] or "") for match in map(_LINE.match, text.splitlines()) if match]
        after = [row[0] for row in rows[1:]] + [end]
        return [(address, mnemonic, following, operand) for (address, mnemonic, operand), following in zip(rows, after, strict=True)]
