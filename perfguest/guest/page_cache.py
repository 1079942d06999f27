# SPDX-License-Identifier: Apache-2.0
"""Files' pages out of a guest's page cache. A page counts only if it says itself, before and after it is copied, that it is that page of that file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from perfguest.guest import xarrays
from perfguest.guest.kernel import GuestUnreadable
from perfguest.guest.memory import MAX_READ, PAGE, GuestFault
from perfguest.guest.view import View

# include/uapi/linux/magic.h. Before 6.7 hugetlbfs counts its indexes in huge pages; programs are not run from it.
_HUGETLBFS = 0x958458F6
#: Of one folio: larger ones there are not.
_MAX_FOLIO = 1 << 18
# Where the kernel was built without CONFIG_DYNAMIC_MEMORY_LAYOUT: Documentation/arch/x86/x86_64/mm.rst.
_VMEMMAP = 0xFFFFEA0000000000


@dataclass(frozen=True)
class _Pages:
    """``count`` pages of a file from ``index`` on, which lie one behind the other from ``gpa`` on. ``page``: struct page of the first of their folio, whose
    index is ``first``."""

    index: int
    count: int
    gpa: int
    page: int
    first: int


def file_size(view: View, inode: int) -> int:
    """Of the file in bytes; 0 if it is none whose pages can be read."""
    size = view.get(inode, "inode", "i_size")
    regular = view.get(inode, "inode", "i_mode") >> 12 == 0o10
    magic = view.get(view.get(inode, "inode", "i_sb"), "super_block", "s_magic")
    return size if regular and size < 1 << 63 and magic != _HUGETLBFS else 0


def read_range(view: View, mapping: int, offset: int, size: int) -> bytes | None:
    """``size`` bytes of the file from ``offset`` on; None if one of their pages is not there. For small pieces."""
    out = b""
    for index in range(offset // PAGE, (offset + size + PAGE - 1) // PAGE):
        found = _checked(view, mapping, index, 1, xarrays.load(view, view.at(mapping, "address_space", "i_pages"), index))
        if found is None:
            return None
        out += view.kernel.memory.read(found.gpa, PAGE)
    return out[offset % PAGE :][:size]


def read_runs(view: View, mapping: int, size: int, budget: int) -> list[tuple[int, bytes]]:
    """(offset, bytes) of what is there of the file's first ``size`` bytes, runs merged, ascending, no more than ``budget`` bytes in all."""
    taken = []
    left = budget // PAGE
    for pages in _present(view, mapping, (size + PAGE - 1) // PAGE):
        if left <= 0:
            break
        count = min(pages.count, left)
        view.spend(count)
        try:
            taken.append((pages, view.kernel.memory.read(pages.gpa, count * PAGE)))
        except GuestFault:
            continue
        left -= count
    view.forget()
    still = [(pages, data) for pages, data in taken if _is_page_of(view, mapping, pages.page, pages.first)]
    runs: list[tuple[int, list[bytes]]] = []
    end = -1
    for pages, data in still:
        if pages.index != end:
            runs.append((pages.index * PAGE, []))
        runs[-1][1].append(data[: size - pages.index * PAGE])
        end = pages.index + len(data) // PAGE
    return [(offset, b"".join(parts)) for offset, parts in runs]


def _present(view: View, mapping: int, limit: int) -> Iterator[_Pages]:
    for index, count, entry in xarrays.entries(view, view.at(mapping, "address_space", "i_pages"), limit):
        if found := _checked(view, mapping, index, count, entry):
            yield found


def _checked(view: View, mapping: int, index: int, count: int, page: int) -> _Pages | None:
    start, size = _vmemmap(view), view.layout.size("page")
    if page < start or page & 3 or (page - start) % size:
        return None
    try:
        first = view.get(page, *_INDEX) if view.layout.find(*_INDEX) else view.get(page, "page", "index")
        if not 0 <= index - first < _MAX_FOLIO or count > min(_MAX_FOLIO, MAX_READ // PAGE) or not _is_page_of(view, mapping, page, first):
            return None
    except GuestFault:
        return None
    return _Pages(index, count, ((page - start) // size + index - first) * PAGE, page, first)


# Linux kernel commit 7b230db3b8d3 ("mm: Introduce struct folio") (in v5.16)
_INDEX = ("folio", "index")


def _is_page_of(view: View, mapping: int, page: int, first: int) -> bool:
    kind = "folio" if view.layout.find(*_INDEX) else "page"
    uptodate = 1 << view.layout.constant("pageflags", "PG_uptodate")
    try:
        same = view.get(page, kind, "mapping") == mapping and view.get(page, kind, "index") == first
        return same and bool(view.get(page, kind, "flags") & uptodate)
    except GuestFault:
        return False


def _vmemmap(view: View) -> int:
    base = view.kernel.address_of("vmemmap_base")
    start = view.word(base) if base else _VMEMMAP
    if start >> 63 == 0:
        raise GuestUnreadable("the guest's vmemmap is nowhere")
    return start
