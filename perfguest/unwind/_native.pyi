# SPDX-License-Identifier: Apache-2.0
"""The unwinder in C. engine.Engine is this with numpy arrays on both sides, and says what they hold."""

from collections.abc import Sequence
from typing import Final

from typing_extensions import Buffer

ORC_V1: Final = 1
ORC_V2: Final = 2
ORC_V3: Final = 3
ORC_V4: Final = 4
ORC_V5: Final = 5
ORC_V6: Final = 6

MODE_KERNEL: Final = 0
MODE_USER: Final = 1
MODE_SKIP: Final = 2

HOW_REGISTER: Final = 0
HOW_ORC: Final = 1
HOW_CFI: Final = 2
HOW_FP: Final = 3
HOW_SCAN: Final = 4
HOW_RETURN: Final = 5
HOW_CODE: Final = 6
HOW_KEPT: Final = 7
FRAME_RETURN: Final = 16
FRAME_USER: Final = 32

END_NONE: Final = 0
END_USER_ENTRY: Final = 1
END_THREAD_START: Final = 2
END_START: Final = 3
END_CUT: Final = 4
END_NO_MAPPING: Final = 5
END_NO_TABLE: Final = 6
END_NO_RULE: Final = 7
END_PAGES: Final = 8
END_BAD: Final = 9
END_EXPRESSION: Final = 10
END_DEPTH: Final = 11
END_COMPAT: Final = 12

class Unwinder:
    def __init__(self) -> None: ...
    def add_kernel(self, orc: Sequence[tuple[Buffer, Buffer]], layout: int, text: Sequence[tuple[int, Buffer]]) -> int: ...
    def add_binary(
        self,
        size: int,
        runs: Sequence[tuple[int, Buffer]],
        eh_frame: tuple[int, int] | None = None,
        debug_frame: tuple[int, int] | None = None,
        kept: Sequence[tuple[int, Buffer]] | None = None,
    ) -> int: ...
    def add_space(self, start: Buffer, end: Buffer, offset: Buffer, binary: Buffer) -> int: ...
    def walk(
        self,
        memory: Buffer,
        registers: Buffer,
        mode: Buffer,
        kernel: Buffer,
        space: Buffer,
        copy_start: Buffer,
        copy_address: Buffer,
        copy_offset: Buffer,
        copy_size: Buffer,
        max_depth: int = 512,
    ) -> tuple[bytearray, bytearray, bytearray, bytearray, bytearray]: ...
    def scan(
        self,
        memory: Buffer,
        registers: Buffer,
        mode: Buffer,
        kernel: Buffer,
        space: Buffer,
        copy_start: Buffer,
        copy_address: Buffer,
        copy_offset: Buffer,
        copy_size: Buffer,
        max_depth: int = 512,
    ) -> tuple[bytearray, bytearray, bytearray, bytearray, bytearray]: ...
    def kernel_rule(self, kernel: int, address: int) -> dict[str, object]: ...
    def binary_rule(self, binary: int, vaddr: int) -> dict[str, object]: ...
    def code_rule(self, binary: int, offset: int, returned: bool, entry: int | None = None) -> dict[str, object]: ...
