# SPDX-License-Identifier: Apache-2.0
"""The command line: gathers the commands, and turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys

import click

from perfguest import __version__
from perfguest.errors import PerfguestError
from perfguest.terminal import printable

# Of messages that quote what a compiler or perf says.
_LINES = "\n\t"

#: Command: (the module in perfguest.commands that has it, what it does). Loaded when used, so that each starts quickly and needs only its own libraries.
_COMMANDS = {
    "record": ("record", "record the guests of this host"),
    "convert": ("convert", "write a recording as text, pprof, Chrome trace or folded stacks"),
    "kernel": ("kernel", "show what is in a kernel's image or module"),
    "module": ("module", "build, load, unload the kernel module; show its state"),
    "plugin": ("plugin", "put perfguest into `perf script`"),
    "lab": ("lab", "a KVM host with a guest, in QEMU, anywhere"),
    "lab-control": ("lab", "from inside a lab: send it NMIs"),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        if cmd_name == "convert":
            # Threads for numpy's linear algebra, which nothing here uses, would be half of what it takes to start. Commands that run others leave it to them.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        module = importlib.import_module(f"perfguest.commands.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without loading the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="perfguest")
def cli() -> None:
    """Profiles KVM guests from the host: whole guest call stacks for perf's samples.

    \b
    On the KVM host, as root:
        perfguest record -- sleep 10
    Then, anywhere:
        perfguest convert --flamegraph
    and open guest.html in a browser.
    """


def main() -> None:
    """Runs the command line and ends the process."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.exceptions.Abort:
        click.echo("Aborted.", err=True)
        code = 130
    except PerfguestError as error:
        click.echo(f"perfguest: {printable(error.message, _LINES)}", err=True)
        if error.hint:
            click.echo(printable(error.hint, _LINES), err=True)
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone; what is still to be written has nowhere to go.
        sys.stderr.close()
        code = 141
    sys.exit(code if isinstance(code, int) else 0)
