# SPDX-License-Identifier: Apache-2.0
"""Paths of a guest's files: of a dentry up to the root, as the kernel prints it (fs/d_path.c), and from a process's root down through the dentry cache."""

from __future__ import annotations

from collections.abc import Iterator

from perfguest.guest.kernel import GuestUnreadable
from perfguest.guest.view import View

MAX_PATH = 4096
#: What stands for a path that is longer.
TOO_LONG = b"<too_long>"
#: Behind the path of a file that was deleted.
DELETED = b" (deleted)"
_MAX_CHILDREN = 4096
_MAX_MOUNTS = 1024


def path_of(view: View, mount: int, dentry: int) -> bytes:
    """The path of ``struct path`` {mount, dentry} as ``d_path`` gives it, up to the root of its mount namespace."""
    if special := _named_by_its_file_system(view, mount, dentry):
        return special
    suffix = DELETED if _parent(view, dentry) != dentry and not view.get(dentry, "dentry", "d_hash.pprev") else b""
    parts: list[bytes] = []
    length = 0
    mount -= view.layout.offset("mount", "mnt")
    while True:
        view.spend()
        if dentry == view.get(mount, "mount", "mnt.mnt_root"):
            above = view.get(mount, "mount", "mnt_parent")
            if above == mount:
                break
            mount, dentry = above, view.get(mount, "mount", "mnt_mountpoint")
            length += 1
        else:
            parent = _parent(view, dentry)
            if parent == dentry:
                break
            parts.append(name_of(view, dentry))
            length += len(parts[-1]) + 1
            dentry = parent
        # Mounts count too: a loop of them adds no name.
        if length > MAX_PATH:
            return TOO_LONG
    return (b"/" + b"/".join(reversed(parts)) if parts else b"/") + suffix


def look_up(view: View, mount: int, dentry: int, path: list[bytes]) -> int | None:
    """The dentry of a path of plain names below ``struct path`` {mount, dentry}, mounts crossed; None if the dentry cache has none."""
    mount -= view.layout.offset("mount", "mnt")
    for name in path:
        parent = dentry
        child = next((child for child in _children(view, parent) if _is_found(view, parent, child, name)), None)
        if child is None:
            return None
        dentry = child
        # Mounts upon mounts.
        for _ in range(8):
            upper = next((at for at in _mounts(view, mount) if view.get(at, "mount", "mnt_mountpoint") == dentry), None)
            if upper is None:
                break
            mount, dentry = upper, view.get(upper, "mount", "mnt.mnt_root")
    return dentry


def _named_by_its_file_system(view: View, mount: int, dentry: int) -> bytes | None:
    operations = view.get(dentry, "dentry", "d_op")
    function = view.get(operations, "dentry_operations", "d_dname") if operations else 0
    if not function or (_parent(view, dentry) == dentry and dentry == view.get(mount, "vfsmount", "mnt_root")):
        return None
    address_of = view.kernel.address_of
    if function == address_of("simple_dname"):
        return b"/" + name_of(view, dentry) + DELETED
    if function == address_of("anon_inodefs_dname"):
        return b"anon_inode:" + name_of(view, dentry)
    inode = view.get(dentry, "dentry", "d_inode")
    if function == address_of("sockfs_dname"):
        return b"socket:[%d]" % view.get(inode, "inode", "i_ino")
    kind = view.get(view.get(inode, "inode", "i_sb"), "super_block", "s_type")
    return b"[" + view.string(view.get(kind, "file_system_type", "name"), 64) + b"]"


def _children(view: View, dentry: int) -> Iterator[int]:
    # Linux kernel commit da549bdd15c2 ("dentry: switch the lists of children to hlist") (in v6.8)
    link, _ = view.layout.field("dentry", "d_sib", "d_child")
    head = view.at(dentry, "dentry", "d_children", "d_subdirs")
    return _list(view, head, link, _MAX_CHILDREN)


def _mounts(view: View, mount: int) -> Iterator[int]:
    return _list(view, view.at(mount, "mount", "mnt_mounts"), view.layout.offset("mount", "mnt_child"), _MAX_MOUNTS)


def _list(view: View, head: int, link: int, limit: int) -> Iterator[int]:
    """The structures whose ``link`` is on the list; both kinds of lists have the pointer to the next in front."""
    node = view.word(head)
    for _ in range(limit):
        if node in {0, head}:
            return
        view.spend(0)
        yield node - link
        node = view.word(node)
    raise GuestUnreadable(f"a list of the guest's has more than {limit} members")


def _is_found(view: View, parent: int, child: int, name: bytes) -> bool:
    """Whether the kernel finds it by its name (__d_lookup() in fs/dcache.c): what was deleted stays a child as long as it is open, but unhashed."""
    if view.get(child, "dentry", "d_name.len") != len(name) or name_of(view, child) != name:
        return False
    return _parent(view, child) == parent and bool(view.get(child, "dentry", "d_hash.pprev")) and bool(view.get(child, "dentry", "d_inode"))


def _parent(view: View, dentry: int) -> int:
    return view.get(dentry, "dentry", "d_parent")


def name_of(view: View, dentry: int) -> bytes:
    """The file's name. Raises GuestUnreadable for one that no kernel has, or of another length than it says (__d_alloc() in fs/dcache.c ends it with a NUL)."""
    length = view.get(dentry, "dentry", "d_name.len")
    if length > MAX_PATH:
        raise GuestUnreadable(f"a name of {length} bytes in the guest's dentry cache")
    name, nul, rest = view.read(view.get(dentry, "dentry", "d_name.name"), length + 1).partition(b"\0")
    if not nul or rest:
        raise GuestUnreadable("a name in the guest's dentry cache that changes")
    return name
