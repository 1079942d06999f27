# SPDX-License-Identifier: Apache-2.0
"""The unwinder's tables and its walk, over numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perfguest.unwind import _native

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_DEPTH = 512

#: File offsets and bytes.
Runs = Sequence[tuple[int, "Buffer"]]


def _column(values: npt.ArrayLike, dtype: npt.DTypeLike) -> Any:
    # Any: to mypy, an array is no buffer before Python 3.12.
    return np.ascontiguousarray(values, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Samples:
    """Registers of n samples and m copies of memory; copies of sample i are those from copy_start[i] up to copy_start[i + 1]."""

    memory: Buffer | npt.NDArray[np.uint8]
    """What the copies are taken from."""
    registers: npt.NDArray[np.uint64]
    """(n, 17): RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15 (as the hardware numbers them), RIP."""
    mode: npt.NDArray[np.uint8]
    """n: MODE_KERNEL for 64-bit kernel code, MODE_USER for 64-bit user code, MODE_SKIP not to walk."""
    kernel: npt.NDArray[np.int32]
    """n: what add_kernel() gave, or -1."""
    space: npt.NDArray[np.int32]
    """n: what add_space() gave, or -1."""
    copy_start: npt.NDArray[np.int64]
    """n + 1, ascending."""
    copy_address: npt.NDArray[np.uint64]
    """m: where in the guest the copy was."""
    copy_offset: npt.NDArray[np.int64]
    """m: where in memory it is, in bytes."""
    copy_size: npt.NDArray[np.int64]
    """m: in bytes."""


@dataclass(frozen=True, eq=False)
class Stacks:
    """Frames of n samples, leaf first; those of sample i are from start[i] up to start[i + 1]."""

    start: npt.NDArray[np.int64]
    """n + 1."""
    address: npt.NDArray[np.uint64]
    """One for each frame; with FRAME_RETURN in how, the byte before it is the one to look up."""
    how: npt.NDArray[np.uint8]
    """One for each frame: HOW_* in the low four bits (how it was found from the one before), FRAME_RETURN, FRAME_USER."""
    kernel_end: npt.NDArray[np.uint8]
    """n: END_* of the kernel's part."""
    user_end: npt.NDArray[np.uint8]
    """n: END_* of the user's part."""


class Engine:
    """Kernels, binaries and address spaces, each known by the number that it was given, and walks over them.

    Buffers given are held, not copied, and must not change. Walks release the interpreter's lock; those of one engine run one after another.
    """

    def __init__(self) -> None:
        self._unwinder = _native.Unwinder()

    def add_kernel(self, orc: Iterable[tuple[npt.ArrayLike, Buffer]], layout: int, text: Sequence[tuple[int, Buffer]]) -> int:
        """Give the number of a kernel with its modules.

        Args:
            orc: for the kernel and each module, the runtime addresses of its ORC entries (uint64) and the entries (6 bytes each).
            layout: what orc.orc_layout() says.
            text: runtime addresses and code of the kernel and its modules. Where there is none, no return address can be
                proven, and code without ORC ends a stack.

        Raises:
            ValueError: entries and addresses differ in number, or there is no such layout.
        """
        return self._unwinder.add_kernel([(_column(addresses, np.uint64), entries) for addresses, entries in orc], layout, text)

    def add_binary(
        self,
        size: int,
        runs: Runs,
        eh_frame: tuple[int, int] | None = None,
        debug_frame: tuple[int, int] | None = None,
        kept: Runs | None = None,
    ) -> int:
        """Give the number of an ELF file of which perhaps only some pages are there.

        Args:
            size: of the file, in bytes.
            runs: file offsets and bytes, ascending, not overlapping.
            eh_frame: file offset and size of the section, where known. Used if the file has no search table (.eh_frame_hdr).
            debug_frame: likewise.
            kept: runs with more pages that hold tables, which somebody else says are the file's. Used where pages are missing in ``runs``,
                and only for steps that the code in ``runs`` proves.

        Raises:
            ValueError: runs overlap or do not ascend. What is in them raises nothing: a walk that needs it ends there, and says why.
        """
        return self._unwinder.add_binary(size, runs, eh_frame, debug_frame, kept)

    def add_space(self, start: npt.ArrayLike, end: npt.ArrayLike, offset: npt.ArrayLike, binary: npt.ArrayLike) -> int:
        """Give the number of a process's executable mappings.

        Args:
            start, end: addresses (uint64), ascending, not overlapping.
            offset: of start in the file, in bytes (uint64).
            binary: what add_binary() gave, or -1 for memory without a file, or one that was not taken (int32).

        Raises:
            ValueError: mappings overlap or do not ascend, or a binary is not known.
        """
        return self._unwinder.add_space(_column(start, np.uint64), _column(end, np.uint64), _column(offset, np.uint64), _column(binary, np.int32))

    def walk(self, samples: Samples, max_depth: int = MAX_DEPTH) -> Stacks:
        """Unwind all samples; at most max_depth frames each.

        Raises:
            ValueError: columns that do not fit together, copies outside the memory, numbers that are not known.
        """
        return _stacks(self._unwinder.walk(*_columns(samples), max_depth=max_depth))

    def scan(self, samples: Samples, max_depth: int = MAX_DEPTH) -> Stacks:
        """Without tables: every word of the copies, from the stack pointer up, that follows a call in known text.

        Such a frame was a return address once; whether it still was one is not known. Ends: END_USER_ENTRY where the user's registers were found above the
        kernel's stack, END_DEPTH, else END_CUT. Raises as walk() does.
        """
        return _stacks(self._unwinder.scan(*_columns(samples), max_depth=max_depth))


def _columns(samples: Samples) -> tuple[Any, Any, Any, Any, Any, Any, Any, Any, Any]:
    return (
        samples.memory,
        _column(samples.registers, np.uint64),
        _column(samples.mode, np.uint8),
        _column(samples.kernel, np.int32),
        _column(samples.space, np.int32),
        _column(samples.copy_start, np.int64),
        _column(samples.copy_address, np.uint64),
        _column(samples.copy_offset, np.int64),
        _column(samples.copy_size, np.int64),
    )


def _stacks(result: tuple[bytearray, ...]) -> Stacks:
    start, address, how, kernel_end, user_end = result
    return Stacks(
        np.frombuffer(start, np.int64),
        np.frombuffer(address, np.uint64),
        np.frombuffer(how, np.uint8),
        np.frombuffer(kernel_end, np.uint8),
        np.frombuffer(user_end, np.uint8),
    )
