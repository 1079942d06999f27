# SPDX-License-Identifier: Apache-2.0
"""The module's pure C as a shared object, and guest memory that Python serves to it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi

KMOD = Path(__file__).parents[2] / "kmod"
SOURCES = ("paging.c", "entry.c", "frames.c", "stacks.c", "gs_scan.c")
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
PAGE = 4096

# cffi cannot parse the system's headers; these stand in for them while ours are preprocessed.
_TYPES = "".join(f"typedef {c} {name};\n" for c, name in (("unsigned char", "__u8"), ("unsigned short", "__u16"), ("unsigned int", "__u32")))
_TYPES += "typedef int __s32;\ntypedef unsigned long long __u64;\n"


def _declarations(directory: Path) -> str:
    """What the headers in kmod declare, so that no test can disagree with them."""
    (directory / "linux").mkdir()
    (directory / "linux" / "types.h").write_text(f"#ifndef T\n#define T\n{_TYPES}#endif\n")
    for name in ("stdbool.h", "stddef.h"):
        (directory / name).write_text("")
    headers = "".join(f'#include "{name}"\n' for name in ("perfguest_abi.h", "frames.h", "stacks.h", "gs_scan.h"))
    command = ["gcc", "-E", "-P", "-nostdinc", f"-I{directory}", f"-I{KMOD}", "-xc", "-"]
    return subprocess.run(command, input=headers, capture_output=True, text=True, check=True).stdout


class Pure:
    """The functions (`lib`) and types (`ffi`) of the pure C files."""

    def __init__(self, directory: Path) -> None:
        library = directory / "pure.so"
        sources = [str(KMOD / name) for name in SOURCES]
        subprocess.run(["gcc", *WARNINGS, "-O2", "-fPIC", "-shared", "-o", library, *sources], check=True)
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(_declarations(directory))
        self.lib: Any = self.ffi.dlopen(str(library))

    def scan(self, code: bytes, address: int = 0) -> tuple[int, int]:
        offset = self.ffi.new("__u64 *")
        # A buffer of exactly this size, so that a read beyond it is one beyond the allocation.
        buffer = self.ffi.new("__u8[]", code)
        return self.lib.pg_scan_gs_offset(buffer, len(code), address, offset), offset[0]


class Memory:
    """Guest-physical memory in pages; what is not there has no memslot. Counts the reads."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.not_resident: set[int] = set()
        self.reads = 0

    def write(self, gpa: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            number, start = divmod(gpa + done, PAGE)
            part = data[done : done + PAGE - start]
            self.pages.setdefault(number, bytearray(PAGE))[start : start + len(part)] = part
            done += len(part)

    def read(self, gpa: int, size: int) -> bytes | None:
        page = self.pages.get(gpa // PAGE)
        return None if page is None else bytes(page[gpa % PAGE : gpa % PAGE + size])


class Guest:
    """One address space over a memory; holds what C keeps pointers to."""

    def __init__(self, pure: Pure, memory: Memory, *, cr0: int = 0, cr3: int = 0, cr4: int = 0, efer: int = 0, maxphyaddr: int = 52) -> None:
        self._pure, self.memory = pure, memory
        ffi = pure.ffi
        self.paging = ffi.new("struct pg_paging *", {"cr0": cr0, "cr3": cr3, "cr4": cr4, "efer": efer, "maxphyaddr": maxphyaddr})
        self._callback = ffi.callback("pg_read_phys_fn", self._reader(), error=-1)
        self._phys = ffi.new("struct pg_phys *", {"read": self._callback})
        self.virt = ffi.new("struct pg_virt *")
        self.forget()

    def _reader(self) -> Callable[[Any, int, Any, int], int]:
        ffi, lib, memory = self._pure.ffi, self._pure.lib, self.memory

        def read(_context: Any, gpa: int, buffer: Any, size: int) -> int:
            memory.reads += 1
            assert 0 < size <= PAGE - gpa % PAGE
            if gpa // PAGE in memory.not_resident:
                return int(lib.PG_END_NOT_RESIDENT)
            data = memory.read(gpa, size)
            if data is None:
                return int(lib.PG_END_NO_SLOT)
            ffi.memmove(buffer, data, size)
            return 0

        return read

    def forget(self) -> None:
        """Begin anew, as for the next sample: nothing translated yet."""
        self._pure.lib.pg_virt_init(self.virt, self.paging, self._phys)

    def translate(self, gva: int) -> tuple[int, int, int]:
        """The error, the guest-physical address and the page's size."""
        gpa, size = self._pure.ffi.new("__u64 *"), self._pure.ffi.new("__u64 *")
        return self._pure.lib.pg_translate(self.paging, self._phys, gva, gpa, size), gpa[0], size[0]

    def read(self, gva: int, size: int) -> tuple[int, bytes]:
        buffer = self._pure.ffi.new("char[]", max(size, 1))
        return self._pure.lib.pg_read_virt(self.virt, gva, buffer, size), bytes(self._pure.ffi.buffer(buffer, size))

    def read_some(self, gva: int, size: int) -> tuple[bytes, int]:
        buffer, end = self._pure.ffi.new("char[]", max(size, 1)), self._pure.ffi.new("int *")
        got = self._pure.lib.pg_read_virt_some(self.virt, gva, buffer, size, end)
        return bytes(self._pure.ffi.buffer(buffer, got)), end[0]
