# SPDX-License-Identifier: Apache-2.0
"""Guest names: call sites against objdump, kernels against Debian's image, programs against chains that they took of themselves."""

from __future__ import annotations

import gzip
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.errors import FormatError, PerfguestError, UsageError
from perfguest.formats.kernel_image import KernelImage, read_kernel_image
from perfguest.symbols.guest import GuestSymbolOptions, GuestSymbols, GuestVm
from perfguest.symbols.guest_calls import Code
from perfguest.symbols.guest_kernel import GuestKernel, KernelFile
from perfguest.symbols.resolved import Resolved

U64 = npt.NDArray[np.uint64]
MIB = 1 << 20
KASLR = 0x1E600000


@pytest.fixture(scope="module")
def image() -> KernelImage:
    kernels = sorted(Path("/boot").glob("vmlinuz-*"))
    assert kernels, "these tests read the kernel image of Debian's package linux-image-amd64"
    return read_kernel_image(str(kernels[-1]))


@pytest.fixture(scope="module")
def vmlinux(image: KernelImage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same kernel unpacked, which is quicker to read."""
    path = tmp_path_factory.mktemp("kernel") / "vmlinux"
    path.write_bytes(image.elf)
    return str(path)


@pytest.fixture(scope="module")
def entry(image: KernelImage) -> int:
    address = image.address_of("entry_SYSCALL_64")
    assert address is not None
    return address


@pytest.fixture(scope="module")
def disassembly(image: KernelImage, vmlinux: str) -> list[tuple[int, str]]:
    """(Address, instruction) of some 600 KiB of the kernel's text, as objdump has it."""
    start = image.text[0].address + 2 * MIB
    command = ["objdump", "-d", "--no-show-raw-insn", f"--start-address={start:#x}", f"--stop-address={start + 600_000:#x}", vmlinux]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [(int(match[1], 16), match[2]) for match in map(re.compile(r"(ffffffff[0-9a-f]{8}):\t(.*)").match, lines) if match]


def named(resolved: Resolved) -> list[tuple[str | None, int, str | None]]:
    return [
        (resolved.names[name] if name >= 0 else None, int(offset), resolved.dsos[dso].name if dso >= 0 else None)
        for name, offset, dso in zip(resolved.name, resolved.offset, resolved.dso, strict=True)
    ]


def column(*addresses: int) -> U64:
    return np.array(addresses, np.uint64)


def of_vm(count: int, place: int = 0) -> npt.NDArray[np.int32]:
    return np.full(count, place, np.int32)


FORMS = ["*%rax", "*%r11", "*(%rbx)", "*(%r12)", "*8(%rbp)", "*(%rsp,%rax,8)", "*0x1000(%r13,%rcx,4)", "*0x12345678(,%rax,8)", "*0x100(%rip)", "*0x7f0(%rdi)"]
FORMS += ["there", "*0x1000"]


class TestCallSites:
    def test_agree_with_objdump(self, image: KernelImage, disassembly: list[tuple[int, str]]) -> None:
        code = Code.of([(section.address, image.content(section)) for section in image.text])
        pairs = list(pairwise(disassembly))
        after_call = column(*(following for (_, text), (following, _) in pairs if re.match(r"(cs )?call ", text)))
        others = column(*(following for (_, text), (following, _) in pairs if "call" not in text))
        assert len(after_call) > 5000
        assert code.follows_call(after_call).all()
        # Here and there the last bytes of another instruction look like a call.
        assert np.count_nonzero(code.follows_call(others)) < 0.003 * len(others)

    def test_every_instruction_is_at_a_place_that_can_be_sampled(self, disassembly: list[tuple[int, str]], entry: int, vmlinux: str) -> None:
        kernel = GuestKernel(KernelFile.read_vmlinux(vmlinux), KASLR, "[k]")
        instructions = column(*(address + KASLR for address, text in disassembly if not text.startswith("int3")))
        gaps = column(*(address + KASLR for address, text in disassembly if text.startswith("int3")))
        assert kernel.check_addresses(instructions) == (0, len(instructions))
        assert kernel.check_addresses(gaps) == (len(gaps), len(gaps))
        assert len(gaps) > 100

    @pytest.mark.parametrize("call", FORMS)
    def test_every_form_of_call(self, call: str, tmp_path: Path) -> None:
        (tmp_path / "a.s").write_text(f".text\nthere: .skip 32, 0xcc\nbefore: call {call}\nafter: .skip 32, 0xcc\n")
        subprocess.run(["as", "-o", tmp_path / "a.o", tmp_path / "a.s"], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "a.o", tmp_path / "a.bin"], check=True)
        content = np.fromfile(tmp_path / "a.bin", np.uint8)
        code = Code.of([(0x400000, content)])
        after = 0x400000 + len(content) - 32
        returns = column(*range(0x400000 - 20, 0x400000 + len(content) + 20))
        assert returns[code.follows_call(returns)].tolist() == [after]

    def test_edges_of_pieces(self) -> None:
        call = np.frombuffer(b"\xff\xd0", np.uint8)
        code = Code.of([(2**64 - 2, call), (0x1000, call), (0x1002, call), (0, call), (0x1001, call)])
        assert code.start.tolist() == [0, 0x1000, 0x1002, 2**64 - 2]
        addresses = column(0, 1, 2, 3, 0x0FFF, 0x1000, 0x1001, 0x1002, 0x1003, 0x1004, 0x1005, 2**64 - 1)
        assert addresses[code.follows_call(addresses)].tolist() == [2, 0x1002, 0x1004]
        assert addresses[code.contains(addresses)].tolist() == [0, 1, 0x1000, 0x1001, 0x1002, 0x1003, 2**64 - 1]
        assert not Code.of([]).follows_call(addresses).any()


class TestGuestKernel:
    def test_image_is_moved_to_the_syscall_entry(self, image: KernelImage, entry: int, vmlinux: str) -> None:
        symbols = GuestSymbols.build([GuestVm(7, "vm", (0, entry + KASLR))], GuestSymbolOptions(vmlinux=(vmlinux,)))
        schedule = image.address_of("schedule")
        assert schedule is not None
        addresses = column(entry + KASLR, schedule + KASLR + 5, 0xFFFFFFFFFE000000, image.text[0].address - 1 + KASLR)
        kernel = "[guest.kernel.kallsyms]"
        assert named(symbols.resolve_kernel(of_vm(4), addresses)) == [
            ("entry_SYSCALL_64", 0, kernel),
            ("schedule", 5, kernel),
            (None, 0, kernel),
            (None, 0, kernel),
        ]
        assert symbols.resolve_kernel(of_vm(4), addresses).dsos[0].build_id == image.build_id
        assert symbols.notes == []

    @pytest.mark.parametrize("wrong", [0x1000, -2 * MIB, 1024 * MIB, 2 * MIB + 1])
    def test_image_of_another_kernel_is_refused(self, entry: int, wrong: int, vmlinux: str) -> None:
        with pytest.raises(FormatError, match=f"is not the kernel that the guest ran.*{entry + wrong:#x}"):
            GuestSymbols.build([GuestVm(7, "vm", (entry + wrong,))], GuestSymbolOptions(vmlinux=(vmlinux,)))

    def test_image_is_refused_if_samples_lie_where_it_has_no_code(
        self, image: KernelImage, entry: int, disassembly: list[tuple[int, str]], vmlinux: str
    ) -> None:
        real = column(*(address + KASLR for address, text in disassembly[::20] if not text.startswith("int3")))
        options = GuestSymbolOptions(vmlinux=(vmlinux,))
        vms = [GuestVm(7, "vm", (entry + KASLR,))]
        good = GuestSymbols.build(vms, options)
        good.check_kernels(of_vm(len(real)), real, np.zeros(len(real), bool))
        assert good.notes == []
        bad = GuestSymbols.build(vms, options)
        # Another kernel's instructions stand anywhere.
        anywhere = real + np.random.default_rng(3).integers(0, 4 * MIB, len(real), np.uint64)
        with pytest.raises(FormatError, match=r"VM vm \(7\) ran: \d+ of the \d+ sampled kernel addresses lie where it has no code"):
            bad.check_kernels(of_vm(len(real)), anywhere, np.zeros(len(real), bool))

    def test_two_kernels_find_their_vms(self, image: KernelImage, entry: int, tmp_path: Path, vmlinux: str) -> None:
        listing = tmp_path / "kallsyms.gz"
        listing.write_bytes(gzip.compress(b"ffffffffb0000000 T _stext\nffffffffb0000100 T entry_SYSCALL_64\nffffffffc0001000 t kvm_run\t[kvm]\n"))
        vms = [GuestVm(7, "one", (entry + KASLR,)), GuestVm(8, "two", (0xFFFFFFFFB0000100,)), GuestVm(9, "three", ())]
        symbols = GuestSymbols.build(vms, GuestSymbolOptions(kallsyms=(f"8={listing}",), vmlinux=(vmlinux,)))
        addresses = column(entry + KASLR, 0xFFFFFFFFB0000101, 0xFFFFFFFFC0001002, entry)
        assert named(symbols.resolve_kernel(np.array([0, 1, 1, 2], np.int32), addresses)) == [
            ("entry_SYSCALL_64", 0, "[guest.kernel.kallsyms.7]"),
            ("entry_SYSCALL_64", 1, "[guest.kernel.kallsyms.8]"),
            ("kvm_run", 2, "[kvm]"),
            (None, 0, "[guest.kernel.kallsyms.9]"),
        ]
        assert symbols.proven_returns(np.array([1, 1, 1, 2], np.int32), column(0xFFFFFFFFC0001000, 0xFFFFFFFFC0001002, 0xFFFFFFFFA0000000, 5)).tolist() == [
            0,
            -1,
            0,
            -1,
        ]
        assert any("VM three (9)" in note and "syscall entry is not in the recording" in note for note in symbols.notes)

    def test_a_file_that_is_no_vms_is_refused_and_one_that_is_some_vms_is_not(self, entry: int, vmlinux: str) -> None:
        options = GuestSymbolOptions(vmlinux=(vmlinux,))
        other = GuestVm(8, "other", (entry + 0x1000,))
        symbols = GuestSymbols.build([GuestVm(7, "vm", (entry,)), other], options)
        assert any("other (8)" in note and "is not the kernel that the guest ran" in note for note in symbols.notes)
        with pytest.raises(FormatError):
            GuestSymbols.build([other], options)
        with pytest.raises(FormatError):
            GuestSymbols.build([GuestVm(7, "vm", (entry,)), other], GuestSymbolOptions(vmlinux=(f"other={vmlinux}",)))

    def test_a_guest_that_rebooted_has_no_names(self, entry: int, vmlinux: str) -> None:
        symbols = GuestSymbols.build([GuestVm(7, "vm", (entry, entry + KASLR))], GuestSymbolOptions(vmlinux=(vmlinux,)))
        assert named(symbols.resolve_kernel(of_vm(1), column(entry))) == [(None, 0, "[guest.kernel.kallsyms]")]
        assert "changed its kernel while it was recorded" in symbols.notes[0]

    def test_system_map(self, image: KernelImage, entry: int, tmp_path: Path, vmlinux: str) -> None:
        columns = zip(image.symbols.address.tolist(), image.symbols.kind.tolist(), image.symbols.names, strict=True)
        listing = "".join(f"{address:016x} {kind:c} {name}\n" for address, kind, name in columns)
        (tmp_path / "System.map").write_text(listing)
        (tmp_path / "System.map.gz").write_bytes(gzip.compress(listing.encode(), 1))
        vms = [GuestVm(7, "vm", (entry + KASLR,))]
        text = image.text[0]
        addresses = np.random.default_rng(5).integers(text.address, text.address + text.size, 10_000, np.uint64) + np.uint64(KASLR)
        by_image = GuestSymbols.build(vms, GuestSymbolOptions(vmlinux=(vmlinux,)))
        for file in ("System.map", "System.map.gz"):
            by_map = GuestSymbols.build(vms, GuestSymbolOptions(vmlinux=(str(tmp_path / file),)))
            assert named(by_map.resolve_kernel(of_vm(10_000), addresses)) == named(by_image.resolve_kernel(of_vm(10_000), addresses))
            assert set(by_map.proven_returns(of_vm(10_000), addresses).tolist()) <= {-1, 0}
            by_map.check_kernels(of_vm(10_000), addresses, np.zeros(10_000, bool))
            assert any("taken for its kernel by the place of its syscall entry alone" in note for note in by_map.notes)

    @pytest.mark.parametrize(
        "content", [b"", b"\0" * 100, b"hello\n", b"ffffffff81000000 T _text\n", b"0000000000000000 T entry_SYSCALL_64\n", gzip.compress(b"x")[:-3]]
    )
    def test_bad_lists_are_refused(self, content: bytes, tmp_path: Path, vmlinux: str) -> None:
        (tmp_path / "file").write_bytes(content)
        for options in (GuestSymbolOptions(kallsyms=(str(tmp_path / "file"),)), GuestSymbolOptions(vmlinux=(str(tmp_path / "file"),))):
            with pytest.raises(FormatError, match="file"):
                GuestSymbols.build([GuestVm(7, "vm", (5,))], options)

    def test_options_that_name_no_vm_are_refused(self) -> None:
        for options in (
            GuestSymbolOptions(kallsyms=("nobody=/proc/kallsyms",)),
            GuestSymbolOptions(mounts=("nobody=/bin",)),
            GuestSymbolOptions(binaries=("/bin/true@xyz",)),
        ):
            with pytest.raises(UsageError):
                GuestSymbols.build([GuestVm(7, "vm", ())], options)

    @settings(max_examples=100, deadline=None)
    @given(data=st.binary(max_size=300), lines=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=20)), max_size=10))
    def test_garbage_lists(self, data: bytes, lines: list[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
        path = tmp_path_factory.mktemp("lists") / "garbage"
        text = "".join(f"{address:016x} T {name}\n" for address, name in lines).encode()
        path.write_bytes(b"ffffffff81000080 T entry_SYSCALL_64\n" + text + data)
        try:
            symbols = GuestSymbols.build([GuestVm(7, "vm", (0xFFFFFFFF81000080,))], GuestSymbolOptions(kallsyms=(str(path),)))
        except PerfguestError:
            return
        addresses = column(0, 1, 0xFFFFFFFF81000080, 2**64 - 1)
        assert len(symbols.resolve_kernel(of_vm(4), addresses)) == 4
        assert set(symbols.proven_returns(of_vm(4), addresses).tolist()) <= {-1, 0, 1}


PROGRAM = r"""
#include <stdint.h>
#include <stdio.h>
static volatile int sink;
extern char __executable_start, etext;
/* Prints this function's own chain of return addresses by its frame pointers, as far as it stays in the program. */
__attribute__((noinline)) static void leaf(void)
{
    uint64_t *frame = __builtin_frame_address(0);
    printf("%lx", (unsigned long)&leaf + 4);
    while (frame[1] > (uint64_t)&__executable_start && frame[1] < (uint64_t)&etext) {
        printf(" %lx", (unsigned long)frame[1]);
        if (frame[0] <= (uint64_t)frame)
            break;
        frame = (uint64_t *)frame[0];
    }
    puts("");
}
__attribute__((noinline)) static void NAME_one(void) { leaf(); sink++; }
__attribute__((noinline)) static void NAME_two(void) { NAME_one(); sink++; leaf(); sink++; }
__attribute__((noinline)) static void NAME_three(void (*call)(void)) { call(); sink++; }
int main(void) { PADDING NAME_two(); NAME_three(NAME_one); NAME_three(NAME_two); return 0; }
"""


def build(where: Path, name: str, padding: str, flags: list[str]) -> Path:
    source = where / f"{name}.c"
    source.write_text(PROGRAM.replace("NAME", name).replace("PADDING", padding))
    subprocess.run(["gcc", "-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", *flags, "-o", where / name, source], check=True)
    source.unlink()
    return where / name


class Chains:
    """What a program printed, as the columns that the converter gives."""

    def __init__(self, program: Path, cr3: int) -> None:
        lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
        chains = [[int(word, 16) for word in line.split()] for line in lines]
        self.addresses = column(*(address for chain in chains for address in chain))
        self.is_return = np.array([depth > 0 for chain in chains for depth in range(len(chain))])
        self.cr3 = np.full(len(self.addresses), cr3, np.uint64)

    def __len__(self) -> int:
        return len(self.addresses)


def functions_by_addr2line(program: Path, addresses: U64) -> list[str]:
    command = ["addr2line", "-f", "-e", str(program), *(f"{address:#x}" for address in addresses.tolist())]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[::2]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guest")
    (root / "bin").mkdir()
    build(root / "bin", "first", "", ["-static", "-no-pie"])
    build(root / "bin", "second", "sink += 1000; for (int i = 0; i < sink; i++) sink--;", ["-static", "-no-pie"])
    build(root / "bin", "position_independent", "", ["-fPIE", "-pie"])
    (root / "bin" / "script").write_text("#!/bin/sh\n")
    (root / "bin" / "script").chmod(0o755)
    (root / "bin" / "broken").write_bytes(b"\x7fELF\x02\x01" + b"\xff" * 100)
    (root / "bin" / "broken").chmod(0o755)
    return root


class TestGuestPrograms:
    def test_each_address_space_gets_its_program(self, programs: Path) -> None:
        first, second = Chains(programs / "bin" / "first", 0x1000), Chains(programs / "bin" / "second", 0x8000000000002003)
        assert min(len(first), len(second)) > 20
        symbols = GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions(mounts=(str(programs),)))
        addresses = np.concatenate([first.addresses, second.addresses])
        cr3 = np.concatenate([first.cr3, second.cr3])
        result = symbols.resolve_user(of_vm(len(addresses)), cr3, addresses, np.concatenate([first.is_return, second.is_return]))
        names = [name for name, _, _ in named(result)]
        expected = functions_by_addr2line(programs / "bin" / "first", first.addresses) + functions_by_addr2line(programs / "bin" / "second", second.addresses)
        assert names == expected
        assert {"leaf", "main", "first_two", "second_three"} <= set(expected)
        assert [dso for _, _, dso in named(result)] == ["/bin/first"] * len(first) + ["/bin/second"] * len(second)
        assert np.all((result.start <= addresses) & (addresses < result.limit))
        assert not any("guest user" in note for note in symbols.notes)

    def test_nothing_is_named_without_proof(self, programs: Path) -> None:
        """Two programs in one address space, chains of another program, and no chains at all."""
        first, second = Chains(programs / "bin" / "first", 0x1000), Chains(programs / "bin" / "second", 0x1000)
        addresses, is_return = np.concatenate([first.addresses, second.addresses]), np.concatenate([first.is_return, second.is_return])
        both = GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions(mounts=(str(programs),)))
        assert np.all(both.resolve_user(of_vm(len(addresses)), np.concatenate([first.cr3, second.cr3]), addresses, is_return).name == -1)
        assert f"VM vm (7): {len(addresses)} guest user addresses of 1 address spaces have no names" in both.notes[-1]
        wrong = GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions(binaries=(str(programs / "bin" / "first"),)))
        assert np.all(wrong.resolve_user(of_vm(len(second)), second.cr3, second.addresses, second.is_return).name == -1)
        leaves = ~first.is_return
        assert np.all(wrong.resolve_user(of_vm(int(leaves.sum())), first.cr3[leaves], first.addresses[leaves], first.is_return[leaves]).name == -1)
        none = GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions())
        assert np.all(none.resolve_user(of_vm(len(first)), first.cr3, first.addresses, first.is_return).name == -1)
        assert "--guestmount" in none.notes[-1]

    def test_copies_are_one_program_and_vms_are_apart(self, programs: Path) -> None:
        first = Chains(programs / "bin" / "first", 0x1000)
        path = str(programs / "bin" / "first")
        symbols = GuestSymbols.build([GuestVm(7, "a", ()), GuestVm(8, "b", ())], GuestSymbolOptions(binaries=(f"a={path}", f"7={path}")))
        resolved = symbols.resolve_user(of_vm(len(first)), first.cr3, first.addresses, first.is_return)
        assert np.all(resolved.name >= 0)
        other = symbols.resolve_user(of_vm(len(first), 1), first.cr3, first.addresses, first.is_return)
        assert np.all(other.name == -1)

    def test_some_junk_in_chains_and_addresses_of_libraries_do_not_matter(self, programs: Path) -> None:
        first = Chains(programs / "bin" / "first", 0x1000)
        addresses = np.append(first.addresses, column(0x1234, 0x7FFFF7FC1000))
        is_return = np.append(first.is_return, [True, False])
        symbols = GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions(mounts=(str(programs),)))
        resolved = symbols.resolve_user(of_vm(len(addresses)), np.full(len(addresses), 0x1000, np.uint64), addresses, is_return)
        assert np.all(resolved.name[:-2] >= 0)
        assert named(resolved)[-2:] == [(None, 0, None)] * 2

    def test_load_bias(self, programs: Path) -> None:
        path = programs / "bin" / "position_independent"
        chains = Chains(path, 0x1000)
        listed = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        leaf = re.search(r"^([0-9a-f]+) t leaf$", listed, re.MULTILINE)
        assert leaf is not None
        # What it prints first is 4 bytes behind the start of leaf.
        bias = int(chains.addresses[0]) - 4 - int(leaf[1], 16)
        symbols = GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions(binaries=(f"{path}@{bias:#x}",)))
        resolved = symbols.resolve_user(of_vm(len(chains)), chains.cr3, chains.addresses, chains.is_return)
        assert [name for name, _, _ in named(resolved)] == functions_by_addr2line(path, chains.addresses - np.uint64(bias))
        with pytest.raises(UsageError, match="position-independent"):
            GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions(binaries=(str(path),)))

    def test_files_that_are_no_programs(self, programs: Path) -> None:
        for name in ("script", "broken", "missing"):
            with pytest.raises(FormatError, match=name):
                GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions(binaries=(str(programs / "bin" / name),)))
        with pytest.raises(UsageError, match="not a directory"):
            GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions(mounts=(str(programs / "bin" / "first"),)))

    @settings(max_examples=60, deadline=None)
    @given(changes=st.lists(st.tuples(st.integers(0, 0x3FF), st.integers(0, 255)), min_size=1, max_size=8), cut=st.integers(0, 900_000))
    def test_damaged_programs(self, changes: list[tuple[int, int]], cut: int, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        data = bytearray((programs / "bin" / "first").read_bytes())
        for at, byte in changes:
            data[at] = byte
        directory = tmp_path_factory.getbasetemp() / "damaged"
        directory.mkdir(exist_ok=True)
        (directory / "one").write_bytes(data)
        (directory / "two").write_bytes(data[:cut])
        for path in directory.iterdir():
            path.chmod(0o755)
        chains = column(0x401000, 0x401800, 0x402000, 0x403000)
        symbols = GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions(mounts=(str(directory),)))
        assert len(symbols.resolve_user(of_vm(4), column(1, 1, 1, 1), chains, np.array([False, True, True, True]))) == 4
        for path in directory.iterdir():
            try:
                GuestSymbols.build([GuestVm(7, "vm", ())], GuestSymbolOptions(binaries=(str(path),)))
            except PerfguestError:
                continue
