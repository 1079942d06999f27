# SPDX-License-Identifier: Apache-2.0
"""``perfguest module``: builds, loads, unloads the kernel module and tells of it. ``perfguest record`` does all that by itself."""

from __future__ import annotations

from pathlib import Path

import click

from perfguest.capture import module as loader
from perfguest.capture import module_build, preflight
from perfguest.capture.debugfs import LOST_REASONS, ModuleFiles
from perfguest.capture.host import HostPaths
from perfguest.capture.messages import Messages

_KDIR = click.option("--kdir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="The kernel's headers [default: the running kernel's].")


@click.group()
def module() -> None:
    """Build, load and unload the kernel module."""


@module.command()
@_KDIR
@click.option("--force", is_flag=True, help="Build also if it is there.")
def build(kdir: Path | None, force: bool) -> None:
    """Build the module for a kernel, and print its path."""
    messages = Messages()
    click.echo(module_build.build(module_build.find_headers(kdir), force=force, say=messages.say))


@module.command()
@_KDIR
@click.option("--reload", is_flag=True, help="Unload one that is loaded before.")
def load(kdir: Path | None, reload: bool) -> None:
    """Build the module if need be, and load it."""
    messages, paths = Messages(), HostPaths()
    preflight.check_root()
    built = module_build.build(module_build.find_headers(kdir), say=messages.say)
    if reload:
        loader.unload(paths)
    messages.say("loaded" if loader.load(built, paths) else "is loaded already")


@module.command()
def unload() -> None:
    """Unload the module."""
    preflight.check_root()
    Messages().say("unloaded" if loader.unload(HostPaths()) else "is not loaded")


@module.command()
def status() -> None:
    """Tell what is loaded, and what it has counted."""
    paths = HostPaths()
    loaded = loader.loaded_module(paths)
    if not loaded:
        click.echo("not loaded")
        return
    click.echo(f"loaded: version {loaded.version or '?'}, sources {loaded.source_version or '?'}, {'in use' if loaded.users > 0 else 'not in use'}")
    preflight.check_root()
    preflight.check_debugfs(paths)
    files = ModuleFiles(paths.debugfs)
    for name in ("trigger", "locator", "clock"):
        choices, active = files.choices(name)
        click.echo(f"{name}: {active} (of {', '.join(choices)})")
    stats = files.stats()
    for key, value in stats.values.items():
        if key not in ("trigger", "locator"):
            click.echo(f"{key}: {value}")
    columns = ("taken", "written", *LOST_REASONS)
    click.echo("  ".join(["CPU ", *(f"{column:>10}" for column in columns)]))
    for cpu, counts in sorted(stats.cpus.items()):
        click.echo("  ".join([f"{cpu:>4}", *(f"{counts.get(column, 0):>10}" for column in columns)]))


if __name__ == "__main__":
    module()
