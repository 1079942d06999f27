# SPDX-License-Identifier: Apache-2.0
"""The running kernel's own list, and lists that nm writes in the same form."""

from __future__ import annotations

import gzip
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perfguest.errors import FormatError
from perfguest.symbols.kallsyms import read_kallsyms
from perfguest.symbols.table import SymbolTable

_SMALL = b"""0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000100 t local_function
ffffffff81000200 W weak_function
ffffffff81000300 D data_behind
ffffffffc0001000 t svm_vcpu_run\t[kvm_amd]
ffffffffc0001400 d table\t[kvm_amd]
ffffffffc0005000 T vmx_init\t[kvm_intel]
"""


def _names(table: SymbolTable, *addresses: int) -> list[str]:
    return [table.names[index] if index >= 0 else "" for index in table.lookup(np.array(addresses, np.uint64)).tolist()]


def test_small_list() -> None:
    table = read_kallsyms(_SMALL)
    base = 0xFFFFFFFF81000000
    assert _names(table, base, base + 0xFF, base + 0x1FF, base + 0x2FF, base + 0x300, 0) == [
        "startup_64",
        "startup_64",
        "local_function",
        "weak_function",
        "",
        "",
    ]
    module = 0xFFFFFFFFC0001000
    assert _names(table, module - 1, module, module + 0x3FF, module + 0x400, module + 0x4000) == ["", "svm_vcpu_run", "svm_vcpu_run", "", "vmx_init"]
    assert [table.dsos[index] for index in table.dso[table.lookup(np.array([base, module, module + 0x4000], np.uint64))]] == [
        "[kernel.kallsyms]",
        "[kvm_amd]",
        "[kvm_intel]",
    ]
    assert read_kallsyms(_SMALL, kernel_dso="[guest.kernel.kallsyms]").dsos[0] == "[guest.kernel.kallsyms]"


def test_running_kernel(tmp_path: Path) -> None:
    text = Path("/proc/kallsyms").read_bytes()
    began = time.process_time()
    table = read_kallsyms(text)
    assert time.process_time() - began < 2
    listed: dict[int, set[tuple[str, str]]] = {}
    for line in text.decode().splitlines():
        address, kind, name, *module = line.split()
        if kind in "tTwW":
            listed.setdefault(int(address, 16), set()).add((name, module[0] if module else "[kernel.kallsyms]"))
    assert table.start.tolist() == sorted(listed)
    assert len(table) > 10_000
    for index in table.lookup(table.start).tolist():
        assert (table.names[index], table.dsos[table.dso[index]]) in listed[int(table.start[index])]
    path = tmp_path / "kallsyms.gz"
    path.write_bytes(gzip.compress(text, 1))
    assert list(read_kallsyms(path).names) == list(table.names)


def test_what_nm_writes_is_the_same_form(tmp_path: Path) -> None:
    # A System.map is the output of nm.
    binary = tmp_path / "prog"
    subprocess.run(["gcc", "-x", "c", "-static", "-o", str(binary), "-"], input=b"int main(void) { return 0; }", check=True)
    listing = subprocess.run(["nm", "-n", "--defined-only", str(binary)], capture_output=True, check=True).stdout
    table = read_kallsyms(b"".join(line + b"\n" for line in listing.splitlines() if b" i " not in line))
    main = int(subprocess.run(["sh", "-c", f"nm {binary} | awk '$3 == \"main\" {{print $1}}'"], capture_output=True, check=True).stdout, 16)
    assert _names(table, main, main + 3) == ["main", "main"]


def test_hidden_addresses_are_said() -> None:
    with pytest.raises(FormatError, match="only zeros") as caught:
        read_kallsyms(b"0000000000000000 T _text\n0000000000000000 t other\n")
    assert "root" in caught.value.hint
    assert "kptr_restrict" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no list"),
        (b"\x7fELF", "no list"),
        (b"ffffffff81000000 T good\nffffffff8100000g T bad\n", "line 2"),
        (b"ffffffff81000000 T good\nshort\n", "line 2"),
        (b"ffffffff81000000 T good\nffffffff81000000T  bad\n", "line 2"),
        (b"ffffffff81000000 T \n", "line 1"),
        (gzip.compress(_SMALL)[:-9], "cut off"),
        (b"\x1f\x8b garbage that is no gzip", "damaged"),
    ],
)
def test_what_is_no_list(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read_kallsyms(data, name="saved")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="kallsyms cannot be read"):
        read_kallsyms(tmp_path / "kallsyms")


def test_hostile_names_stay_on_their_line() -> None:
    hostile = "ev\x1b[31mil\r\x0b\x0c\x85\u2028name"
    table = read_kallsyms(_SMALL + b"ffffffff81000250 T " + hostile.encode() + b"\n" + b"ffffffff81000260 T \xff\xfe\n")
    assert _names(table, 0xFFFFFFFF81000250, 0xFFFFFFFF81000260) == [hostile, "\ufffd\ufffd"]


@settings(deadline=None)
@given(st.binary(max_size=120) | st.binary(max_size=60).map(lambda data: _SMALL + data) | st.binary(max_size=60).map(lambda data: b"\x1f\x8b" + data))
@example(b"\n")
@example(b"ffffffff81000000 ")
def test_garbage(data: bytes) -> None:
    try:
        table = read_kallsyms(data)
    except FormatError as error:
        assert "kallsyms" in error.message
    else:
        assert len(table.names) == len(table.start)
