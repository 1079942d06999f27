# SPDX-License-Identifier: Apache-2.0
"""Programs of this machine and some built here, compared with nm, objdump and readelf."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfguest.errors import FormatError
from perfguest.symbols.elf import ElfFile, parse_elf, read_elf

_SOURCE = """
#include <stdio.h>
#include <stdlib.h>
static __attribute__((noinline)) int hidden_leaf(int x) { return x * 3 + rand(); }
__attribute__((noinline)) int visible(int x) { return hidden_leaf(x) + 1; }
extern int from_assembly(int);
int main(int argc, char **argv) { printf("%d %s\\n", visible(argc) + from_assembly(argc), argv[0]); return 0; }
__asm__(".text\\n.globl from_assembly\\nfrom_assembly:\\n lea 1(%rdi), %eax\\n ret\\n nop\\n nop\\n");
"""


def _run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True).stdout.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _compile(tmp_path_factory.mktemp("program") / "prog")


def _compile(path: Path, *options: str) -> Path:
    subprocess.run(["gcc", "-O1", "-fcf-protection", "-Wl,--build-id", *options, "-x", "c", "-o", str(path), "-"], input=_SOURCE.encode(), check=True)
    return path


def _functions_by_nm(*commands: tuple[str | Path, ...]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for command in commands:
        # A file without a table makes nm say so on stderr.
        text = subprocess.run(["nm", *map(str, command)], capture_output=True, check=False).stdout.decode("utf-8", "replace")
        for address, name in re.findall(r"^([0-9a-f]{16}) [tTwWiu] ([^@\n]+)", text, re.MULTILINE):
            found.setdefault(int(address, 16), set()).add(name)
    return found


def _plt_by_objdump(path: Path) -> dict[int, str]:
    found = re.findall(r"^([0-9a-f]{16}) <([^*>]+@plt)>:$", _run("objdump", "-d", "-j", ".plt", "-j", ".plt.sec", "-j", ".plt.got", path), re.MULTILINE)
    return {int(address, 16): name for address, name in found}


def _names(elf: ElfFile, addresses: list[int]) -> list[str]:
    return [elf.symbols.names[index] if index >= 0 else "" for index in elf.symbols.lookup(np.array(addresses, np.uint64)).tolist()]


@pytest.mark.parametrize("name", ["libc.so.6", "ld-linux-x86-64.so.2", "sh", "perf"])
def test_every_function_has_a_name_that_nm_knows(name: str) -> None:
    found = shutil.which(name)
    path = Path(found).resolve() if found else next(Path("/usr/lib").glob(f"*/{name}")).resolve()
    elf = read_elf(path)
    listed = _functions_by_nm(("--defined-only", path), ("-D", "--defined-only", path))
    debug = Path("/usr/lib/debug/.build-id", elf.build_id[:2], f"{elf.build_id[2:]}.debug")
    if debug.exists():
        listed = _functions_by_nm(("--defined-only", path), ("-D", "--defined-only", path), ("--defined-only", debug))
    plt = _plt_by_objdump(path)
    ours = dict(zip(elf.symbols.start.tolist(), elf.symbols.names, strict=True))
    assert {address: name for address, name in ours.items() if name.endswith("@plt")} == {address: plt[address] for address in plt if address not in listed}
    # nm prints a dynamic symbol's version, which is no part of its name.
    wrong = {address: name for address, name in ours.items() if not name.endswith("@plt") and name.partition("@")[0] not in listed.get(address, set())}
    assert wrong == {}


@pytest.mark.parametrize("options", [(), ("-no-pie",), ("-static",), ("-Wl,-z,lazy",), ("-Wl,-z,now", "-fno-plt"), ("-m32",)])
def test_all_functions_of_a_program(tmp_path: Path, options: tuple[str, ...]) -> None:
    if options == ("-m32",):
        # Without 32-bit libraries, still an ELF file of that class.
        path = tmp_path / "prog"
        subprocess.run(
            ["gcc", "-m32", "-nostdlib", "-ffreestanding", "-Wl,--build-id", "-x", "c", "-o", str(path), "-"],
            input=b"int f(void) { return 1; } void _start(void) { f(); }",
            check=True,
        )
        expected = {"f", "_start"}
    else:
        path = _compile(tmp_path / "prog", *options)
        expected = {"main", "visible", "hidden_leaf", "from_assembly", "_start"}
    elf = read_elf(path)
    assert expected <= set(elf.symbols.names)
    sizes = {
        name: (int(address, 16), int(size))
        for address, size, name in re.findall(r"\d+: ([0-9a-f]+)\s+(\d+) FUNC\s+\w+\s+\w+\s+\d+ (\S+)$", _run("readelf", "-sW", path), re.MULTILINE)
    }
    for name in expected & set(sizes):
        address, size = sizes[name]
        assert _names(elf, [address, address + size - 1]) == [name, name]
    plt = _plt_by_objdump(path) if options != ("-m32",) else {}
    for address, name in plt.items():
        assert _names(elf, [address, address + 7]) == [name, name]
    if options in {(), ("-Wl,-z,lazy",)}:
        assert "printf@plt" in plt.values()
    assert elf.build_id == re.findall(r"Build ID: ([0-9a-f]+)", _run("readelf", "-n", path))[0]
    loads = re.findall(r"LOAD\s+(0x\w+) (0x\w+) 0x\w+ (0x\w+)", _run("readelf", "-lW", path))
    assert [(segment.offset, segment.vaddr, segment.size) for segment in elf.segments] == [tuple(int(part, 16) for part in load) for load in loads]


def test_offsets_in_the_file_become_addresses(program: Path) -> None:
    elf = read_elf(program)
    text = re.findall(r"\.text\s+PROGBITS\s+([0-9a-f]+) ([0-9a-f]+)", _run("readelf", "-SW", program))[0]
    address, known = elf.vaddr(np.array([int(text[1], 16) + 5, 1 << 60, (1 << 64) - 1], np.uint64))
    assert address[0] == int(text[0], 16) + 5
    assert known.tolist() == [True, False, False]


def test_separate_debug_file_by_build_id(program: Path, tmp_path: Path) -> None:
    build_id = read_elf(program).build_id
    stripped = tmp_path / "stripped"
    _run("strip", "-o", stripped, program)
    debug = tmp_path / "usr/lib/debug/.build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    debug.parent.mkdir(parents=True)
    _run("objcopy", "--only-keep-debug", program, debug)
    assert "hidden_leaf" not in read_elf(stripped, root="/nowhere").symbols.names
    elf = read_elf(stripped, root=tmp_path)
    assert "hidden_leaf" in elf.symbols.names
    assert set(read_elf(program).symbols.names) <= set(elf.symbols.names)
    # One of another build is not used; a damaged one is told.
    shutil.copy(_compile(tmp_path / "other", "-DOTHER", "-g"), debug)
    stripped.touch()
    assert "hidden_leaf" not in read_elf(stripped, root=tmp_path).symbols.names
    debug.write_bytes(b"\x7fELF damaged")
    again = tmp_path / "again"
    shutil.copy(stripped, again)
    assert any(str(debug) in note for note in read_elf(again, root=tmp_path).notes)


def test_gnu_debugdata(program: Path, tmp_path: Path) -> None:
    packed, small = tmp_path / "symbols.xz", tmp_path / "small"
    packed.write_bytes(lzma.compress(program.read_bytes()))
    _run("strip", "-o", small, program)
    assert "hidden_leaf" not in read_elf(small).symbols.names
    _run("objcopy", "--add-section", f".gnu_debugdata={packed}", small)
    assert "hidden_leaf" in read_elf(small).symbols.names


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = _compile(tmp_path / "prog")
    first = read_elf(path)
    assert read_elf(path) is first
    _compile(path, "-O2")
    assert read_elf(path).build_id != first.build_id


def test_what_is_no_elf(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("words")
    for path, words in ((text, "no ELF file"), (tmp_path, "no regular file"), (tmp_path / "none", "cannot be read"), (Path("/dev/zero"), "no regular file")):
        with pytest.raises(FormatError, match=words):
            read_elf(path)
    with pytest.raises(FormatError, match="big-endian"):
        parse_elf(b"\x7fELF\x02\x02\x01" + bytes(100), "file")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), max_size=4),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_damaged_file_gives_our_error_or_a_table(program: Path, changes: list[tuple[int, float, bytes]], kept: float) -> None:
    data = bytearray(program.read_bytes())
    sections = int.from_bytes(data[40:48], "little")
    # Where damage matters: the header, the program headers, the section headers, anywhere.
    places = ((0, 64), (64, 800), (sections, len(data)), (0, len(data)))
    for place, share, garbage in changes:
        low, high = places[place]
        at = int(low + share * (high - low))
        data[at : at + len(garbage)] = garbage[: len(data) - at]
    try:
        elf = parse_elf(bytes(data[: int(kept * len(data))]), "damaged")
    except FormatError as error:
        assert "damaged" in error.message
        return
    elf.vaddr(elf.symbols.start)
    assert len(elf.symbols.lookup(elf.symbols.start)) == len(elf.symbols.names)
