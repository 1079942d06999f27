# SPDX-License-Identifier: Apache-2.0
"""``Lab``: boots the host and its guests, runs commands in it one after another, and takes all of it down again."""

from __future__ import annotations

import json
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from perfguest.capture.lab.boot import Boot, environment, prepare
from perfguest.capture.lab.control import ControlPort
from perfguest.capture.lab.input import Input
from perfguest.capture.lab.machine import Machine, ScratchDirectory, tail
from perfguest.capture.lab.options import LabOptions, guest_name
from perfguest.capture.lab.wire import Kind, Unpacker, pack
from perfguest.errors import LabError

Sink = Callable[[bytes], object]


class GuestNeverUp(LabError):
    """A guest did not reach its marker: the emulator loses about one in fifteen."""


class HostGone(LabError):
    """The emulator ended, or its kernel panicked."""


class Lab:
    """A KVM host in software emulation, with guests that run.

    ``with Lab(LabOptions(...)) as lab: lab.run(["uname", "-a"])``. ``report`` gets one line for each step. All methods are for the thread that made it.
    """

    def __init__(self, options: LabOptions | None = None, report: Callable[[str], object] = lambda _: None) -> None:
        self.options = options or LabOptions()
        self._report = report
        self._stack = ExitStack()
        self._selector = selectors.PollSelector()
        self._machine: Machine | None = None
        self._boot: Boot | None = None
        self._reset()

    def _reset(self) -> None:
        self._unpacker = Unpacker()
        self._hello = False
        self._pids: dict[int, int] = {}
        self._lost: str = ""
        self._lost_at = 0.0
        self._exit: int | None = None
        self._started = False
        self._dmesg: bytearray | None = None
        self._dmesg_whole = False
        self._gone = False
        self._sinks: dict[Kind, Sink] = {}
        self._input: Input | None = None
        self._silent = 0.0

    # Life

    def __enter__(self) -> Lab:
        with ExitStack() as stack:
            scratch = stack.enter_context(ScratchDirectory())
            stack.callback(self._keep_logs)
            stack.callback(self._stop)
            self._directory = scratch.path
            self._boot = prepare(self.options, self._directory)
            self._boot_until_up()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._power_off()
        self.close()

    def close(self) -> None:
        """Ends the host now and removes all that was the lab's."""
        self._stack.close()

    def _stop(self) -> None:
        if self._machine:
            for port in self._machine.ports.values():
                if port.fileno() in self._selector.get_map():
                    self._selector.unregister(port)
            self._machine.stop()

    def _power_off(self) -> None:
        """Lets the host write back what it holds for the shared directory; a host that does not answer is ended without."""
        assert self._machine  # noqa: S101
        try:
            self._send(Kind.POWEROFF)
            self._wait(lambda: False, "the host did not power off", limit=60.0)
        except LabError as error:
            if self._machine.process.poll() is None and "gone" not in error.message:
                self._report(error.message)

    # Boot

    def _boot_until_up(self) -> None:
        for attempt in range(1, self.options.boots + 1):
            try:
                self._boot_once()
                return
            except (GuestNeverUp, HostGone) as error:
                if attempt == self.options.boots:
                    raise
                self._report(f"{error.message}; the emulator does that now and then: booting once more")
                self._stop()
                self._keep_console(attempt)

    def _boot_once(self) -> None:
        assert self._boot  # noqa: S101
        self._reset()
        options = self.options
        self._report(f"booting the host: {self._boot.kernel.release}, {options.cpus} CPU{'s' * (options.cpus != 1)}, {options.memory} MiB")
        self._machine = Machine(
            kernel=self._boot.kernel.image,
            initrd=self._boot.initrd,
            directory=self._directory,
            shared=options.shared,
            cpus=options.cpus,
            memory=options.memory,
            emulator=options.emulator,
        )
        for number in range(options.guests):
            self.guest_console_path(number).unlink(missing_ok=True)
        self._control = ControlPort(self._machine.ports["control"], self._machine.qmp)
        self._selector.register(self._machine.ports["agent"], selectors.EVENT_READ, self._read_agent)
        self._selector.register(self._machine.ports["control"], selectors.EVENT_READ, self._control.read)
        self._wait(lambda: self._hello, "the host did not come up", limit=options.boot_timeout)
        self._report(f"host up, /dev/kvm there; booting {options.guests} guest{'s' * (options.guests != 1)}: {self._boot.guest_kernel.release}")
        self._wait(lambda: len(self._pids) == options.guests or bool(self._lost), "the guest did not come up", limit=options.boot_timeout)
        if self._lost:
            raise GuestNeverUp(f"{self._lost} before its workload ran", self._tails())

    # Use

    @property
    def directory(self) -> Path:
        """The lab's scratch directory, outside; gone when the lab is."""
        return self._directory

    @property
    def qmp_path(self) -> Path:
        """A QMP socket of the host's QEMU that nobody else uses."""
        return self._directory / "qmp"

    @property
    def guest_root(self) -> Path:
        """A directory with the guest's files, as perf's ``--guestmount`` idea."""
        assert self._boot  # noqa: S101
        return self._boot.guest.root

    @property
    def truth(self) -> Path:
        """``truth.json``: the chains of the ground-truth program."""
        assert self._boot  # noqa: S101
        return self._boot.guest.truth

    @property
    def alive(self) -> bool:
        """Whether the host is still there."""
        return bool(self._machine and not self._gone and self._machine.process.poll() is None)

    @property
    def lost(self) -> str:
        """Why a guest was lost, or nothing."""
        return self._lost

    def host_console(self) -> bytes:
        """What the host's kernel printed on its console."""
        return (self._directory / "console").read_bytes()

    def guest_console_path(self, number: int = 0) -> Path:
        """The file that collects a guest's console."""
        return self._directory / f"console-{guest_name(number)}"

    def inject_nmi(self, count: int = 1, interval: float = 0.01) -> None:
        """Sends NMIs to the host's CPU 0, ``interval`` seconds apart: it holds but one that waits."""
        assert self._machine  # noqa: S101
        for _ in range(count):
            self._machine.qmp.execute("inject-nmi")
            time.sleep(interval)

    def dmesg(self) -> str:
        """The host's kernel log so far."""
        self._dmesg, self._dmesg_whole = bytearray(), False
        self._send(Kind.DMESG)
        self._wait(lambda: self._dmesg_whole, "the host gave no kernel log", limit=self.options.boot_timeout)
        return bytes(self._dmesg).decode(errors="replace")

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Sends a signal to the running command's process group."""
        self._send(Kind.SIGNAL, json.dumps(int(number)).encode())

    def resize(self, rows: int, columns: int) -> None:
        """Tells the running command's terminal its new size."""
        self._send(Kind.RESIZE, json.dumps([rows, columns]).encode())

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        """Calls ``callback`` whenever ``sock`` is readable while the lab works."""
        self._selector.register(sock, selectors.EVENT_READ, callback)

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | bytes = b"",
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        terminal: tuple[int, int] | None = None,
        timeout: float | None = None,
        guest_may_end: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs ``argv`` as root in the lab's directory, and gives its status and what it wrote.

        ``env`` is added to the caller's environment; ``stdin`` is a file descriptor or the input itself; ``stdout`` and ``stderr`` get the output as
        it comes, instead of its being collected; ``terminal`` (rows, columns) gives it a terminal, all of whose output is stdout. ``timeout`` is in
        seconds. Raises LabError when the host is lost, when the time is over, and when a guest is lost that is not ended on purpose, unless
        ``guest_may_end``: then a command without a terminal has ``grace`` seconds to end before it is killed.
        """
        assert self._boot  # noqa: S101
        if self._lost and not guest_may_end:
            raise LabError(f"{self._lost} before {argv[0]} ran", self._tails())
        out, err = bytearray(), bytearray()
        whole = environment(self.options, self._boot, self._pids) | dict(env or {})
        self._exit = None
        self._started = False
        self._sinks = {Kind.STDOUT: stdout or out.extend, Kind.STDERR: stderr or err.extend}
        self._input = Input(stdin, self._selector, self._send)
        request = {"argv": list(argv), "env": whole, "cwd": str(self.options.cwd), "pty": terminal}
        self._send(Kind.RUN, json.dumps(request).encode())
        try:
            is_bound = not guest_may_end and terminal is None
            self._wait(lambda: self._exit is not None or (is_bound and self._is_grace_over()), f"{argv[0]} did not end", limit=timeout)
            if self._exit is None:
                self._kill(argv[0])
        finally:
            self._input.close()
        if self._lost and not guest_may_end:
            raise LabError(f"{self._lost} while {argv[0]} ran", self._tails())
        assert self._exit is not None  # noqa: S101
        return subprocess.CompletedProcess(list(argv), self._exit, bytes(out), bytes(err))

    def _is_grace_over(self) -> bool:
        return bool(self._lost) and time.monotonic() - self._lost_at > self.options.grace

    def _kill(self, name: str) -> None:
        self._report(f"{name} has gone on for {self.options.grace:.0f} s without the guest: killed")
        self.interrupt(signal.SIGKILL)
        with suppress(LabError):
            self._wait(lambda: self._exit is not None, f"{name} did not end", limit=self.options.grace)

    def _keep_logs(self) -> None:
        target = self.options.keep_logs
        if not target:
            return
        try:
            target.mkdir(parents=True, exist_ok=True)
            for path in self._directory.iterdir():
                if path.is_file() and path.suffix != ".gz":
                    shutil.copyfile(path, target / path.name)
        except OSError as error:
            self._report(f"{target}: {error.strerror}: the logs are not kept")

    def _keep_console(self, attempt: int) -> None:
        for path in list(self._directory.glob("console*")):
            if "boot" not in path.name:
                path.rename(path.with_name(f"boot{attempt}-{path.name}"))

    # Words with the agent

    def _send(self, kind: Kind, payload: bytes = b"") -> None:
        assert self._machine  # noqa: S101
        # One that hangs would be waited for again and again.
        if self._gone:
            raise self._host_gone()
        try:
            self._machine.ports["agent"].sendall(pack(kind, payload))
        except OSError as error:
            raise self._host_gone() from error

    def _wait(self, done: Callable[[], bool], what: str, limit: float | None = None) -> None:
        """Serves everybody until ``done``; LabError when the host is gone or after ``limit`` seconds."""
        started = before = time.monotonic()
        self._silent = 0.0
        while not done():
            left = 1.0 if limit is None else min(1.0, limit - (before - started))
            if left <= 0:
                raise LabError(f"{what} within {limit:.0f} s", self._tails())
            for key, _ in self._selector.select(left):
                key.data()
            now = time.monotonic()
            # A second or two a turn: while a reader of the output keeps us waiting, we cannot hear the host.
            self._silent += min(now - before, 2.0)
            before = now
            if self._silent > self.options.host_stall:
                self._gone = True
                raise LabError(f"{what}: the host hangs", self._tails())

    def _read_agent(self) -> None:
        assert self._machine  # noqa: S101
        try:
            data = self._machine.ports["agent"].recv(1 << 18)
        except OSError as error:
            raise self._host_gone() from error
        if not data:
            raise self._host_gone()
        self._silent = 0.0
        try:
            for kind, payload in self._unpacker.feed(data):
                self._take(kind, payload)
        except ValueError as error:
            raise LabError(f"what came from the lab's agent is garbled: {error}", self._tails()) from error

    def _take(self, kind: Kind, payload: bytes) -> None:
        if kind in {Kind.STDOUT, Kind.STDERR}:
            if self._started:
                self._sinks[kind](payload)
        elif kind is Kind.GUEST_CONSOLE:
            head, _, data = payload.partition(b"\n")
            with self.guest_console_path(json.loads(head)["guest"]).open("ab") as file:
                file.write(data)
        elif kind is Kind.STDIN_TAKEN and self._input:
            self._input.taken(json.loads(payload))
        elif kind is Kind.STARTED and self._input:
            self._started = True
            self._input.start()
        elif kind is Kind.EXIT and self._started:
            self._exit = json.loads(payload)
        elif kind is Kind.HELLO:
            self._hello = True
        elif kind is Kind.GUEST_UP:
            self._guest_up(json.loads(payload))
        elif kind is Kind.GUEST_LOST:
            self._guest_lost(json.loads(payload))
        elif kind is Kind.DMESG_PART and self._dmesg is not None:
            self._dmesg += payload
            self._dmesg_whole = not payload
        elif kind is Kind.FAILED:
            raise LabError(f"the lab's host cannot be used: {json.loads(payload)['reason']}", self._tails())

    def _guest_up(self, message: dict[str, Any]) -> None:
        self._pids[message["guest"]] = message["pid"]
        self._report(f"guest {guest_name(message['guest'])} up, its workload runs")

    def _guest_lost(self, message: dict[str, Any]) -> None:
        text = f"guest {guest_name(message['guest'])} was lost: {message['reason']}"
        if message["ended"]:
            self._report(f"guest {guest_name(message['guest'])} was ended by a signal")
        elif not self._lost:
            self._lost, self._lost_at = text, time.monotonic()
            if len(self._pids) == self.options.guests:
                self._report(text)

    def _host_gone(self) -> HostGone:
        assert self._machine  # noqa: S101
        self._gone = True
        return HostGone("the lab's host is gone", f"{self._machine.messages()}\n{self._tails()}".strip())

    def _tails(self) -> str:
        """The end of the console that matters: a guest's, if it was the guest that failed."""
        assert self._machine  # noqa: S101
        missing = [number for number in range(self.options.guests) if number not in self._pids]
        if self._hello and (missing or self._lost):
            number = missing[0] if missing else 0
            return f"The end of guest {guest_name(number)}'s console:\n{tail(self.guest_console_path(number), 40)}"
        return f"The end of the host's console:\n{tail(self._machine.console, 60)}"
