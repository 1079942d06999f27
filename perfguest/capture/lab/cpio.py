# SPDX-License-Identifier: Apache-2.0
"""Writes an initramfs: the "newc" form of cpio (Documentation/driver-api/early-userspace/buffer-format.rst), gzipped. Needs no root."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath


def initramfs(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Packs ``files``, absolute path to (permission bits, content), with all directories above them, owned by root."""
    directories = {str(parent): (stat.S_IFDIR | 0o755, b"") for path in files for parent in PurePosixPath(path).parents if parent.name}
    entries = {**dict(sorted(directories.items())), **{path: (stat.S_IFREG | mode, content) for path, (mode, content) in files.items()}}
    out = bytearray()
    for number, (path, (mode, content)) in enumerate(entries.items(), 1):
        _append(out, number, path.lstrip("/"), mode, content)
    _append(out, 0, "TRAILER!!!", 0, b"")
    return gzip.compress(bytes(out), compresslevel=1, mtime=0)


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """The regular files below ``root``, as ``initramfs`` wants them."""
    return {
        f"/{path.relative_to(root)}": (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def _append(out: bytearray, inode: int, name: str, mode: int, content: bytes) -> None:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, checksum
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    out += bytes(-len(out) % 4)
    out += content
    out += bytes(-len(out) % 4)
