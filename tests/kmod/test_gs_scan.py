# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kmod.pure_library import Pure
from tests.kmod.running_vcpu_code import RUNNING_VCPU, Function

NOT_FOUND, UNKNOWN, TRUNCATED = -1, -2, -3

TEXT = 0xFFFF_FFFF_C0A0_0000
# Relative to the GS base: until 6.14 the kernel's per-CPU variables begin at 0, since then they have addresses like others.
PERCPU = {"from zero": 0x3_4560, "like others": 0xFFFF_FFFF_8345_6000}
FAR = dict.fromkeys(("__fentry__", "__x86_return_thunk", "__SCT__preempt_schedule"), 0xFFFF_FFFF_8112_3450)

ENDBR64 = bytes.fromhex("f30f1efa")
LOAD = bytes.fromhex("65488b05 10200000")
ABSOLUTE = bytes.fromhex("65488b0425 102080ff")
CANARY = bytes.fromhex("65488b0425 28000000")
STORE = bytes.fromhex("4889442408")
RET = b"\xc3"


def _symbols(percpu: int) -> dict[str, int]:
    return {**FAR, ".data..percpu": percpu, "__preempt_count": percpu + 0x8000, "pcpu_hot": percpu + 0x9000}


@pytest.mark.parametrize("percpu", PERCPU.values(), ids=PERCPU)
@pytest.mark.parametrize("function", RUNNING_VCPU, ids=lambda function: function.release)
def test_kernels_as_released(pure: Pure, function: Function, percpu: int) -> None:
    code = function.loaded(TEXT, _symbols(percpu))
    assert pure.scan(code, TEXT + function.address) == (0, percpu + function.variable)


# What the running kernel makes of the first instructions of a function.
LIVE = {
    "ftrace's nop": lambda code: code.replace(code[code.index(b"\xe8") :][:5], bytes.fromhex("0f1f440000"), 1),
    "endbr64 sealed": lambda code: code.replace(ENDBR64, bytes.fromhex("0f1f40d6")),
    "endbr64 sealed in later kernels": lambda code: code.replace(ENDBR64, bytes.fromhex("660f1f00")),
    "built without ftrace": lambda code: code.replace(code[code.index(b"\xe8") :][:5], b"\x66\x66\x66\x66\x90", 1),
}


@pytest.mark.parametrize("patch", LIVE.values(), ids=LIVE)
@pytest.mark.parametrize("function", RUNNING_VCPU, ids=lambda function: function.release)
def test_kernels_as_they_run(pure: Pure, function: Function, patch: object) -> None:
    assert callable(patch)
    code = patch(function.loaded(TEXT, _symbols(PERCPU["from zero"])))
    assert pure.scan(code, TEXT + function.address) == (0, PERCPU["from zero"] + function.variable)


@pytest.mark.parametrize("function", RUNNING_VCPU, ids=lambda function: function.release)
def test_bytes_that_end_too_early(pure: Pure, function: Function) -> None:
    """Nothing is found before the load and what follows it are there, and never anything else."""
    code = function.loaded(TEXT, _symbols(PERCPU["like others"]))
    results = [pure.scan(code[:size], TEXT + function.address) for size in range(len(code) + 1)]
    found = [result == (0, PERCPU["like others"] + function.variable) for result in results]
    assert found == sorted(found)
    assert all(result[0] == TRUNCATED for result, good in zip(results, found, strict=True) if not good)


@pytest.mark.parametrize("breakpoint_at", [0, 5])
def test_probed_function(pure: Pure, breakpoint_at: int) -> None:
    code = bytearray(RUNNING_VCPU[0].code)
    code[breakpoint_at] = 0xCC
    assert pure.scan(bytes(code))[0] == UNKNOWN


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (LOAD + RET, 0x1000 + 8 + 0x2010),
        (ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (bytes.fromhex("654c8b3d f0ffffff") + RET, 0x1000 + 8 - 16),  # to %r15
        (bytes.fromhex("65488b2c25 00000080") + RET, 0xFFFF_FFFF_8000_0000),  # to %rbp
        (bytes.fromhex("65ff0425 00100000") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),  # absolute inc
        (bytes.fromhex("6548ff0425 00100000") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (bytes.fromhex("55 4889e5 4154 4883ec10 4883e4f0 4881ec00010000") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (bytes.fromhex("31c0 4531c9 4989fc") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (bytes.fromhex("90 6690 0f1f00 0f1f4000 0f1f440000 660f1f440000") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (bytes.fromhex("0f1f8000000000 0f1f840000000000 662e0f1f840000000000 66662e0f1f840000000000") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (bytes.fromhex("0f1f0500000000 0f1f042500000000 0f1f4424ff 0f1fc0") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (CANARY + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (bytes.fromhex("4883ec18") + CANARY + STORE + bytes.fromhex("31c0") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        # The canary as a variable, stored at (%rsp), 8(%rsp) or -8(%rbp); and a store of something else, which does not matter.
        (LOAD + bytes.fromhex("48890424") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (LOAD + STORE + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (LOAD + bytes.fromhex("488945f8") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (LOAD + bytes.fromhex("488984248000000031c0") + ABSOLUTE + RET, 0xFFFF_FFFF_FF80_2010),
        (LOAD + bytes.fromhex("48894c2408") + RET, 0x1000 + 8 + 0x2010),
        (LOAD + bytes.fromhex("4c89442408") + RET, 0x1000 + 8 + 0x2010),
        (LOAD + bytes.fromhex("48890507000000") + RET, 0x1000 + 8 + 0x2010),
    ],
)
def test_forms(pure: Pure, code: bytes, expected: int) -> None:
    assert pure.scan(code, 0x1000) == (0, expected)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"", TRUNCATED),
        (RET + LOAD + RET, NOT_FOUND),
        (b"\xe9\0\0\0\0" + LOAD + RET, NOT_FOUND),
        (b"\xeb\x08" + LOAD + RET, NOT_FOUND),
        (CANARY + RET, NOT_FOUND),
        (LOAD + STORE + RET, NOT_FOUND),
        (LOAD, TRUNCATED),
        (LOAD + STORE[:4], TRUNCATED),
        (b"\xb8" + LOAD + RET, UNKNOWN),  # inside another instruction: mov $0x58b4865,%eax
        (b"\x48\xb8" + LOAD + LOAD + RET, UNKNOWN),
        (b"\x74\x08" + LOAD + RET, UNKNOWN),  # a condition
        (bytes.fromhex("64488b05 10200000") + RET, UNKNOWN),  # %fs
        (bytes.fromhex("658b05 10200000") + RET, UNKNOWN),  # 32 bits
        (bytes.fromhex("6648 65488b05 10200000") + RET, UNKNOWN),
        (bytes.fromhex("65488b00") + RET, UNKNOWN),  # %gs:(%rax)
        (bytes.fromhex("65488b0c0510200000") + RET, UNKNOWN),  # with an index
        (bytes.fromhex("65488905 10200000") + RET, UNKNOWN),  # a store
        (bytes.fromhex("65480305 10200000") + RET, UNKNOWN),  # an addition
        (bytes.fromhex("65ff2510200000") + RET, UNKNOWN),  # a jump
        (bytes.fromhex("488b05 10200000") + RET, UNKNOWN),  # not %gs
        (b"\x66" * 40, UNKNOWN),
        (b"\x65" * 40, UNKNOWN),
    ],
)
def test_what_is_not_the_load(pure: Pure, code: bytes, expected: int) -> None:
    assert pure.scan(code, 0x1000)[0] == expected


PIECES = st.sampled_from([ENDBR64, LOAD, ABSOLUTE, CANARY, STORE, b"\x55", b"\x65", b"\x48", b"\x66", b"\x0f\x1f", b"\xe8", b"\x89", b"\x8b", b"\xff"])


@settings(max_examples=500)
@given(code=st.lists(PIECES | st.binary(max_size=8), max_size=12).map(b"".join), address=st.integers(0, 2**64 - 1))
def test_any_bytes(pure: Pure, code: bytes, address: int) -> None:
    """What is found is the displacement of bytes that read as such a load, if one only knew that an instruction begins there."""
    err, offset = pure.scan(code, address)
    assert err in (0, NOT_FOUND, UNKNOWN, TRUNCATED)
    if err:
        return
    loads = set()
    for at in range(len(code) - 7):
        rip_relative, absolute = code[at + 3] & 0xC7 == 5, code[at + 3] & 0xC7 == 4 and code[at + 4] == 0x25
        if code[at] == 0x65 and code[at + 1] & 0xF8 == 0x48 and code[at + 2] == 0x8B and (rip_relative or absolute):
            end = at + (8 if rip_relative else 9)
            loads.add((int.from_bytes(code[end - 4 : end], "little", signed=True) + (address + end if rip_relative else 0)) % 2**64)
    assert offset in loads


def _functions(module: ELFFile) -> Iterator[tuple[str, int, bytes, dict[int, str]]]:
    """Name, address, bytes and relocations of each function in .text, relocated so that each operand has a value of its own: 1 MiB + its offset."""
    symbols, relocations = module.get_section_by_name(".symtab"), module.get_section_by_name(".rela.text")
    assert isinstance(symbols, SymbolTableSection)
    assert isinstance(relocations, RelocationSection)
    text = relocations["sh_info"]
    code, variables = bytearray(module.get_section(text).data()), {}
    for relocation in relocations.iter_relocations():
        symbol = symbols.get_symbol(relocation["r_info_sym"])
        name = symbol.name or module.get_section(symbol["st_shndx"]).name
        if relocation["r_info_type"] in (2, 10, 11):  # PC32, 32, 32S
            variables[relocation["r_offset"]] = name
            value = 0x10_0000 + relocation["r_offset"] - (relocation["r_offset"] + 4 if relocation["r_info_type"] == 2 else 0)
            code[relocation["r_offset"] : relocation["r_offset"] + 4] = (value & 0xFFFF_FFFF).to_bytes(4, "little")
    for symbol in symbols.iter_symbols():
        if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] == text:
            start, size = symbol["st_value"], symbol["st_size"]
            yield symbol.name, start, bytes(code[start : start + size]), {k: v for k, v in variables.items() if start <= k < start + size}


def scan_module(pure: Pure, path: Path) -> dict[str, str]:
    """The per-CPU variable that the scanner finds in each function of .text in which it finds one."""
    found = {}
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as stream:
        for name, start, code, variables in _functions(ELFFile(stream)):
            err, offset = pure.scan(code, start)
            if err == 0:
                found[name] = variables[offset - 0x10_0000]
    return found


def test_every_function_of_the_installed_kvm(pure: Pure) -> None:
    """What is found is always the operand of a relocation, never a stack protector's canary."""
    modules = sorted(Path("/lib/modules").glob("*/kernel/arch/x86/kvm/kvm.ko*"))
    assert modules, "no kvm.ko: install linux-image-amd64"
    for path in modules:
        found = scan_module(pure, path)
        assert found["kvm_get_running_vcpu"] == ".data..percpu"
        assert not set(found.values()) & {"__ref_stack_chk_guard", "fixed_percpu_data"}
