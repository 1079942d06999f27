# SPDX-License-Identifier: Apache-2.0
"""What the tests found in the memory of each guest, as a table at the end of a run. A test notes its figures when all that it checks has held."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Columns of the table, and what stands in it for a test that did not pass or was not run.
COLUMNS = ("guest", "level", "symbols", "modules", "ORC", "BTF", "processes", "mappings", "pages", "1st VM", "2nd VM")
_NOTHING = "-"
LEGEND = """symbols: of kernel, modules and BPF, all equal to the guest's /proc/kallsyms; modules: equal to its /proc/modules; ORC: entries of kernel and
modules, equal to the files'; BTF: types, equal to the image's; processes and mappings: equal to the guest's /proc; pages: of running programs and
their libraries, equal to the files. 1st and 2nd VM: CPU seconds of reader and recorder until the kernel is open, and a reader's peak memory; the 2nd has
the kernel from the 1st."""


@dataclass
class Findings:
    """Rows by the guest kernel's release, in the order in which they came; each has its cells by column."""

    rows: dict[str, dict[str, str]] = field(default_factory=dict)

    def note(self, release: str, **cells: str) -> None:
        """Keeps what was found of a guest. Names of columns with a blank are given as ``**{"1st VM": …}``."""
        unknown = cells.keys() - set(COLUMNS)
        assert not unknown, unknown
        self.rows.setdefault(release, {"guest": release}).update(cells)

    def table(self) -> list[str]:
        """Its lines, columns of equal width, numbers to the right."""
        rows = [COLUMNS, *(tuple(row.get(name, _NOTHING) for name in COLUMNS) for row in self.rows.values())]
        widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
        return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows]
