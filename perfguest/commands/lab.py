# SPDX-License-Identifier: Apache-2.0
"""``perfguest lab``: a KVM host with a guest in it, anywhere."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from perfguest.capture.lab.boot import shell
from perfguest.capture.lab.control import ask
from perfguest.capture.lab.options import LabOptions
from perfguest.capture.lab.session import Lab
from perfguest.errors import LabError, PerfguestError

_TROUBLE = re.compile(
    r"\bBUG\b|WARNING:|\bOops\b|soft lockup|hard LOCKUP|general protection fault|self-detected stall|detected stalls|blocked for more than|Kernel panic"
)
_PATH = click.Path(path_type=Path)


class Progress:
    """Lines on stderr, each with the seconds since the start."""

    def __init__(self, quiet: bool) -> None:
        self._started = time.monotonic()
        self._quiet = quiet

    def __call__(self, text: str) -> None:
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """A line that is shown in any case."""
        click.echo(f"lab [{time.monotonic() - self._started:6.1f}] {text}", err=True)


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--kernel", type=_PATH, metavar="IMAGE", help="The host's kernel [default: the newest in /boot that fits].")
@click.option("--modules-dir", type=_PATH, metavar="DIR", help="Where the host's modules are, if neither beside IMAGE nor in /lib/modules.")
@click.option("--guest-kernel", type=_PATH, metavar="IMAGE", help="The guest's kernel [default: the host's].")
@click.option("--guest-modules-dir", type=_PATH, metavar="DIR", help="The same for the guest's modules.")
@click.option("--cpus", default=1, show_default=True, help="CPUs of the host. With more the emulator often loses a guest, or the host.")
@click.option("--guests", default=1, show_default=True, help="How many guests run in it, one vCPU each.")
@click.option("--memory", default=4096, show_default=True, metavar="MIB", help="Memory of the host.")
@click.option("--guest-memory", default=512, show_default=True, metavar="MIB", help="Memory of a guest.")
@click.option("--pin-guest", type=int, metavar="CPU", help="Bind the guests to this CPU of the host (NMIs go to CPU 0).")
@click.option("--timeout", type=float, metavar="SECONDS", help="End COMMAND, and fail, after this time.")
@click.option("--boot-timeout", default=900.0, show_default=True, metavar="SECONDS", help="Give up a boot after this time.")
@click.option("--emulator", type=_PATH, metavar="DIR", help="Another QEMU for the host: DIR as dpkg-deb -x makes it of qemu-system-x86 and qemu-system-data.")
@click.option("--dmesg", type=_PATH, metavar="FILE", help="Write the host's kernel log here in the end.")
@click.option("--keep-logs", type=_PATH, metavar="DIR", help="Copy all consoles here in the end.")
@click.option("--share", type=_PATH, multiple=True, metavar="DIR", help="Share DIR read-write too.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def lab(
    *,
    kernel: Path | None,
    modules_dir: Path | None,
    guest_kernel: Path | None,
    guest_modules_dir: Path | None,
    cpus: int,
    guests: int,
    memory: int,
    guest_memory: int,
    pin_guest: int | None,
    timeout: float | None,
    boot_timeout: float,
    emulator: Path | None,
    dmesg: Path | None,
    keep_logs: Path | None,
    share: tuple[Path, ...],
    quiet: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND as root on a KVM host with a running guest, in QEMU's software emulation; without COMMAND, a shell.

    Needs neither /dev/kvm nor root. The host sees this machine's files, read-only but for the current directory; other changes are forgotten.
    """
    options = LabOptions(
        kernel=kernel,
        modules=modules_dir,
        guest_kernel=guest_kernel,
        guest_modules=guest_modules_dir,
        cpus=cpus,
        guests=guests,
        memory=memory,
        guest_memory=guest_memory,
        pin_guest=pin_guest,
        boot_timeout=boot_timeout,
        emulator=emulator,
        keep_logs=keep_logs,
        shares=share,
    )
    progress = Progress(quiet)
    if options.cwd not in options.shared:
        progress.warn(f"{options.cwd} cannot be shared: what COMMAND writes there is forgotten")
    with _signals() as signals, Lab(options, progress) as session:
        try:
            status = _run(session, signals, list(command), timeout, progress)
        except LabError:
            _look_at_log(session, dmesg, progress)
            raise
        _look_at_log(session, dmesg, progress)
    sys.exit(128 - status if status < 0 else status)


class _Signals:
    """SIGINT goes to the command once it runs, the second one ends the lab; SIGTERM and SIGHUP end it. ``sock`` is readable after each."""

    def __init__(self) -> None:
        self.sock, self.wakeup = socket.socketpair()
        self.sock.setblocking(False)
        self.wakeup.setblocking(False)
        self.command_runs = False
        self.interrupts = 0

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler of all of them."""
        if number == signal.SIGWINCH:
            return
        self.interrupts += number == signal.SIGINT
        if number != signal.SIGINT or not self.command_runs or self.interrupts > 1:
            sys.exit(128 + number)


@contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
    before = {number: signal.signal(number, signals.handle) for number in numbers}
    wakeup = signal.set_wakeup_fd(signals.wakeup.fileno(), warn_on_full_buffer=False)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(session: Lab, signals: _Signals, command: list[str], timeout: float | None, progress: Progress) -> int:
    interactive = not command
    on_terminal = interactive and os.isatty(0)

    def woken() -> None:
        numbers = signals.sock.recv(4096)
        if signal.SIGINT in numbers and not on_terminal:
            session.interrupt()
            progress("interrupt sent to COMMAND; once more ends the lab")
        if signal.SIGWINCH in numbers and on_terminal:
            session.resize(*_terminal_size())

    session.watch(signals.sock, woken)
    progress(f"running {' '.join(command) if command else 'a shell'}")
    signals.command_runs = True
    with _raw_terminal(on_terminal):
        done = session.run(
            command or shell(),
            stdin=0,
            stdout=lambda data: _write(1, data),
            stderr=lambda data: _write(2, data),
            terminal=_terminal_size() if on_terminal else None,
            timeout=timeout,
        )
    signals.command_runs = False
    progress(f"done, status {done.returncode}")
    return done.returncode


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        # Nobody reads on: end as SIGPIPE would have it.
        sys.exit(128 + signal.SIGPIPE)


def _terminal_size() -> tuple[int, int]:
    size = shutil.get_terminal_size()
    return size.lines, size.columns


@contextmanager
def _raw_terminal(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _look_at_log(session: Lab, file: Path | None, progress: Progress) -> None:
    log = session.dmesg() if session.alive else session.host_console().decode(errors="replace")
    if file:
        try:
            file.write_text(log)
        except OSError as error:
            raise LabError(f"{file}: {error.strerror}: the host's kernel log is lost") from error
    trouble = [line for line in log.splitlines() if _TROUBLE.search(line)]
    if trouble:
        progress.warn(f"the host's kernel log has {len(trouble)} lines of trouble; see --dmesg. The first: {trouble[0]}")


@click.command("lab-control")
@click.argument("request", type=click.Choice(["inject-nmi"]))
@click.option("--count", default=1, show_default=True, help="How many.")
@click.option("--interval", default=0.01, show_default=True, metavar="SECONDS", help="Time between two.")
def lab_control(request: str, count: int, interval: float) -> None:
    """For programs inside a lab: inject-nmi sends NMIs to the host's CPU 0."""
    ask(request, count, interval)


if __name__ == "__main__":
    try:
        lab.main(standalone_mode=False)
    except PerfguestError as error:
        click.echo(f"perfguest lab: {error}", err=True)
        sys.exit(error.exit_code)
