# SPDX-License-Identifier: Apache-2.0
"""Every symbol and real stacks of a kernel that was booted, KASLR on, held against what its image alone says.

More images than those in /boot are tested if the variable PERFGUEST_TEST_KERNELS lists them, separated by colons.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from perfguest.errors import FormatError
from perfguest.formats.kernel_image import read_kernel_image
from perfguest.symbols.guest import GuestSymbolOptions, GuestSymbols, GuestVm
from perfguest.symbols.kallsyms import read_kallsyms

pytestmark = pytest.mark.lab

KERNELS = [*sorted(map(str, Path("/boot").glob("vmlinuz-*")))[-1:], *filter(None, os.environ.get("PERFGUEST_TEST_KERNELS", "").split(":"))]
INIT = b"""#!/busybox sh
/busybox mkdir -p /proc /dev
/busybox mount -t proc proc /proc
/busybox mount -t devtmpfs dev /dev
/busybox stty -F /dev/ttyS1 raw
/busybox gzip -1 -c /proc/kallsyms >/dev/ttyS1
/busybox cat /proc/[0-9]*/stack | /busybox gzip -1 -c >/dev/ttyS1
/busybox poweroff -f
"""


@dataclass(frozen=True)
class Boot:
    kernel: str
    kallsyms: Path
    symbols: list[tuple[int, str, str]]
    #: Return addresses in the stacks of sleeping tasks, as the kernel itself unwound them.
    returns: npt.NDArray[np.uint64]

    def address_of(self, name: str) -> int:
        return next(address for address, _, symbol in self.symbols if symbol == name)


def initramfs(files: dict[str, bytes]) -> bytes:
    """cpio's newc form, as Documentation/driver-api/early-userspace/buffer-format.rst describes it."""
    out = b""
    for name, data in [*files.items(), ("TRAILER!!!", b"")]:
        fields = (0, 0o100755, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
    return out


@pytest.fixture(scope="module", params=KERNELS)
def boot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    where = tmp_path_factory.mktemp("boot")
    (where / "initramfs").write_bytes(initramfs({"busybox": Path("/bin/busybox").read_bytes(), "init": INIT}))
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max,la57=off", "-m", "512M", "-display", "none", "-monitor", "none", "-no-reboot"]
    command += ["-serial", "file:console", "-serial", "file:answer", "-kernel", request.param, "-initrd", "initramfs"]
    subprocess.run([*command, "-append", "console=ttyS0 quiet panic=-1 mitigations=off"], cwd=where, check=True, timeout=300)
    try:
        listing, stacks = re.split(r"(?=\[<0>\])", gzip.decompress((where / "answer").read_bytes()).decode(), maxsplit=1)
    except (OSError, ValueError):
        pytest.fail(f"the kernel did not answer; its console: {(where / 'console').read_text(errors='replace')[-2000:]}")
    (where / "kallsyms").write_text(listing)
    symbols = [(int(address, 16), kind, name) for address, kind, name in (line.split()[:3] for line in listing.splitlines())]
    starts = {name: address for address, _, name in reversed(symbols)}
    counts: dict[str, int] = {}
    for _, _, name in symbols:
        counts[name] = counts.get(name, 0) + 1
    found = re.findall(r"\[<0>\] (\S+)\+(0x[0-9a-f]+)/", stacks)
    returns = {starts[name] + int(offset, 16) for name, offset in found if counts[name] == 1}
    return Boot(request.param, where / "kallsyms", symbols, np.array(sorted(returns), np.uint64))


def test_the_image_holds_every_symbol_of_the_running_kernel(boot: Boot) -> None:
    image = read_kernel_image(boot.kernel)
    moved = boot.address_of("entry_SYSCALL_64") - (image.address_of("entry_SYSCALL_64") or 0)
    decoded = zip(image.symbols.address.tolist(), map(chr, image.symbols.kind.tolist()), image.symbols.names, strict=True)
    assert [(address + moved if address >> 63 else address, kind, name) for address, kind, name in decoded] == boot.symbols
    assert len(boot.symbols) > 50_000


def test_image_and_kallsyms_name_addresses_alike(boot: Boot) -> None:
    vm = GuestVm(1, "vm", (boot.address_of("entry_SYSCALL_64"),))
    by_image = GuestSymbols.build([vm], GuestSymbolOptions(vmlinux=(boot.kernel,)))
    by_list = GuestSymbols.build([vm], GuestSymbolOptions(kallsyms=(str(boot.kallsyms),)))
    start, end = boot.address_of("_stext"), boot.address_of("_etext")
    addresses = np.random.default_rng(1).integers(start, end, 100_000, np.uint64)
    which = np.zeros(len(addresses), np.int32)
    one, other = by_image.resolve_kernel(which, addresses), by_list.resolve_kernel(which, addresses)
    assert np.array_equal(one.offset, other.offset)
    assert [one.names[name] if name >= 0 else None for name in one.name] == [other.names[name] if name >= 0 else None for name in other.name]
    assert [dso.name for dso in one.dsos] == [dso.name for dso in other.dsos] == ["[guest.kernel.kallsyms]"]
    assert np.count_nonzero(one.name >= 0) > 0.99 * len(addresses)
    oracle = read_kallsyms(boot.kallsyms)
    rows = oracle.lookup(addresses)
    assert [oracle.names[row] if row >= 0 else None for row in rows] == [other.names[name] if name >= 0 else None for name in other.name]


def test_real_return_addresses_are_proven(boot: Boot) -> None:
    assert len(boot.returns) > 15
    vm = GuestVm(1, "vm", (boot.address_of("entry_SYSCALL_64"),))
    which = np.zeros(len(boot.returns), np.int32)
    by_image = GuestSymbols.build([vm], GuestSymbolOptions(vmlinux=(boot.kernel,)))
    by_image.check_kernels(which, boot.returns, np.ones(len(which), bool))
    verdict = by_image.proven_returns(which, boot.returns)
    assert 0 not in verdict
    assert np.count_nonzero(verdict == 1) > 0.95 * len(verdict)
    within = by_image.proven_returns(which, boot.returns - np.uint64(4))
    assert np.count_nonzero(within == 0) > 0.9 * len(verdict)
    by_list = GuestSymbols.build([vm], GuestSymbolOptions(kallsyms=(str(boot.kallsyms),)))
    assert set(by_list.proven_returns(which, boot.returns).tolist()) == {-1}


def test_another_boot_is_refused(boot: Boot) -> None:
    vm = GuestVm(1, "vm", (boot.address_of("entry_SYSCALL_64") + (2 << 20),))
    with pytest.raises(FormatError, match="another boot or another kernel"):
        GuestSymbols.build([vm], GuestSymbolOptions(kallsyms=(str(boot.kallsyms),)))


def test_an_image_in_the_wrong_place_is_contradicted(boot: Boot) -> None:
    vm = GuestVm(1, "vm", (boot.address_of("entry_SYSCALL_64") - (2 << 20),))
    which = np.zeros(len(boot.returns), np.int32)
    symbols = GuestSymbols.build([vm], GuestSymbolOptions(vmlinux=(boot.kernel,)))
    with pytest.raises(FormatError, match="return addresses in its text follow a call"):
        symbols.check_kernels(which, boot.returns, np.ones(len(which), bool))
