# SPDX-License-Identifier: Apache-2.0
"""Kernels and modules in a directory with a guest's files, at their paths in the guest.

Which kernel of several it ran is not told by the directory. A file is used only if it is proven to be the guest's: of a kernel's image the release and
the build id that were read out of the guest's memory, its syscall entry, and its symbols where a copy of /proc/kallsyms is given; of a module the build id
out of memory, or that the guest's own list of symbols has each function of the file, and no other, in its place.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from perfguest.errors import FormatError, PerfguestError
from perfguest.formats.kernel_module import ModuleFile, module_name, read_module
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.guest_kernel import GuestKernel, KernelFile, kernel_offset
from perfguest.symbols.kernel_tables import KernelTables, add_modules

#: (Address, name) of what a copy of /proc/kallsyms lists for a module.
SymbolRows = Sequence[tuple[int, str]]

_RELEASE = re.compile(r"[\w.+~-]{1,128}")
_MODULE = re.compile(r"\.ko(\.\w{2,4})?$")
_MODULE_DIRECTORIES = ("lib/modules", "usr/lib/modules")
# More kernels than that are no guest's.
_MAX_IMAGES = 32
_MAX_MODULES = 20_000
_PROBLEMS_TOLD = 5
_PAGE = 4096


class GuestFiles:
    """The files of one VM in the ``directories`` that were given for it. ``called``: how notes call the VM."""

    def __init__(self, directories: Sequence[Path], called: str) -> None:
        self._directories = [directory.resolve() for directory in directories]
        self._called = called
        self._modules: dict[Path, ModuleFile | None] = {}
        self._problems: dict[str, None] = {}

    @property
    def notes(self) -> list[str]:
        """Lines for people on files that were not used."""
        told = list(self._problems)
        more = [f"{self._called}: {len(told) - _PROBLEMS_TOLD} more files of its directory were not used"] if len(told) > _PROBLEMS_TOLD else []
        return [f"{self._called}: {problem}" for problem in told[:_PROBLEMS_TOLD]] + more

    def images(self, release: str = "") -> list[Path]:
        """Images of kernels of that release, or of any."""
        if release and not _RELEASE.fullmatch(release):
            return []
        name = release or "*"
        patterns = (f"boot/vmlinuz-{name}", *(f"{place}/{name}/vmlinuz" for place in _MODULE_DIRECTORIES), f"boot/vmlinux-{name}")
        found = [self._inside(path, root) for root in self._directories for pattern in patterns for path in sorted(root.glob(pattern))]
        return list(dict.fromkeys(path for path in found if path is not None and path.is_file()))[:_MAX_IMAGES]

    def kernels(self, entry: int, releases: set[str], build_ids: set[str], kallsyms: GuestKernel | None, dso: str) -> list[GuestKernel]:
        """Images that can be the kernel whose syscall entry is ``entry``, where they ran; of several the samples must tell.

        ``releases``, ``build_ids``: what is known of it from memory, if anything. ``kallsyms``: the copy of its /proc/kallsyms, if there is one.
        """
        found: dict[str, GuestKernel] = {}
        for path in [path for release in sorted(releases) or [""] for path in self.images(release)]:
            try:
                file = KernelFile.read_vmlinux(str(path))
                kernel = GuestKernel(file, kernel_offset(file, entry), dso)
            except PerfguestError as error:
                self._problems[error.message] = None
                continue
            if build_ids and kernel.build_id not in build_ids:
                self._problems[f"{path} is not the kernel that it ran: it has another build id"] = None
            elif kallsyms is not None and not _has_symbols_of(kernel, kallsyms):
                self._problems[f"{path} is not the kernel that it ran: its functions are not where {kallsyms.file.path} has them"] = None
            else:
                found.setdefault(kernel.build_id or str(path), kernel)
        return list(found.values())

    def releases(self) -> list[str]:
        """Those whose modules are there."""
        places = [path.name for root in self._directories for place in _MODULE_DIRECTORIES for path in root.glob(f"{place}/*") if path.is_dir()]
        return sorted({name for name in places if _RELEASE.fullmatch(name)})

    def add_modules(self, tables: KernelTables, release: str, modules: Sequence[pb.Module], listed: Mapping[str, SymbolRows]) -> None:
        """Adds the tables of modules of which none were read.

        ``release``: of the kernel, empty if not known. ``modules``: as they were read out of memory. ``listed``: symbols of modules, by name.
        """
        missing = {_name(module): module for module in modules if not len(module.orc.addresses)}
        wanted = missing.keys() | (listed.keys() - {_name(module) for module in modules})
        if not wanted:
            return
        paths = self._module_paths(release)
        for name in sorted(wanted & paths.keys()):
            add_modules(tables, self._placed(paths[name], missing.get(name), listed.get(name, ()), release))

    def _placed(self, paths: Sequence[Path], module: pb.Module | None, rows: SymbolRows, release: str) -> list[pb.Module]:
        """The module as the first file has it that is proven to be the guest's; empty if there is none."""
        for path in paths:
            file = self._read(path)
            if file is None:
                continue
            try:
                address = placed_by_memory(file, module, release) if module is not None else placed_by_symbols(file, rows)
                return [file.message(address)]
            except FormatError as error:
                self._problems[error.message] = None
        return []

    def _read(self, path: Path) -> ModuleFile | None:
        if path not in self._modules:
            try:
                self._modules[path] = read_module(str(path))
            except PerfguestError as error:
                self._problems[f"{error.message}; {error.hint}"] = None
                self._modules[path] = None
        return self._modules[path]

    def _module_paths(self, release: str) -> dict[str, list[Path]]:
        releases = [release] if _RELEASE.fullmatch(release) else self.releases()
        if len(releases) > 1:
            self._problems[f"its directory has modules of {len(releases)} kernels, and nothing tells which of them it ran; give --guestvmlinux, too"] = None
            return {}
        found: dict[str, list[Path]] = {}
        for path in (path for one in releases for path in islice(self._walk(one), _MAX_MODULES)):
            found.setdefault(module_name(path.name), []).append(path)
        return found

    def _walk(self, release: str) -> Iterator[Path]:
        """Without following links, of which ``build`` and ``source`` lead elsewhere."""
        tops = [self._inside(root / place / release, root) for root in self._directories for place in _MODULE_DIRECTORIES]
        for top in dict.fromkeys(top for top in tops if top is not None):
            for directory, below, names in os.walk(top):
                below.sort()
                yield from (Path(directory, name) for name in sorted(names) if _MODULE.search(name) and Path(directory, name).is_file())

    @staticmethod
    def _inside(path: Path, root: Path) -> Path | None:
        """What ``path`` is, unless links lead out of the directory: a name out of a guest must not."""
        resolved = path.resolve()
        return resolved if resolved.is_relative_to(root) else None


def _has_symbols_of(kernel: GuestKernel, kallsyms: GuestKernel) -> bool:
    """Whether all of the kernel's own functions in the list are functions of the image, of the same names."""
    mine, theirs = kernel.table, kallsyms.table
    if not len(mine):
        return False
    rows = np.flatnonzero((theirs.dso == 0) & (theirs.start >= mine.start[0]) & (theirs.start <= mine.start[-1]))
    at = np.searchsorted(mine.start, theirs.start[rows])
    return len(rows) > 0 and all(
        mine.start[place] == theirs.start[row] and mine.names[place] == theirs.names[row] for row, place in zip(rows.tolist(), at.tolist(), strict=True)
    )


def placed_by_memory(file: ModuleFile, module: pb.Module, release: str) -> int:
    """Where the code of the file's module is by what was read of it. Raises :class:`FormatError` where the file is another build of it."""
    known = module.build_id and file.build_id
    same = module.build_id.hex() == file.build_id if known else bool(release) and file.release == release
    if not same or (module.size and module.size != file.size):
        raise FormatError(f"{file.path} is not the module that the guest loaded: it is of another build")
    return module.address


def placed_by_symbols(file: ModuleFile, rows: SymbolRows) -> int:
    """Where the code of the file's module is by the symbols that the guest lists for it.

    Raises :class:`FormatError` where they have none in common, or where one of them is elsewhere in the file: then it is another build.
    """
    offset = _unique(zip(file.names, file.offsets.tolist(), strict=True))
    address = _unique((name, address) for address, name in rows)
    bases = Counter(address[name] - offset[name] for name in offset.keys() & address.keys())
    if not bases:
        raise FormatError(f"{file.path} is not the module that the guest loaded: they have no function in common")
    base = bases.most_common(1)[0][0]
    known = set(zip(file.offsets.tolist(), file.names, strict=True))
    inside = {(address - base, name) for address, name in rows if 0 <= address - base < file.size}
    # Code of a module begins with a page.
    if len(bases) > 1 or base % _PAGE or inside != {(place, name) for place, name in known if place < file.size}:
        raise FormatError(f"{file.path} is not the module that the guest loaded: their functions are in other places")
    return base


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    rows = list(pairs)
    counts = Counter(name for name, _ in rows)
    return {name: place for name, place in rows if counts[name] == 1}


def _name(module: pb.Module) -> str:
    return module.name.decode("utf-8", "replace")
