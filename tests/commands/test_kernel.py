# SPDX-License-Identifier: Apache-2.0
"""`perfguest kernel` as a user calls it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

from elftools.elf.elffile import ELFFile

from perfguest.formats.kernel_module import read_module

KERNEL = sorted(Path("/boot").glob("vmlinuz-*"))[-1]
RELEASE = KERNEL.name.removeprefix("vmlinuz-")
MODULE = next(Path("/lib/modules", RELEASE).rglob("ext4.ko*"))


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "perfguest", "kernel", *arguments], capture_output=True, text=True, check=False)


def test_an_image() -> None:
    done = run(KERNEL)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^release: +{re.escape(RELEASE)}$", done.stdout, re.MULTILINE)
    assert re.search(r"^build id: +[0-9a-f]{40}$", done.stdout, re.MULTILINE)
    assert re.search(r"^symbols: +\d{5,}, \d{5,} of them functions, from kallsyms, ", done.stdout, re.MULTILINE)
    assert re.search(r"^ORC: +\d{6,} entries, ", done.stdout, re.MULTILINE)
    assert re.search(r"^BTF: +\d{5,} types in \d+ bytes$", done.stdout, re.MULTILINE)
    assert "problem" not in done.stdout


def test_an_image_as_json_is_what_bpftool_and_the_file_say() -> None:
    found = json.loads(run("--json", KERNEL).stdout)
    assert (found["kind"], found["container"], found["release"], found["problems"]) == ("kernel", "boot image (bzImage)", RELEASE, [])
    assert found["link_address"] == found["text"][0]["address"] == 0xFFFFFFFF81000000
    map_file = Path(f"/boot/System.map-{RELEASE}").read_text()
    entry = re.search(r"^([0-9a-f]+) T entry_SYSCALL_64$", map_file, re.MULTILINE)
    # Debian's package of the image has a System.map that says where the real one is.
    assert entry is None or int(entry[1], 16) == found["syscall_entry"]
    assert found["orc"]["first"] == found["link_address"]


def test_a_module() -> None:
    found = json.loads(run("--json", MODULE).stdout)
    module = read_module(str(MODULE))
    assert (found["kind"], found["name"], found["release"], found["build_id"]) == ("module", "ext4", RELEASE, module.build_id)
    elf = ELFFile(io.BytesIO(module.elf))
    for section in found["text"]:
        theirs = elf.get_section_by_name(section["section"])
        assert (section["bytes"], section["alignment"]) == (theirs["sh_size"], theirs["sh_addralign"])
    assert run(MODULE).returncode == 0


def test_names_that_would_move_the_cursor(tmp_path: Path) -> None:
    """A module that calls itself and its release so, at a place that is called so: neither in what is printed nor in what is complained of."""
    elf = read_module(str(MODULE)).elf
    place = tmp_path / "\x1b[2J\u202e.ko"
    for new in (b"\x1b[3m", b"a\n\xff\xc0"):
        place.write_bytes(elf.replace(b"\0name=ext4\0", b"\0name=" + new + b"\0").replace(b"vermagic=6.1", b"vermagic=\x1b[1"))
        for arguments in ((place,), ("--json", place), (place / "missing",)):
            done = run(*arguments)
            assert done.stdout or done.stderr
            assert all(line.isprintable() for line in (done.stdout + done.stderr).split("\n")), done


def test_what_is_no_kernel_is_refused_with_words(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(KERNEL.read_bytes()[:1_000_000])
    (tmp_path / "text").write_text("nothing")
    for path, words in ((tmp_path / "cut", "truncated"), (tmp_path / "text", "neither"), ("/bin/true", "no kernel"), (tmp_path / "none", "No such file")):
        done = run(path)
        assert done.returncode == 6
        assert words in done.stderr
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr
