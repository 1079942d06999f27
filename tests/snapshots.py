# SPDX-License-Identifier: Apache-2.0
"""Snapshots of guests' memory as the recorder stores them, made from files: a kernel's image, /proc/kallsyms, programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from perfguest.formats import guest_stream
from perfguest.formats.guest_format import parse_format
from perfguest.formats.kernel_image import KernelImage
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.elf import parse_elf

PAGE = 4096


def symbols_message(rows: Iterable[tuple[int, str, str]]) -> pb.Symbols:
    """Of (address, type, name), in any order."""
    ordered = sorted(rows, key=lambda row: row[0])
    return pb.Symbols(
        addresses=np.array([row[0] for row in ordered], "<u8").tobytes(),
        types="".join(row[1] for row in ordered).encode(),
        names=b"".join(row[2].encode() + b"\0" for row in ordered),
    )


def kernel_message(image: KernelImage, with_text: bool = True) -> pb.Kernel:
    """As read from memory before the kernel rewrote any of its code."""
    columns = image.symbols
    message = pb.Kernel(
        format_version=1,
        release=image.release,
        build_id=bytes.fromhex(image.build_id),
        symbols=symbols_message(zip(columns.address.tolist(), map(chr, columns.kind.tolist()), columns.names, strict=True)),
    )
    for section in image.text if with_text else ():
        message.text.add(address=section.address, data=image.content(section).tobytes())
    return message


def modules_of(kallsyms: Path) -> list[pb.Module]:
    """The modules in a copy of /proc/kallsyms."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    for line in kallsyms.read_text().splitlines():
        symbol, tab, module = line.partition("\t")
        if tab:
            address, kind, name = symbol.split(" ", 2)
            found.setdefault(module.strip("[]"), []).append((int(address, 16), kind, name))
    modules = []
    for name, rows in found.items():
        low, high = min(row[0] for row in rows), max(row[0] for row in rows)
        modules.append(pb.Module(name=name.encode(), address=low, size=(high - low | PAGE - 1) + 1, symbols=symbols_message(rows)))
    return modules


def binary_message(path: Path, present: Callable[[int], bool] = lambda page: True) -> pb.Binary:
    """``present``: of the number of a page, whether the page cache has it."""
    data = path.read_bytes()
    message = pb.Binary(format_version=1, path=str(path).encode(), size=len(data), build_id=bytes.fromhex(parse_elf(data, str(path)).build_id))
    for page in range(-(-len(data) // PAGE)):
        if present(page):
            piece = data[page * PAGE : (page + 1) * PAGE]
            if message.pages and message.pages[-1].address + len(message.pages[-1].data) == page * PAGE:
                message.pages[-1].data += piece
            else:
                message.pages.add(address=page * PAGE, data=piece)
    return message


def mappings_of(path: Path, name: str, key: str, bias: int = 0) -> list[pb.Mapping]:
    """As the loader maps an ELF file."""
    mappings = []
    for segment in parse_elf(path.read_bytes(), str(path)).segments:
        start, end = segment.vaddr + bias & -PAGE, segment.vaddr + bias + segment.size + PAGE - 1 & -PAGE
        mappings.append(pb.Mapping(start=start, end=end, offset=segment.offset & -PAGE, path=name.encode(), executable=True, binary=key))
    return mappings


def events(*messages: pb.VmKernel | pb.Process | pb.Problem) -> list[pb.GuestEvent]:
    found = []
    for message in messages:
        kind = {pb.VmKernel: "kernel", pb.Process: "process", pb.Problem: "problem"}[type(message)]
        event = pb.GuestEvent()
        getattr(event, kind).CopyFrom(message)
        found.append(event)
    return found


def stamp_tasks(stream: bytes, tasks: Sequence[tuple[int, tuple[int, int, int, bytes]]], task_flag: int = 1 << 12) -> bytes:
    """A guest.stream whose samples carry, by the page table (CR3) that they have, the thread (tid, tgid, start, comm)."""
    known = dict(tasks)
    text, at = guest_stream._read_head(Path("stream"), stream)
    sample = parse_format(text)["sample"]
    indices, _, _ = guest_stream._walk(memoryview(stream)[: len(stream) & ~7].cast("I"), at // 4, len(stream) // 4)
    out = bytearray(stream)
    for offset in (4 * index for index in indices):
        if int.from_bytes(stream[offset : offset + 4], "little") != sample.type:
            continue
        record = np.frombuffer(out, sample.dtype, 1, offset)[0:1].copy()
        task = known.get(int(record["cr3"][0]) & 0x000FFFFFFFFFF000)
        if task is not None:
            record["flags"] |= np.uint64(task_flag)
            record["task_pid"], record["task_tgid"], record["task_start"], record["task_comm"] = task
            # Written whole: all fields of a sample are described.
            out[offset : offset + sample.dtype.itemsize] = record.tobytes()
    return bytes(out)
