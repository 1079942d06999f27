# SPDX-License-Identifier: Apache-2.0
"""One zstd stream, cut in pieces, made whole again: what ``perf record -z`` writes.

Python before 3.14 has no zstd; the C library is on nearly every Linux (Debian: libzstd1, which dpkg itself needs), so it is called directly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from perfguest.errors import FormatError

_OUTPUT_BYTES = 1 << 17


class _Buffer(ctypes.Structure):
    # ZSTD_inBuffer and ZSTD_outBuffer have the same three members.
    _fields_ = (("pointer", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


def _load_library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError as error:
        raise FormatError(
            "the recording is compressed (perf record -z) and libzstd.so.1 is not here", "Install it (Debian: apt install libzstd1) or record without -z."
        ) from error
    library.ZSTD_createDStream.restype = ctypes.c_void_p
    library.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
    library.ZSTD_decompressStream.restype = ctypes.c_size_t
    library.ZSTD_decompressStream.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Buffer), ctypes.POINTER(_Buffer)]
    library.ZSTD_isError.argtypes = [ctypes.c_size_t]
    library.ZSTD_isError.restype = ctypes.c_uint
    return library


def decompress_stream(pieces: Iterable[bytes], limit: int) -> bytes:
    """Decompresses ``pieces`` as one stream that need not end.

    Raises :class:`FormatError` without a library, for bytes that are no zstd, and for more than ``limit`` bytes of output.
    """
    zstd = _load_library()
    stream = zstd.ZSTD_createDStream()
    if not stream:
        raise FormatError("libzstd has no memory for a stream")
    output = ctypes.create_string_buffer(_OUTPUT_BYTES)
    result = bytearray()
    try:
        for piece in pieces:
            source = _Buffer(ctypes.cast(ctypes.c_char_p(piece), ctypes.c_void_p), len(piece), 0)
            full = True
            # A full output buffer may leave more inside the stream after the input is used up.
            while source.position < source.size or full:
                target = _Buffer(ctypes.cast(output, ctypes.c_void_p), _OUTPUT_BYTES, 0)
                if zstd.ZSTD_isError(zstd.ZSTD_decompressStream(stream, ctypes.byref(target), ctypes.byref(source))):
                    raise FormatError("compressed records are damaged")
                result += output.raw[: target.position]
                full = target.position == _OUTPUT_BYTES
                if len(result) > limit:
                    raise FormatError(f"compressed records hold more than {limit} bytes")
    finally:
        zstd.ZSTD_freeDStream(stream)
    return bytes(result)
