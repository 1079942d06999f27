# SPDX-License-Identifier: Apache-2.0
"""The symbols of the kernel that a perf.data was recorded on, where nothing beside the file has them: perf's cache of files, or the running kernel."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from perfguest.formats.perf_data import PerfData
from perfguest.symbols.host import kernel_build_id, own_kernel_build_ids
from perfguest.symbols.kallsyms import KERNEL_DSO

_CPUMODE_KERNEL = 1


def host_kallsyms(perf: PerfData, root: Path, notes: list[str]) -> bytes | None:
    """A kallsyms of that kernel, as it was loaded then; None, with a note, where there is none. ``root``: where the recorded host's files are.

    perf copies the kernel's into its cache (``perf buildid-cache``) when it has recorded. A list is believed if it has the build id, and the symbol by which
    perf wrote down the kernel's place stands where it stood: a kernel that boots again is elsewhere.
    """
    rows = np.flatnonzero(perf.mmaps.cpumode == _CPUMODE_KERNEL)
    places = [(perf.mmaps.filename[row].removeprefix(KERNEL_DSO), int(perf.mmaps.pgoff[row])) for row in rows.tolist()]
    place = next(((symbol, address) for symbol, address in places if symbol in {"_text", "_stext"}), None)
    if place is None:
        notes.append(f"{perf.path} does not say where its kernel was: the kernel's functions have no names")
        return None
    build_id = kernel_build_id(perf)
    line = b"%016x T %b\n" % (place[1], place[0].encode())
    for path in _candidates(build_id, root):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if line in text:
            return text
    notes.append("neither perf's cache nor the running kernel has the symbols of the kernel that was recorded: its functions have no names")
    return None


def _candidates(build_id: str, root: Path) -> list[Path]:
    found = []
    if build_id:
        cache = os.environ.get("PERF_BUILDID_DIR") or Path.home() / ".debug"
        found.append(Path(cache, ".build-id", build_id[:2], build_id[2:], "kallsyms"))
    if root == Path("/") and (not build_id or build_id in own_kernel_build_ids()):
        found.append(Path("/proc/kallsyms"))
    return found
