# SPDX-License-Identifier: Apache-2.0
"""``perfguest plugin``: the script for ``perf script``."""

from __future__ import annotations

from pathlib import Path

import click

from perfguest.perf_plugin import install as plugin_install

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="perf's exec path, where it is not the one that 'perf --exec-path' prints.",
)


@click.group()
def plugin() -> None:
    """Print a recording's stacks with 'perf script report perfguest'."""


@plugin.command()
@_directory
def install(directory: Path | None) -> None:
    """Put the script where perf looks for its own."""
    for path in plugin_install.install(directory or plugin_install.exec_path()):
        click.echo(path)
    exec_path = f" --exec-path={directory}" if directory else ""
    click.echo(f"now: perf{exec_path} script report perfguest -i RECORDING/perf.data")


@plugin.command()
@_directory
def uninstall(directory: Path | None) -> None:
    """Take it away again."""
    removed = plugin_install.uninstall(directory or plugin_install.exec_path())
    for path in removed:
        click.echo(f"removed {path}")
    if not removed:
        click.echo("nothing was installed")


@plugin.command()
def path() -> None:
    """Print where the script lies, for 'perf script -s'."""
    click.echo(plugin_install.SCRIPT)
