# SPDX-License-Identifier: Apache-2.0
"""Keeps the host kernel's symbols with the recording."""

from __future__ import annotations

import gzip
import shutil
import threading
from pathlib import Path

from perfguest.errors import CaptureError


class KallsymsCopy:
    """Copies /proc/kallsyms, compressed, in a thread of its own: it takes about a second."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source = source
        self._target = target
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="kallsyms", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits for it. Raises :class:`CaptureError` if there is no copy."""
        self._thread.join()
        if self._error:
            hint = "The host's kernel functions will have no names in this recording."
            raise CaptureError(f"cannot copy {self._source} to {self._target}: {self._error.strerror}", hint) from self._error

    def _run(self) -> None:
        temporary = self._target.with_suffix(".new")
        try:
            with self._source.open("rb") as source, gzip.open(temporary, "wb", compresslevel=1) as target:
                shutil.copyfileobj(source, target, 1 << 20)
            temporary.replace(self._target)
        except OSError as error:
            self._error = error
            temporary.unlink(missing_ok=True)
