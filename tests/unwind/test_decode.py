# SPDX-License-Identifier: Apache-2.0
"""Where instructions end, against objdump."""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.unwind.test_fuzz_native import NATIVE, WARNINGS

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
_LINE = re.compile(r"\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t?(.*)")
_PREFIXES = re.compile(r"(?:(?:rex(?:\.\w+)?|data16|lock|rep[nz]*|[c-gs]s|addr32|\.byte .*)?\s*)*")
# All prefixes, maps and kinds of operands that code in these files seldom has.
RARE = """
	addr32 call .+9; data16 rex.W call .+9; lock incl %fs:(%rax); rep movsb; xacquire lock incl (%rax); bnd jmp .+9; notrack jmp *%rax
	movabs 0x1122334455667788, %eax; movabs $0x1122334455667788, %r9; addr32 mov 0x11223344, %eax; mov %ax, 0x11223344(, %rbx, 4); enter $0x1122, $3; lret $8
	testb $1, (%rax); testw $0x1122, (%rax); testq $0x11223344, 0x11223344(%rip); notl (%rax); mov %cr0, %rax; mov %rax, %dr7; fnstcw (%rax); fcomi %st(1)
	push $0x11223344; pushw $0x1122; push $1; imul $3, %eax, %ebx; imul $0x1122, %ax, %bx; cmpxchg16b (%rax); xbegin .+9; xabort $1; rdrand %rax; rdpid %rax
	extrq $1, $2, %xmm1; insertq $1, $2, %xmm1, %xmm2; pfadd %mm0, %mm1; crc32q %rax, %rbx; movbe (%rax), %ebx; adcx %rax, %rbx; pextrb $1, %xmm1, %eax
	vaddps %ymm1, %ymm2, %ymm3; vpshufd $1, %ymm1, %ymm2; vzeroupper; vpalignr $1, %xmm1, %xmm2, %xmm3; mulx (%rax), %rbx, %rcx; rorx $3, %rax, %rbx
	vaddps (%rax){1to16}, %zmm1, %zmm2{%k1}{z}; vpternlogd $1, 64(%rax), %zmm1, %zmm2; vaddph %zmm1, %zmm2, %zmm3; kmovq %k1, %rax; vcmpps $1, %zmm1, %zmm2, %k1
	vfmaddps %xmm1, %xmm2, %xmm3, %xmm4; vpcmov %xmm1, %xmm2, %xmm3, %xmm4; bextr $0x11223344, %eax, %ebx; vprotb $1, %xmm1, %xmm2; blcfill %eax, %ebx
	loop .; jrcxz .; jecxz .; in $1, %al; out %al, $1; int $0x80; int3; ud2; ud1 %eax, %ebx; syscall; sysretq; endbr64; nopw 0(%rax, %rax, 1); xlat; cpuid
"""


@pytest.fixture(scope="module")
def decode_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("decode") / "decode_all"
    sources = [Path(__file__).with_name("decode_all.c"), NATIVE / "x86_decode.c"]
    subprocess.run(["gcc", *WARNINGS, "-O2", f"-I{NATIVE}", "-o", program, *sources], check=True)
    return program


def compare(decode_all: Path, code: bytes, disassembly: str, start: int) -> int:
    """How many instructions are alike; fails at the first that is not. Data among the code are what objdump calls bad, prefixes that it prints alone, and
    jumps of 16 bits, which Intel's processors do not have (SDM, volume 2, JMP)."""
    lengths = subprocess.run([decode_all], input=code, capture_output=True, check=True).stdout
    count = 0
    for line in disassembly.splitlines():
        match = _LINE.match(line)
        if match is None or "(bad)" in match[3] or _PREFIXES.fullmatch(match[3]) or re.match("66 (e[89]|0f 8)", match[2]):
            continue
        at = int(match[1], 16) - start
        assert lengths[at] == len(match[2].split()), line
        count += 1
    return count


@pytest.mark.parametrize(
    ("path", "parts"),
    [(LIBRARIES / "libc.so.6", 8), (LIBRARIES / "libcrypto.so.3", 12), (LIBRARIES / "ld-linux-x86-64.so.2", 3), (Path("/usr/bin/perl"), 6)],
    ids=lambda value: getattr(value, "name", None),
)
def test_lengths_of_real_code(decode_all: Path, path: Path, parts: int) -> None:
    """Of parts of it, at equal distances; the first instruction of a part is perhaps none."""
    text = ELFFile(io.BytesIO(path.read_bytes())).get_section_by_name(".text")
    code, start = text.data(), text["sh_addr"]
    each = min(len(code) // parts, 65536)
    count = 0
    for number in range(parts):
        first = start + number * (len(code) // parts)
        command = ["objdump", "-d", "-w", "-j", ".text", f"--start-address={first}", f"--stop-address={first + each}", path]
        disassembly = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        # What the part cuts off at its end, objdump shows as bytes.
        lines = disassembly.rstrip().splitlines()[:-15]
        count += compare(decode_all, code, "\n".join(lines), start)
    assert count > 20000


def test_lengths_of_rare_instructions(decode_all: Path, tmp_path: Path) -> None:
    source, built = tmp_path / "rare.s", tmp_path / "rare.o"
    source.write_text(RARE.replace(";", "\n"))
    subprocess.run(["as", "-o", built, source], check=True)
    code = ELFFile(io.BytesIO(built.read_bytes())).get_section_by_name(".text").data()
    disassembly = subprocess.run(["objdump", "-d", "-w", built], check=True, capture_output=True, text=True).stdout
    assert compare(decode_all, code, disassembly, 0) == len(RARE.replace("\n", ";").split(";")) - 2
