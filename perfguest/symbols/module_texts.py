# SPDX-License-Identifier: Apache-2.0
"""Code of guests' modules, as it was read out of their memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from perfguest.proto import guest_pb2 as pb

#: Bytes of one module's code, and of all that is unpacked of a recording.
_LARGEST, _MOST = 16 << 20, 1 << 30


class ModuleTexts:
    """Found by VM, boot and place. What was read of a place twice stands as it was read last."""

    def __init__(self, texts: Iterable[pb.ModuleText]) -> None:
        self._texts = {(text.vm_pid, text.lstar, text.address, text.size): text for text in texts}
        self._left = _MOST

    def of(self, kernel: pb.VmKernel) -> list[tuple[int, npt.NDArray[np.uint8]]]:
        """(address, code as uint8) of this kernel's modules, as far as it is there and whole."""
        pieces = []
        for module in kernel.modules:
            text = self._texts.get((kernel.vm_pid, kernel.lstar, module.address, module.size))
            if text is not None and (code := self._unpacked(text)):
                pieces.append((text.address, np.frombuffer(code, np.uint8)))
        return pieces

    def _unpacked(self, text: pb.ModuleText) -> bytes:
        """Empty if it is not what it says."""
        if not 0 < text.size <= min(_LARGEST, self._left):
            return b""
        self._left -= text.size
        stream = zlib.decompressobj()
        try:
            code = stream.decompress(text.packed, text.size + 1)
        except zlib.error:
            return b""
        return code if len(code) == text.size and stream.eof else b""
