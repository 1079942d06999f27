# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perfguest.capture.waiting import wait_readable
from perfguest.guest import sandbox

_TRY = """
import ctypes, json, mmap, os, signal, socket, sys
from perfguest.guest import sandbox

memory = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
sandbox.prepare()
confined = sandbox.enter(os.getppid(), 256 << 20, 20)

def attempt(what):
    try:
        return repr(what())
    except (OSError, MemoryError, ValueError, RuntimeError) as error:
        return type(error).__name__

def system_call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

results = {
    "confined": confined,
    "read memory": attempt(lambda: os.pread(memory, 4, int(sys.argv[2]))),
    "a file": attempt(lambda: open("/etc/passwd")),
    "its own memory": attempt(lambda: open("/proc/self/mem")),
    "a socket": attempt(socket.socket),
    "a pipe": attempt(os.pipe),
    "a descriptor": attempt(lambda: os.dup(0)),
    "a process": attempt(os.fork),
    "a program": attempt(lambda: os.execv("/bin/true", ["true"])),
    "root": attempt(lambda: os.setuid(0)),
    "a signal": attempt(lambda: os.kill(os.getppid(), 0)),
    "a directory": attempt(lambda: os.mkdir("/tmp/perfguest-sandbox")),
    "a path": attempt(lambda: os.stat("/etc/passwd")),
    "code": attempt(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)),
    "more memory": attempt(lambda: len(bytearray(1 << 30))),
    "some memory": attempt(lambda: len(bytearray(1 << 20))),
    "ptrace": attempt(lambda: system_call(101, 16, os.getppid(), 0, 0)),
    "other memory": attempt(lambda: system_call(310, os.getppid(), 0, 0, 0, 0, 0)),
    "bpf": attempt(lambda: system_call(321, 0, 0, 0)),
    "io_uring": attempt(lambda: system_call(425, 1, 0)),
}
os.write(1, json.dumps(results).encode() + b"\\n")
os.read(0, 1)
"""


@pytest.fixture(scope="module")
def tried() -> tuple[dict[str, object], dict[str, str]]:
    """What a confined process could do, and what the kernel says of it."""
    held = b"held by the parent"
    address = id(held) + sys.getsizeof(held) - len(held) - 1
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    command = [sys.executable, "-c", _TRY, str(memory), str(address)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[memory], cwd=Path(__file__).parents[2]) as process:
        assert process.stdout
        results = json.loads(process.stdout.readline())
        status = dict(re.findall(r"(\w+):[ \t]*(.*?)[ \t]*\n", Path(f"/proc/{process.pid}/status").read_text()))
        process.communicate(b"!")
    os.close(memory)
    return results, status


def test_what_is_open_can_be_read(tried: tuple[dict[str, object], dict[str, str]]) -> None:
    assert tried[0]["read memory"] == repr(b"held")
    assert tried[0]["some memory"] == repr(1 << 20)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        *(
            (what, "PermissionError")
            for what in ("a path", "a program", "root", "a directory", "code", "ptrace", "other memory", "bpf", "io_uring", "a process")
        ),
        *((what, "PermissionError") for what in ("a file", "its own memory", "a socket", "a pipe", "a descriptor", "a signal")),
        ("more memory", "MemoryError"),
    ],
)
def test_nothing_else_can_be_had(tried: tuple[dict[str, object], dict[str, str]], what: str, error: str) -> None:
    assert tried[0][what] == error


def test_kernel_says_the_same(tried: tuple[dict[str, object], dict[str, str]]) -> None:
    results, status = tried
    assert results["confined"] == ["landlock", "seccomp"]
    assert status["Uid"].split() == status["Gid"].split() == [str(sandbox.NOBODY)] * 4
    assert status["Groups"] == ""
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16), int(status["CapPrm"], 16)) == ("1", "2", 0, 0)


def test_without_a_filter_there_is_nothing_to_be_had_either() -> None:
    program = _TRY.replace("sandbox.prepare()", "sandbox.prepare()\nsandbox._seccomp = lambda: False")
    address = str(id(b""))
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    done = subprocess.run(
        [sys.executable, "-c", program, str(memory), address], stdin=subprocess.DEVNULL, capture_output=True, pass_fds=[memory], check=True, cwd="/"
    )
    os.close(memory)
    results = json.loads(done.stdout)
    # 310, process_vm_readv, gets as far as its arguments, which are empty; that it is another user's process it does not see then.
    harmless = {"a path", "code", "some memory", "read memory", "confined", "other memory"}
    assert {what: result for what, result in results.items() if what not in harmless and not str(result).endswith("Error")} == {}


def test_endless_work_ends() -> None:
    program = "import os\nfrom perfguest.guest import sandbox\nsandbox.enter(os.getppid(), 1 << 28, 1)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


def test_dies_with_its_parent() -> None:
    child = (
        "import os, sys, time\nfrom perfguest.guest import sandbox\nsandbox.enter(int(sys.argv[1]), 1 << 28, 60)\n"
        "os.write(1, b'%d' % os.getpid())\nos.close(1)\ntime.sleep(1000)"
    )
    parent = f"import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])\nos.close(1)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        pidfd = os.pidfd_open(int(process.stdout.read()))
        process.kill()
    assert wait_readable([pidfd], 30)
    os.close(pidfd)
