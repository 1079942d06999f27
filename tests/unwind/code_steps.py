# SPDX-License-Identifier: Apache-2.0
"""Steps by the code, one by one, beside those of the tables as the plain walk makes them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from perfguest.proto import guest_pb2
from perfguest.unwind import _native
from tests.unwind.native_walk import without_tables
from tests.unwind.oracle import U64, Cut, Oracle, UserWalk, Walked, Words
from tests.unwind.stacks import Evidence

#: In the order in which the hardware numbers them.
_NAMES = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{number}" for number in range(8, 16)), "RIP")
_KEPT = ("RBX", "RBP", "R12", "R13", "R14", "R15")
_CFA_REGISTER, _CFA_DEREF_LAST, _CFA_DEREF_ADD = 0, 1, 4
# E8 with 32 bits, or FF with 2 in the middle of ModRM and what that says comes behind it (Intel SDM, volume 2, 2.1).
_CALL = re.compile(
    rb"(?:\xe8.{4}|\xff(?:[\xd0-\xd7\x10-\x13\x16\x17]|[\x50-\x53\x55-\x57].|\x54..|[\x90-\x93\x95-\x97\x15].{4}|\x94.{5}|\x14(?:.|.{5})))\Z", re.DOTALL
)
_SIGRETURN = bytes.fromhex("48c7c00f0000000f05")
_AT_CFA, _AT_BP, _IN_REGISTER, _AT_SP = 0, 2, 3, 6


@dataclass(frozen=True)
class Step:
    """Of a frame: its registers before, and those of its caller as the tables have them. ``binary``: its key; ``offset``: in its file."""

    binary: str
    offset: int
    returned: bool
    before: dict[str, int]
    after: dict[str, int]
    word: Words
    mappings: Sequence[guest_pb2.Mapping]


class Stepping(UserWalk):
    """A plain walk that remembers its steps."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__(evidence)
        self.steps: list[Step] = []
        self._mappings: list[guest_pb2.Mapping] = []

    def walk(self, process: guest_pb2.Process | None, registers: dict[str, int], word: Words, walked: Walked) -> None:
        self._mappings = list(process.mappings) if process else []
        super().walk(process, registers, word, walked)

    def step(self, row: Any, registers: dict[str, int], word: Words, returned: bool) -> dict[str, int] | None:
        after = super().step(row, registers, word, returned)
        mapping = next(mapping for mapping in self._mappings if mapping.start <= registers["RIP"] < mapping.end)
        if after is not None:
            self.steps.append(Step(mapping.binary, registers["RIP"] - mapping.start + mapping.offset, returned, registers, after, word, self._mappings))
        return after


class Code:
    """What the unwinder makes of the code of a recording's binaries, without their tables."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._unwinder = _native.Unwinder()
        self._binaries: dict[str, int] = {}
        self._rules: dict[tuple[str, int, bool], dict[str, Any]] = {}
        self._images: dict[str, bytes] = {}

    def rule(self, step: Step) -> dict[str, Any]:
        key = step.binary, step.offset, step.returned
        if key not in self._rules:
            if step.binary not in self._binaries:
                self._binaries[step.binary] = self._unwinder.add_binary(*self._file(step.binary))
            self._rules[key] = self._unwinder.code_rule(self._binaries[step.binary], step.offset, step.returned)
        return self._rules[key]

    def _file(self, binary: str) -> tuple[int, list[tuple[int, bytes]]]:
        stored = self._evidence.snapshot.binary(binary)
        assert stored is not None
        return stored.size, without_tables([(run.address, run.data) for run in stored.pages])

    def _is_return(self, step: Step, address: int) -> bool:
        """Whether it follows a call, or is where handlers of signals return to."""
        mapping = next((mapping for mapping in step.mappings if mapping.start <= address < mapping.end and mapping.executable), None)
        if mapping is None or not mapping.binary:
            return False
        at = address - mapping.start + mapping.offset
        if mapping.binary not in self._images:
            size, runs = self._file(mapping.binary)
            image = bytearray(size)
            for start, data in runs:
                image[start : start + len(data)] = data
            self._images[mapping.binary] = bytes(image)
        image = self._images[mapping.binary]
        return _CALL.search(image[at - 7 : at]) is not None or image[at : at + len(_SIGRETURN)] == _SIGRETURN

    def compare(self, step: Step) -> str:
        """Empty if the code says what the table does, else what is different."""
        rule = self.rule(step)
        if "end" in rule:
            return "no rule"
        try:
            after = _apply(rule, step)
        except Cut:
            return "not in the copies"
        if not rule["exact"] and not self._is_return(step, after["RIP"]):
            return "not proven"
        wrong = [name for name in ("RIP", "RSP", *_KEPT) if name in after and after[name] != step.after.get(name)]
        if wrong:
            return f"wrong {wrong[0]}"
        return "" if all(name in after for name in _KEPT if name in step.before) else "a register is lost"


def _apply(rule: dict[str, Any], step: Step) -> dict[str, int]:
    before, word = step.before, step.word
    base, offset = before[_NAMES[rule["cfa_register"]]], rule["cfa_offset"]
    if rule["cfa_kind"] == _CFA_REGISTER:
        cfa = base + offset & U64
    else:
        assert rule["cfa_kind"] in (_CFA_DEREF_LAST, _CFA_DEREF_ADD)
        extra = (rule["cfa_size"] ^ 0x8000) - 0x8000 if rule["cfa_kind"] == _CFA_DEREF_ADD else 0
        cfa = word(base + offset & U64) + extra & U64
    after = {name: before[name] for number, name in enumerate(_NAMES) if name in _KEPT and name in before and not rule["forgotten"] >> number & 1}
    after["RSP"] = cfa
    for number, (kind, where, _) in rule["saved"].items():
        if kind == _IN_REGISTER:
            after[_NAMES[number]] = before[_NAMES[where]]
        else:
            start = {_AT_CFA: cfa, _AT_BP: before.get("RBP", 0), _AT_SP: before["RSP"]}[kind]
            after[_NAMES[number]] = word(start + where & U64)
    return after


def steps(evidence: Evidence) -> Iterator[Step]:
    """Of all samples of the recording, as far as the plain walk gets."""
    user = Stepping(evidence)
    oracle = Oracle(evidence, user)
    for sample in evidence.samples:
        oracle.walk(sample)
        yield from user.steps
        user.steps.clear()


def compared(evidence: Evidence) -> Counter[str]:
    """How often the code said what the table did (an empty string), and what else it said."""
    code = Code(evidence)
    return Counter(code.compare(step) for step in steps(evidence))
