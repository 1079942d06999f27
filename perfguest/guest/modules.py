# SPDX-License-Identifier: Apache-2.0
"""A guest kernel's loaded modules with their symbols and ORC tables, and its BPF programs and trampolines.

Each list is followed for so many steps at most, and never twice through the same place: what a guest says of itself need not be so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import drgn
import numpy as np
from drgn import Object, Program, Type

from perfguest.errors import FormatError
from perfguest.formats.orc import read_orc
from perfguest.guest.image import build_id_note
from perfguest.guest.memory import PAGE, GuestFault
from perfguest.proto import guest_pb2

MAX_MODULES, MAX_BPF = 2048, 1 << 16
#: Symbols of one module, and bytes of their names.
MAX_SYMBOLS, MAX_NAMES = 1 << 18, 16 << 20

_ERRORS = (drgn.FaultError, GuestFault, FormatError, LookupError, TypeError, ValueError, OverflowError)
_NAME = re.compile(rb"[\x21-\x7e]{1,64}")
_SYMBOL = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")])
_EXPORT = np.dtype([("value", "<i4"), ("name", "<i4"), ("namespace", "<i4")])
_UNFORMED = 3
_SYMBOL_NAME, _MAX_NOTES = 512, 16


@dataclass
class Loaded:
    """``modules``: by address; ``bpf``: programs and trampolines, named as ``/proc/kallsyms`` does. ``problems``: what could not be read of them, in words.
    ``whole``: whether none is missing, as far as the kernel has lists of them."""

    modules: list[guest_pb2.Module] = field(default_factory=list)
    bpf: guest_pb2.Symbols = field(default_factory=guest_pb2.Symbols)
    problems: list[str] = field(default_factory=list)
    whole: bool = True

    def missed(self, what: str, error: Exception) -> None:
        """A list could not be read to its end."""
        # In front of what is told of single modules, of which there may be many.
        self.problems.insert(0, f"{what}: {error}")
        # A kernel without a variable or a member will never have it.
        self.whole = self.whole and isinstance(error, LookupError)


def read_loaded(prog: Program) -> Loaded:
    """What is loaded now. What cannot be read is left out."""
    loaded = _read_loaded(prog)
    # Most likely one of them went meanwhile.
    return loaded if loaded.whole else _read_loaded(prog)


def _read_loaded(prog: Program) -> Loaded:
    loaded = Loaded()
    try:
        _read_modules(prog, loaded)
    except _ERRORS as error:
        loaded.missed("modules", error)
    loaded.modules.sort(key=lambda module: module.address)
    _read_bpf(prog, loaded)
    return loaded


def _read_modules(prog: Program, loaded: Loaded) -> None:
    head = prog["modules"].address_of_().value_()
    type_ = prog.type("struct module")
    for address in _list(prog, head, drgn.offsetof(type_, "list"), MAX_MODULES):
        try:
            module = _module(Object(prog, type_, address=address), loaded.problems)
        except _ERRORS as error:
            loaded.problems.append(f"a module: {error}")
            loaded.whole = False
            continue
        if module:
            loaded.modules.append(module)


def _read_bpf(prog: Program, loaded: Loaded) -> None:
    rows: list[tuple[int, bytes, bytes]] = []
    try:
        type_ = prog.type("struct bpf_ksym")
        name = _offset_and_size(type_, "name")
        for address in _list(prog, prog["bpf_kallsyms"].address_of_().value_(), drgn.offsetof(type_, "lnode"), MAX_BPF):
            text = prog.read(address + name[0], min(name[1], _SYMBOL_NAME)).split(b"\0", 1)[0]
            rows.append((prog.read_u64(address + drgn.offsetof(type_, "start")), b"t", text))
    except _ERRORS as error:
        loaded.missed("BPF programs", error)
    loaded.bpf = symbols_proto(rows)


def symbols_proto(rows: list[tuple[int, bytes, bytes]]) -> guest_pb2.Symbols:
    """(address, type, name) in the order of the addresses; symbols without a name are left out, as in ``/proc/kallsyms``."""
    rows = sorted((row for row in rows if row[2]), key=lambda row: row[0])
    return guest_pb2.Symbols(
        addresses=np.array([row[0] for row in rows], "<u8").tobytes(), types=b"".join(row[1] for row in rows), names=b"".join(row[2] + b"\0" for row in rows)
    )


def _list(prog: Program, head: int, offset: int, limit: int) -> Iterator[int]:
    """Addresses of what a ``struct list_head`` links, ``offset`` before each link."""
    seen = {head}
    at = prog.read_u64(head)
    while at not in seen:
        if len(seen) > limit:
            raise FormatError("a list that does not end")
        seen.add(at)
        yield at - offset & (1 << 64) - 1
        at = prog.read_u64(at)
    if at != head:
        raise FormatError("a list that loops")


def _module(module: Object, problems: list[str]) -> guest_pb2.Module | None:
    # Read at once, so that all of it is of one moment; what it points to is checked as it is read.
    live, module = module, module.read_()
    name = module.name.string_()
    if module.state.value_() == _UNFORMED:
        return None
    if not _NAME.fullmatch(name):
        raise FormatError("a module without a proper name")
    address, size = _text(module)
    result = guest_pb2.Module(name=name, address=address, size=size, build_id=_build_id(module))
    for what, read in (("symbols", _read_symbols), ("ORC table", _read_orc)):
        try:
            read(module, result)
        except _ERRORS as error:
            problems.append(f"{name.decode()}: {what}: {error}")
    again = live.read_()
    if (again.name.string_(), again.state.value_(), _text(again)) != (name, module.state.value_(), (address, size)):
        raise FormatError("a module that went while it was read")
    return result


def _text(module: Object) -> tuple[int, int]:
    """Where the module's code is. ``mem`` since Linux commit ac3b43283923 ("module: replace module_layout with module_memory"), v6.4."""
    if _has(module, "mem"):
        text = module.mem[_part(module.prog_, "MOD_TEXT")]
        address, size = text.base.value_(), text.size.value_()
    else:
        address, size = module.core_layout.base.value_(), module.core_layout.text_size.value_()
    if address >> 63 == 0 or not 0 < size <= 1 << 30:
        raise FormatError(f"{size} bytes of code at {address:#x}")
    return address, size


def _part(prog: Program, name: str) -> int:
    # By its enumeration: a constant alone would be sought among all enumerations there are.
    parts = {item.name: item.value for item in prog.type("enum mod_mem_type").enumerators or ()}
    return int(parts[name])


def _build_id(module: Object) -> bytes:
    """In the module itself where CONFIG_STACKTRACE_BUILD_ID has it there, else from the notes that /sys/module/NAME/notes shows."""
    if _has(module, "build_id"):
        return bytes(module.build_id.value_())
    prog = module.prog_
    try:
        attributes = module.notes_attrs.value_() + drgn.offsetof(module.notes_attrs.type_.type, "attrs")
        type_ = prog.type("struct bin_attribute")
        for i in range(_MAX_NOTES):
            note = Object(prog, type_, address=attributes + i * drgn.sizeof(type_)).read_()
            name = _string(prog, note.attr.name.value_())
            if not name.startswith(b".note"):
                break
            if name == b".note.gnu.build-id":
                return build_id_note(prog.read(note.private.value_(), min(note.size.value_(), PAGE)))
    except _ERRORS:
        # Most are built without them: then there is none.
        return b""
    return b""


def _read_symbols(module: Object, result: guest_pb2.Module) -> None:
    """As kernel/module/kallsyms.c lists them: capital letters for what the module exports."""
    prog = module.prog_
    table = module.kallsyms.read_()[0]
    count = table.num_symtab.value_()
    if not 0 < count <= MAX_SYMBOLS:
        raise FormatError(f"{count} symbols")
    symtab = np.frombuffer(prog.read(table.symtab.value_(), _SYMBOL.itemsize * count), _SYMBOL)
    types = prog.read(table.typetab.value_(), count)
    names = _names(prog, table.strtab.value_(), symtab["name"])
    exported = _exported(module)
    values = symtab["value"].tolist()
    letters = [letter.upper() if value in exported else letter.lower() for value, letter in zip(values, (types[i : i + 1] for i in range(count)), strict=True)]
    result.symbols.CopyFrom(symbols_proto(list(zip(values, letters, names, strict=True))))


def _names(prog: Program, address: int, offsets: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> list[bytes]:
    last = int(offsets.max())
    if last > MAX_NAMES:
        raise FormatError(f"names of {last} bytes")
    # The last one ends with the table, somewhere in the next bytes: its length is known only when it is read.
    text = prog.read(address, last) + _string(prog, address + last) + b"\0"
    return [text[start : text.index(b"\0", start)] for start in offsets.tolist()]


def _string(prog: Program, address: int) -> bytes:
    return bytes(prog.read_c_string(address, max_size=_SYMBOL_NAME))


def _exported(module: Object) -> set[int]:
    """Addresses that the module exports: ``struct kernel_symbol`` with relative references (include/linux/export-internal.h)."""
    prog, found = module.prog_, set()
    for table, count in (("syms", "num_syms"), ("gpl_syms", "num_gpl_syms"), ("gpl_future_syms", "num_gpl_future_syms")):
        if not _has(module, table):
            continue
        number, address = getattr(module, count).value_(), getattr(module, table).value_()
        if number and number <= MAX_SYMBOLS and prog.type("struct kernel_symbol").size == _EXPORT.itemsize:
            places = np.arange(number, dtype=np.uint64) * np.uint64(_EXPORT.itemsize) + np.uint64(address)
            distances = np.frombuffer(prog.read(address, _EXPORT.itemsize * number), _EXPORT)["value"]
            found |= set((places + distances.astype(np.int64).view(np.uint64)).tolist())
    return found


def _read_orc(module: Object, result: guest_pb2.Module) -> None:
    if not _has(module.arch, "num_orcs") or not module.arch.num_orcs:
        return
    arch, prog = module.arch, module.prog_
    result.orc.CopyFrom(read_orc(prog.read, arch.orc_unwind_ip.value_(), arch.orc_unwind.value_(), arch.num_orcs.value_()))


def _has(struct: Object, member: str) -> bool:
    return bool(struct.type_.has_member(member))


def _offset_and_size(type_: Type, member: str) -> tuple[int, int]:
    found = type_.member(member)
    return found.bit_offset // 8, drgn.sizeof(found.type)
