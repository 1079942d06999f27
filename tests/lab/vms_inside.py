# SPDX-License-Identifier: Apache-2.0
"""Inside the lab's host: VMs that come and go while one recording runs.

vms_inside.py SCENARIO SPECS: ``SPECS`` is a JSON file, the VMs as :mod:`tests.lab.vms` describes them. Which attempt of each came to its end goes to
``vms.json``, what each attempt wrote to ``vms/NAME.NUMBER``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from perfguest.capture.lab.boot import INSIDE
from perfguest.formats.guest_snapshot import read_snapshot
from perfguest.proto import guest_pb2

UP, BEAT = b"PERFGUEST-GUEST-UP", b"PERFGUEST-HEARTBEAT"
FAILED = (b"PERFGUEST-WORKLOAD-FAILED", b"KVM internal error", b"Kernel panic")
#: Seconds without a word on its console after which a VM is lost; it may happen in the emulator.
STALL = 120.0
ATTEMPTS = 5
#: Short-lived processes a second.
PACE = 50
#: Where each attempt has its directory while it runs.
WITHIN = Path(INSIDE) / "vms"

#: What a VM waits for, and whether it is so.
Step = tuple[str, Callable[[], bool]]


class Lost(Exception):
    """An attempt that came to nothing."""


class Attempt:
    """One process of a VM, with a directory of its own for all that it writes, on its console too."""

    def __init__(self, name: str, argv: list[str]) -> None:
        self.name = name
        self._directory = WITHIN / name
        self._directory.mkdir(parents=True)
        self._console = self._directory / "console"
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=console, stderr=subprocess.STDOUT, cwd=self._directory)
        self.pid = self._process.pid
        self._size, self._heard = 0, time.monotonic()
        self._ended = False

    def say(self, line: str) -> None:
        """Types a line on its console."""
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Lost("ended") from None

    def count(self, marker: bytes) -> int:
        return self._console.read_bytes().count(marker)

    def started(self, seconds: int) -> int:
        """How many processes it has logged of so many seconds, the last ones that it has logged any of."""
        lines = (self._directory / "log").read_bytes().rpartition(b"\n")[0].splitlines()
        times = [int(line.split()[2]) for line in lines if line.startswith(b"process ")]
        return sum(time > times[-1] - seconds * 10**9 for time in times)

    def check(self) -> None:
        """Raises :class:`Lost` if it has ended, failed or fallen silent."""
        if self._process.poll() is not None:
            raise Lost(f"ended with status {self._process.returncode}")
        size = self._console.stat().st_size
        if size != self._size:
            self._size, self._heard = size, time.monotonic()
            if found := [marker.decode() for marker in FAILED if self.count(marker)]:
                raise Lost(found[0])
        elif time.monotonic() - self._heard > STALL:
            raise Lost("silent")

    def end(self) -> None:
        """Ends it, and copies what it wrote to the directory that is shared with the lab's outside."""
        if self._ended:
            return
        self._ended = True
        self._process.kill()
        self._process.wait()
        shutil.copytree(self._directory, Path("vms") / self.name)


class Vm:
    """A VM in as many attempts as it takes; of what it left, only the last one's counts."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name: str = spec["name"]
        self._argv: list[str] = spec["argv"]
        self._number = 0
        self.attempt: Attempt | None = None

    def start(self) -> Attempt:
        """The attempt that runs, or another one."""
        if self.attempt is None:
            self._number += 1
            if self._number > ATTEMPTS:
                raise SystemExit(f"{self.name} was lost {ATTEMPTS} times")
            self.attempt = Attempt(f"{self.name}.{self._number}", self._argv)
        return self.attempt

    def end(self) -> None:
        if self.attempt is not None:
            self.attempt.end()

    def lost(self) -> None:
        self.end()
        self.attempt = None


Life = Callable[[Attempt], Iterator[Step]]


class _Living:
    """A VM on its way through the steps of a life."""

    def __init__(self, vm: Vm, life: Life) -> None:
        self._vm, self._life = vm, life
        self._begin()

    def _begin(self) -> None:
        self._attempt = self._vm.start()
        self._steps = self._life(self._attempt)
        self._next()

    def _next(self) -> None:
        self._since = time.monotonic()
        self._step = next(self._steps, None)

    def has_lived(self) -> bool:
        """Goes on as far as it can, in another attempt if this one is lost; whether it has come to the end."""
        try:
            self._attempt.check()
            while self._step and self._step[1]():
                print(f"{self._attempt.name}: {self._step[0]}, after {time.monotonic() - self._since:.0f} s", flush=True)
                self._next()
        except Lost as error:
            print(f"{self._attempt.name}: lost: {error}, waiting for {self._step[0] if self._step else 'others'}", flush=True)
            self._vm.lost()
            self._begin()
            return False
        return self._step is None


def until(condition: Callable[[], bool]) -> None:
    """Looks again and again: what VMs and the recorder write tells nobody that it has come."""
    while not condition():
        time.sleep(0.2)


def live(lives: dict[Vm, Life]) -> None:
    """Starts the VMs that do not run, and waits until each has come to the end of its life, all of the attempts that did so being alive."""
    living = [_Living(vm, life) for vm, life in lives.items()]
    # Each has its turn, whatever the one before it says.
    until(lambda: not [one for one in living if not one.has_lived()])


class Recorder:
    """``perfguest record``, from when everything records until it is told to stop."""

    def __init__(self, output: str, frequency: int) -> None:
        self._output = Path(output)
        self._events = self._output / "guests/events"
        self._size = 0
        self._kernels: list[guest_pb2.VmKernel] = []
        # Its command is let go when everything records, and stays as long as our end of the pipe.
        command = ["sh", "-c", "echo recording && exec cat"]
        argv = [sys.executable, "-m", "perfguest", "record", "-o", output, "--guest-wait", "300", "-F", str(frequency), "--", *command]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout
        if self._process.stdout.readline() != b"recording\n":
            raise SystemExit(f"the recorder does not record: status {self._process.wait()}")

    def knows(self, attempt: Attempt, boots: int) -> bool:
        """Whether so many kernels have been read of a VM, one for each boot."""
        if self._process.poll() is not None:
            raise SystemExit(f"the recorder ended with status {self._process.returncode}")
        size = self._events.stat().st_size if self._events.exists() else 0
        if size != self._size:
            self._size = size
            snapshot = read_snapshot(self._events.parent)
            self._kernels = list(snapshot.kernels) if snapshot else []
        return len({kernel.lstar for kernel in self._kernels if kernel.vm_pid == attempt.pid and kernel.level == "processes"}) >= boots

    def stop(self) -> None:
        said, _ = self._process.communicate()
        print(said.decode(), flush=True)
        if self._process.returncode:
            raise SystemExit(f"the recorder ended with status {self._process.returncode}")


def is_up(attempt: Attempt, boots: int = 1) -> Iterator[Step]:
    yield f"up {boots}", lambda: attempt.count(UP) >= boots


def is_recorded(attempt: Attempt, recorder: Recorder, beats: int, boots: int = 1) -> Iterator[Step]:
    """Up, known to the recorder, and then recorded for so many heartbeats, of a second of the guest each."""
    yield from is_up(attempt, boots)
    yield f"kernel {boots} read", lambda: recorder.knows(attempt, boots)
    enough = attempt.count(BEAT) + beats
    yield f"{beats} heartbeats", lambda: attempt.count(BEAT) >= enough


def kernels(vms: dict[str, Vm]) -> None:
    """Two VMs with a kernel each, that run when the recording starts, and end within it; then one that starts in it and boots into another kernel."""
    beats = 6
    # These guests compute all the time and are nice; those who read them come first, in whatever session they are.
    Path("/proc/sys/kernel/sched_autogroup_enabled").write_text("0")
    pair, third = (vms["first"], vms["second"]), vms["third"]
    live(dict.fromkeys(pair, is_up))
    recorder = Recorder("kernels", 200)
    live(dict.fromkeys(pair, lambda attempt: is_recorded(attempt, recorder, beats)))
    for vm in pair:
        vm.end()

    def reboots(attempt: Attempt) -> Iterator[Step]:
        yield from is_recorded(attempt, recorder, beats)
        attempt.say("reboot")
        yield from is_recorded(attempt, recorder, beats, 2)

    live({third: reboots})
    recorder.stop()


def threads(vms: dict[str, Vm]) -> None:
    """One VM whose tasks come and go, recorded for a while, and on until it has kept its pace for half a minute; for three minutes at most."""
    recorder = Recorder("threads", 299)

    def paced(attempt: Attempt) -> Iterator[Step]:
        yield from is_recorded(attempt, recorder, 30)
        for beat in range(attempt.count(BEAT), attempt.count(BEAT) + 150):
            if attempt.started(30) >= 30 * PACE:
                break
            yield f"heartbeat {beat + 1}", lambda beat=beat: attempt.count(BEAT) > beat  # type: ignore[misc]

    live(dict.fromkeys(vms.values(), paced))
    recorder.stop()


def main(scenario: str, specs: Path) -> None:
    vms = {spec["name"]: Vm(spec) for spec in json.loads(specs.read_text())}
    try:
        {"kernels": kernels, "threads": threads}[scenario](vms)
    finally:
        for vm in vms.values():
            vm.end()
        os.sync()
    ran = {vm.name: {"attempt": vm.attempt.name, "pid": vm.attempt.pid} for vm in vms.values() if vm.attempt}
    Path("vms.json").write_text(json.dumps(ran))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
