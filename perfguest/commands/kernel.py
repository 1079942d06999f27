# SPDX-License-Identifier: Apache-2.0
"""``perfguest kernel``: what is in a kernel's image, before it is given to ``convert``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from perfguest.formats.kernel_payload import read_file
from perfguest.formats.kernel_report import report
from perfguest.writers.text import escape

_WIDTH = 16


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON: addresses and sizes as numbers, null for what the file has not.")
def kernel(file: str, as_json: bool) -> None:
    """Print what perfguest finds in FILE, an image or a module of a Linux kernel of x86-64.

    FILE is a vmlinuz, a unified kernel image, a vmlinux with or without symbols, or a module (.ko, .ko.xz, .ko.zst, .ko.gz), packed in any of
    the ways that kernels are.

    \b
    Examples:
        perfguest kernel /boot/vmlinuz-$(uname -r)
        perfguest kernel --json guest/lib/modules/6.1.0-50-amd64/kernel/fs/ext4/ext4.ko
    """
    found = report(read_file(file), file)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    def line(key: str, value: object) -> str:
        return f"{key + ':':{_WIDTH}}{escape(str(value))}"

    packed = f", packed with {found['packed_with']}" if found["packed_with"] else ""
    kind = found.get("container") or f"module {found.get('name')}"
    yield line("file", found["file"])
    yield line("kind", f"{kind}{packed}, {found['unpacked_bytes']} bytes unpacked")
    yield line("release", found["release"] or "none in it")
    yield line("build id", found["build_id"] or "none in it")
    for key, words in (("entry_point", "entry point"), ("link_address", "link address"), ("syscall_entry", "syscall entry")):
        if found.get(key) is not None:
            yield line(words, f"{found[key]:#x}")
    for section in found["text"]:
        place = f"at {section['address']:#x}" if "address" in section else f"at {section['offset']:#x}, multiples of {section['alignment']}"
        yield line("code", f"{section['section']}, {section['bytes']} bytes {place}")
    symbols = found["symbols"]
    functions = f", {symbols['functions']} of them functions" if "functions" in symbols else ""
    yield line("symbols", f"{symbols['count']}{functions}, from {symbols['source']}")
    orc = found["orc"]
    if orc:
        header = f" (header {orc['header']})" if orc["header"] else ""
        yield line("ORC", f"{orc['entries']} entries, {orc['first']:#x} to {orc['last']:#x}; layout: {orc['layout']}{header}")
    if found.get("btf"):
        yield line("BTF", f"{found['btf']['types']} types in {found['btf']['bytes']} bytes")
    for problem in found["problems"]:
        yield line("problem", problem)
