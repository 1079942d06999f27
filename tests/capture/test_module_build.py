# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from perfguest.capture.module_build import Headers, build, cache_directories, find_headers, identity, is_trusted, source_directory, source_files
from perfguest.errors import EnvironmentProblem, ModuleProblem

_HEADERS = sorted(Path("/lib/modules").glob("*/build/include/generated/utsrelease.h"))
_SOURCE = '#include <linux/module.h>\nMODULE_LICENSE("GPL");\nMODULE_VERSION("7");\n'


@pytest.fixture
def headers() -> Headers:
    """Debian's."""
    return find_headers(_HEADERS[-1].parents[2])


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Of a module that does nothing."""
    directory = tmp_path / "sources"
    directory.mkdir()
    (directory / "Kbuild").write_text("obj-m := perfguest.o\nperfguest-y := main.o\n")
    (directory / "main.c").write_text(_SOURCE)
    return directory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty, and this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/perfguest/kmod"


def test_builds_once_for_all_who_ask(headers: Headers, sources: Path, cache: Path) -> None:
    said: list[str] = []
    built: list[Path] = []
    threads = [threading.Thread(target=lambda: built.append(build(headers, sources, say=said.append))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built[0] == built[1] == built[2]
    assert built[0].is_relative_to(cache)
    assert len([line for line in said if line.startswith("building")]) == 1
    # As on another machine that sees the same files: no word, and no make needed.
    assert build(headers, sources, say=said.append) == built[0]
    assert len([line for line in said if line.startswith("building")]) == 1
    information = subprocess.run(["/sbin/modinfo", str(built[0])], capture_output=True, text=True, check=True).stdout
    assert headers.release == _HEADERS[-1].parents[3].name
    assert f"vermagic:       {headers.release} " in information
    assert sorted(path.name for path in built[0].parent.iterdir()) == ["lock", "perfguest.ko"]
    assert sorted(path.name for path in sources.iterdir()) == ["Kbuild", "main.c"]


def test_compilers_words_are_shown(headers: Headers, sources: Path) -> None:
    (sources / "main.c").write_text(_SOURCE + "int broken(void) { return no_such_thing; }\n")
    with pytest.raises(ModuleProblem, match="no_such_thing") as raised:
        build(headers, sources)
    assert raised.value.hint


def test_identity_is_of_contents_and_not_of_times(headers: Headers, sources: Path, tmp_path: Path) -> None:
    first = identity(headers, sources)
    os.utime(sources / "main.c", (1, 1))
    (sources / "main.o").write_text("left by a build in the sources")
    shutil.copytree(sources, tmp_path / "copy")
    assert identity(headers, tmp_path / "copy") == first
    assert identity(Headers(headers.directory, "9.9"), sources) != first
    (sources / "main.c").write_text(_SOURCE + "\n")
    assert identity(headers, sources) != first
    other = tmp_path / "headers"
    other.mkdir()
    assert identity(Headers(other, headers.release), tmp_path / "copy") != first


def test_own_sources_are_found() -> None:
    names = {path.name for path in source_files(source_directory())}
    assert {"Kbuild", "perfguest_abi.h", "main.c"} <= names


def test_headers_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentProblem, match="no headers"):
        find_headers(tmp_path)
    running = os.uname()
    monkeypatch.setattr("perfguest.capture.module_build.os.uname", lambda: os.uname_result(("Linux", "host", "9.9.9-absent", running.version, "x86_64")))
    with pytest.raises(EnvironmentProblem) as raised:
        find_headers()
    assert "apt install linux-headers-9.9.9-absent" in raised.value.hint


def test_make_that_is_not_there(headers: Headers, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentProblem) as raised:
        build(headers, sources)
    assert "apt install make gcc" in raised.value.hint


def test_object_that_others_can_change_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "cache/perfguest.ko"
    path.parent.mkdir(mode=0o755)
    path.write_bytes(b"")
    path.chmod(0o644)
    assert is_trusted(path)
    path.chmod(0o666)
    assert not is_trusted(path)
    path.chmod(0o644)
    path.parent.chmod(0o777)
    assert not is_trusted(path)


def test_cache_is_where_the_environment_says_or_at_home() -> None:
    first, *rest = cache_directories({"XDG_CACHE_HOME": "/x", "HOME": "/h"})
    assert first == Path("/x/perfguest/kmod")
    assert rest
    assert cache_directories({"XDG_CACHE_HOME": "relative", "HOME": "/h"})[0] == Path("/h/.cache/perfguest/kmod")
