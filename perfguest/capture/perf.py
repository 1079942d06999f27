# SPDX-License-Identifier: Apache-2.0
"""Runs ``perf record`` beside the module. perf starts with its events off; it is told over a pipe when to begin and says when it has."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from perfguest.capture.waiting import wait_readable
from perfguest.errors import CaptureError, EnvironmentProblem
from perfguest.terminal import printable

_LOG_LINES = 15
#: perf looks through all that it wrote when it ends, for build ids.
_END_SECONDS = 600.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class PerfSettings:
    """One ``perf record``. ``pids``: processes to sample, none for the whole host. ``clock``: ``local`` or ``mono``."""

    perf: str
    event: str
    frequency: int
    pids: tuple[int, ...]
    clock: str
    data: Path
    log: Path

    def command(self, control: int, acknowledge: int) -> list[str]:
        """perf's command line; the numbers are file descriptors that it inherits."""
        target = ["-p", ",".join(map(str, self.pids))] if self.pids else ["-a"]
        clock = ["-k", "mono"] if self.clock == "mono" else []
        # Without -a perf leaves out the CPU, by which samples and records are joined.
        # -N: the cache of binaries under ~/.debug is of no use here, and filling it takes long.
        return [
            *(self.perf, "record", *target, "-g", "-e", self.event, "-F", str(self.frequency), *clock),
            *("-T", "--sample-cpu", "-N", "-D", "-1", f"--control=fd:{control},{acknowledge}", "-o", str(self.data)),
        ]


def perf_version(perf: str) -> str:
    """What ``perf --version`` prints, without ``perf version``. Raises :class:`EnvironmentProblem` if it does not run."""
    try:
        done = subprocess.run([perf, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise EnvironmentProblem(f"cannot run {perf}: {error.strerror}", "Install perf for this kernel.") from error
    if done.returncode != 0:
        hint = "Install perf for this kernel (Debian: apt install linux-perf; Ubuntu: apt install linux-tools-$(uname -r))."
        raise EnvironmentProblem(f"{perf} does not run: {(done.stderr or done.stdout).strip()}", hint)
    return done.stdout.strip().removeprefix("perf version ")


class Perf:
    """A running ``perf record``. ``exited`` is a file descriptor that becomes readable when perf has ended.

    Start it before any thread: it is bound to the life of the thread that started it.
    """

    def __init__(self, settings: PerfSettings) -> None:
        self._settings = settings
        self._fds: list[int] = []
        control, self._control = self._pipe()
        self._acknowledge, acknowledge = self._pipe()
        self.command = settings.command(control, acknowledge)
        parent = os.getpid()
        try:
            with settings.log.open("wb") as log:
                # A session of its own: Ctrl-C is for the recorder, which ends perf when everything else has its order.
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(control, acknowledge),
                    start_new_session=True,
                    preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),  # noqa: PLW1509 - there are no threads yet
                )
            for fd in (control, acknowledge):
                self._close(fd)
            self.exited = os.pidfd_open(self._process.pid)
            self._fds.append(self.exited)
        except OSError as error:
            self.kill()
            raise EnvironmentProblem(f"cannot run {settings.perf}: {error.strerror}", "Install perf for this kernel.") from error

    def enable(self, interrupted: int = -1) -> bool:
        """Begins sampling; returns when perf has said that it has, or False when ``interrupted`` is readable. Raises :class:`CaptureError` if perf ends."""
        self._send(b"enable\n")
        watched = [self.exited, self._acknowledge, *([interrupted] if interrupted >= 0 else [])]
        readable = wait_readable(watched)
        if self._acknowledge in readable:
            if os.read(self._acknowledge, 64).startswith(b"ack"):
                return True
            # It has closed its end, and is about to end itself.
            wait_readable([self.exited])
            raise self.died()
        if self.exited in readable:
            raise self.died()
        return False

    def ended_well(self) -> bool:
        """Whether perf has ended by itself, without failing: its targets are gone."""
        return self._process.poll() == 0

    def stop(self) -> None:
        """Ends sampling and waits until perf has written its file; perf may have ended before, with its targets. Raises :class:`CaptureError` if it failed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise CaptureError("perf does not end", f"Its output is in {self._settings.log}.") from None
        # perf ends itself by the signal that it was ended with, after it has written everything.
        if status not in (0, -signal.SIGINT, 128 + signal.SIGINT):
            raise self.died()

    def died(self) -> CaptureError:
        """Why perf has ended, by its own last words."""
        status = self._process.wait()
        log = self._settings.log
        lines = [line for line in _tail(log).splitlines() if line.strip()][-_LOG_LINES:]
        text = "\n".join(printable(line.expandtabs()) for line in lines)
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        if "No space left on device" in text:
            return CaptureError(
                f"the disk is full: perf could not write {self._settings.data}",
                "What was written until then can be converted. Make room, or record elsewhere with -o.",
            )
        return CaptureError(f"perf {how}" + (f":\n{text}" if text else ""), f"Its output is in {log}; its command was: {' '.join(self.command)}")

    def kill(self) -> None:
        """Whatever happened: afterwards perf is gone. Asks it to end first, for the sake of its file."""
        process = getattr(self, "_process", None)
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for fd in list(self._fds):
            self._close(fd)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._fds += ends
        return ends

    def _close(self, fd: int) -> None:
        self._fds.remove(fd)
        os.close(fd)

    def _send(self, command: bytes) -> None:
        try:
            os.write(self._control, command)
        except BrokenPipeError:
            # perf has ended: that it has is seen on its pidfd, with the reason.
            return


def die_with_parent(parent: int, number: int) -> None:
    """In a child between fork and exec: the signal comes when the parent's thread ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
