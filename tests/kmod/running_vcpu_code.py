# SPDX-License-Identifier: Apache-2.0
"""kvm_get_running_vcpu() as it stands in kvm.ko of Debian's kernels, before relocation.

Each has the function's address in its section, its bytes, and its relocations: offset from the
function, type (2: R_X86_64_PC32, 4: R_X86_64_PLT32), symbol, addend. `kvm_running_vcpu` is at `variable` in `.data..percpu`.
"""

from __future__ import annotations

from dataclasses import dataclass

PC32, PLT32 = 2, 4


@dataclass(frozen=True)
class Function:
    release: str
    address: int
    code: bytes
    relocations: tuple[tuple[int, int, str, int], ...]
    variable: int

    def loaded(self, text: int, symbols: dict[str, int]) -> bytes:
        """The bytes with this section address and these symbols, as the kernel's module loader makes them."""
        code = bytearray(self.code)
        for offset, _, symbol, addend in self.relocations:
            value = symbols[symbol] + addend - (text + self.address + offset)
            code[offset : offset + 4] = (value & 0xFFFF_FFFF).to_bytes(4, "little")
        return bytes(code)


RUNNING_VCPU = (
    Function(
        "5.10.0-32-amd64",
        0x6E0,
        bytes.fromhex("e8 00 00 00 00 65 48 8b 05 00 00 00 00 e9 00 00 00 00"),
        ((1, PLT32, "__fentry__", -4), (9, PC32, ".data..percpu", 4), (14, PLT32, "__x86_return_thunk", -4)),
        0x8,
    ),
    Function(
        "6.1.0-56-amd64",
        0x1A20,
        bytes.fromhex("e8 00 00 00 00 65 ff 05 00 00 00 00 65 48 8b 05 00 00 00 00 65 ff 0d 00 00 00 00 74 05 e9 00 00 00 00 e8 00 00 00 00 e9 00 00 00 00"),
        (
            (1, PLT32, "__fentry__", -4),
            (8, PC32, "__preempt_count", -4),
            (16, PC32, ".data..percpu", 4),
            (23, PC32, "__preempt_count", -4),
            (30, PLT32, "__x86_return_thunk", -4),
            (35, PLT32, "__SCT__preempt_schedule", -4),
            (40, PLT32, "__x86_return_thunk", -4),
        ),
        0x8,
    ),
    Function(
        "6.12.107+deb13-amd64",
        0x1ED0,
        bytes.fromhex(
            "f3 0f 1e fa e8 00 00 00 00 65 ff 05 00 00 00 00 65 48 8b 05 00 00 00 00 65 ff 0d 00 00 00 00 74 05 e9 00 00 00 00 e8 00 00 00 00 e9 00 00 00 00"
        ),
        (
            (5, PLT32, "__fentry__", -4),
            (12, PC32, "pcpu_hot", 4),
            (20, PC32, ".data..percpu", 12),
            (27, PC32, "pcpu_hot", 4),
            (34, PLT32, "__x86_return_thunk", -4),
            (39, PLT32, "__SCT__preempt_schedule", -4),
            (44, PLT32, "__x86_return_thunk", -4),
        ),
        0x10,
    ),
    Function(
        "6.18.15+deb13-amd64",
        0x1B70,
        bytes.fromhex(
            "f3 0f 1e fa e8 00 00 00 00 65 ff 05 00 00 00 00 65 48 8b 05 00 00 00 00 65 ff 0d 00 00 00 00 74 05 e9 00 00 00 00 e8 00 00 00 00 e9 00 00 00 00"
        ),
        (
            (5, PLT32, "__fentry__", -4),
            (12, PC32, "__preempt_count", -4),
            (20, PC32, ".data..percpu", 12),
            (27, PC32, "__preempt_count", -4),
            (34, PLT32, "__x86_return_thunk", -4),
            (39, PLT32, "__SCT__preempt_schedule", -4),
            (44, PLT32, "__x86_return_thunk", -4),
        ),
        0x10,
    ),
    Function(
        "7.3.4+deb13-amd64",
        0x1D10,
        bytes.fromhex(
            "f3 0f 1e fa e8 00 00 00 00 65 48 ff 05 00 00 00 00 65 48 8b 05 00 00 00 00 65 48 ff 0d 00 00 00 00 74 05 e9 00 00 00 00 "
            "e8 00 00 00 00 e9 00 00 00 00"
        ),
        (
            (5, PLT32, "__fentry__", -4),
            (13, PC32, "__preempt_count", -4),
            (21, PC32, ".data..percpu", 12),
            (29, PC32, "__preempt_count", -4),
            (36, PLT32, "__x86_return_thunk", -4),
            (41, PLT32, "__SCT__preempt_schedule", -4),
            (46, PLT32, "__x86_return_thunk", -4),
        ),
        0x10,
    ),
)
