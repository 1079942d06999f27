# SPDX-License-Identifier: Apache-2.0
"""Checks what the reader of a guest's memory sends: it comes out of the guest, and the reader itself may be in the guest's hands.

Each function raises :class:`CaptureError` for what cannot be so, and leaves the message as it may be stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from perfguest.capture.debugfs import TaskLayout
from perfguest.errors import CaptureError, FormatError
from perfguest.formats.guest_snapshot import is_key
from perfguest.guest.tables import check_raw
from perfguest.proto import guest_pb2 as pb
from perfguest.proto import tables_pb2

LEVELS = ("addresses", "symbols", "processes")

_U64 = 1 << 64
_MAX_SYMBOLS = 4 << 20
_MAX_ORC = 32 << 20
_MAX_MODULES = 4096
# The kernel's own limits: vm.max_map_count with room, PATH_MAX, TASK_COMM_LEN.
_MAX_MAPPINGS = 1 << 18
_MAX_PATH = 4096
_MAX_COMM = 16
_MAX_PID = 1 << 22
_MAX_OWNERS = 256
_MAX_BUILD_ID = 64
_MAX_PERF_MAP = 32 << 20
_MAX_TEXT = 1000
# What packing may add to what it cannot make smaller (zlib's deflateBound, with room).
_PACKING_ROOM = 1 << 16
_PAGE = 4096


def not_asked_for() -> CaptureError:
    """What a reader sent has no place where it was sent."""
    return CaptureError("the reader of the guest's memory sent what was not asked for", "The guest may be hostile. Recording went on without it.")


def parse(message: Message, payload: bytes) -> None:
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise _rejected(f"a message that is none ({error})") from error


def check_kernel(kernel: pb.Kernel) -> None:
    _check_text(kernel.release, "the kernel's release")
    _check(1 <= len(kernel.build_id) <= _MAX_BUILD_ID, "a kernel's build id of impossible length")
    _check_symbols(kernel.symbols)
    _check_orc(kernel.orc)
    _check(len(kernel.text) <= 1024 and all(part.address + len(part.data) <= _U64 for part in kernel.text), "impossible text of the kernel")


def check_tables(tables: tables_pb2.KernelTables, raw: tables_pb2.KernelRaw, mark: str) -> None:
    """``raw``: with hashes, what they are to be made of; ``mark``: the fingerprint of the kernel that they are to be."""
    try:
        check_raw(raw)
    except FormatError as error:
        raise _rejected(error.message) from error
    _check(tables.raw == raw and tables.fingerprint == mark, "tables of another kernel")
    _check_text(tables.release, "the kernel's release")
    _check(1 <= len(tables.build_id) <= _MAX_BUILD_ID, "a kernel's build id of impossible length")
    _check(len(tables.btf_places) % 4 == 0 and len(tables.btf_places) <= raw.btf.size, "impossible places of types")
    _check_symbols(pb.Symbols(addresses=tables.addresses, types=tables.types, names=tables.names))


def check_vm_kernel(kernel: pb.VmKernel) -> None:
    _check(kernel.level in LEVELS, "an unknown level")
    _check(not kernel.kernel or is_key(kernel.kernel), "an impossible key of a kernel")
    kernel.reason = kernel.reason[:_MAX_TEXT]
    _check(len(kernel.modules) <= _MAX_MODULES, "too many modules")
    for module in kernel.modules:
        _check(len(module.name) <= 256 and len(module.build_id) <= _MAX_BUILD_ID and module.address + module.size <= _U64, "an impossible module")
        _check_symbols(module.symbols)
        _check_orc(module.orc)
    _check_symbols(kernel.bpf)


def check_module_text(text: pb.ModuleText, address: int, size: int) -> None:
    """``address``, ``size``: what was asked for."""
    _check((text.address, text.size) == (address, size) and len(text.packed) <= size + _PACKING_ROOM, "another module's code than was asked for")


def check_process(process: pb.Process) -> None:
    _check(len(process.comm) <= _MAX_COMM and len(process.command) <= _MAX_PATH and len(process.cgroup) <= _MAX_PATH, "a process with names too long")
    _check(len(process.mappings) <= _MAX_MAPPINGS, "a process with too many mappings")
    _check(len(process.perf_map) <= _MAX_PERF_MAP, "a perf map too large")
    for mapping in process.mappings:
        _check(mapping.start < mapping.end and len(mapping.path) <= _MAX_PATH + 16, "an impossible mapping")
        _check(not mapping.binary or is_key(mapping.binary), "an impossible key of a binary")


def check_binary(binary: pb.Binary, budget: int) -> int:
    """Gives the bytes of its pages."""
    _check(len(binary.build_id) <= _MAX_BUILD_ID and len(binary.path) <= _MAX_PATH + 16, "a binary with names too long")
    end = 0
    for run in binary.pages:
        _check(run.address % _PAGE == 0 and run.address >= end and 0 < len(run.data) <= binary.size - run.address, "impossible pages of a binary")
        end = run.address + len(run.data)
    total = sum(len(run.data) for run in binary.pages)
    _check(total <= budget + _PAGE, "more of a binary than was asked for")
    return total


def check_owners(value: Any) -> list[tuple[int, int]]:
    """``value``: what JSON holds. (tgid, start) of processes."""
    _check(isinstance(value, list) and len(value) <= _MAX_OWNERS, "impossible processes")
    for one in value:
        _check(isinstance(one, list) and len(one) == 2 and all(type(number) is int for number in one), "a process that is none")
        _check(0 < one[0] < _MAX_PID and 0 <= one[1] < _U64, "an impossible process")
    return [(tgid, start) for tgid, start in value]


def check_layout(value: Any) -> TaskLayout | None:
    """``value``: what JSON holds. The module checks the numbers again."""
    if value is None:
        return None
    names = tuple(TaskLayout.__dataclass_fields__)
    _check(isinstance(value, dict) and set(value) == set(names) and all(type(value[name]) is int for name in names), "a layout of tasks that is none")
    _check(0 <= value["current"] < _U64 and all(0 <= value[name] < 1 << 20 for name in names[1:]), "an impossible layout of tasks")
    return TaskLayout(**value)


def _check_symbols(symbols: pb.Symbols) -> None:
    number = len(symbols.types)
    _check(number <= _MAX_SYMBOLS and len(symbols.addresses) == 8 * number and symbols.names.count(0) == number, "symbols that do not fit together")
    _check(not symbols.names or symbols.names.endswith(b"\0"), "symbols whose last name does not end")
    _check_ascending(symbols.addresses)


def _check_orc(orc: pb.Orc) -> None:
    _check(len(orc.addresses) % 8 == 0 and len(orc.addresses) // 8 <= _MAX_ORC and 6 * (len(orc.addresses) // 8) == len(orc.entries), "an impossible ORC table")
    _check_ascending(orc.addresses)


def _check_ascending(addresses: bytes) -> None:
    values = np.frombuffer(addresses, "<u8")
    _check(bool((values[1:] >= values[:-1]).all()), "addresses that do not ascend")


def _check_text(text: str, what: str) -> None:
    _check(len(text) <= 256, f"{what} of impossible length")


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise _rejected(what)


def _rejected(what: str) -> CaptureError:
    return CaptureError(f"the guest's memory gave {what}", "The guest may be hostile, or its kernel one that is not known yet.")
