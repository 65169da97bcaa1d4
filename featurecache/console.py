"""How both command lines end and what they print alike: a message on stderr for what went wrong, exit codes, sizes.

0 done; 1 done with failures that are listed, or stopped and resumable; 2 wrong use.
"""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from featurecache.errors import FeatureCacheError, suggest
from featurecache.interrupt import Interrupted


class CommandGroup(click.Group):
    """A click group that turns the project's exceptions into a message and an exit code, and suggests near commands."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FeatureCacheError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except Interrupted as stopped:
            click.echo(str(stopped), err=True)
            ctx.exit(1)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known_to_click = getattr(error, "possibilities", None)  # newer releases of click suggest by themselves
            if args and not known_to_click:
                error.message += suggest(args[0], self.list_commands(ctx))
            raise


def tables() -> Console:
    """A console for tables, which wraps none of them when it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def size_text(num_bytes: float) -> str:
    """Return `3.2 GB`, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError("unreachable")


def counted(count: int, noun: str) -> str:
    """Return `1 shard` or `2 shards`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
