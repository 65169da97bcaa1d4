"""How both command lines end and what they print alike: a message on stderr for what went wrong, exit codes, sizes.

0 done; 1 done with failures that are listed, or stopped and resumable; 2 wrong use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from featurecache.errors import FeatureCacheError, suggest
from featurecache.extras import import_failure, require_all
from featurecache.files.publish import refused_write, require_writable
from featurecache.interrupt import Interrupted, ending_on_signals, terminal_is_gone
from featurecache.outside_text import printable
from featurecache.terminal import Screen

HELP = ["-h", "--help"]


class _EndsInWords(click.Command):
    """A command that turns the project's exceptions, packages that are missing or broken, and what the disk refuses
    into a message and an exit code.

    A subclass that cannot do without an extra names it in `extra`: it does not start without; help is shown.
    """

    extra: str | None = None

    def suggested_extra(self, ctx: click.Context) -> str | None:
        """Return the extra to name where a package is missing that several extras bring; None for the smallest."""
        return self.extra

    def invoke(self, ctx: click.Context) -> Any:
        try:
            if self.extra and not set(HELP) & set(ctx.args):
                require_all(self.extra, subject=str(ctx.info_name))
            with ending_on_signals():
                return super().invoke(ctx)
        except FeatureCacheError as error:
            _end(ctx, error)
        except Interrupted as stopped:
            say(stopped, err=True)
            ctx.exit(1)
        except KeyboardInterrupt as ended:
            say(
                f"stopped by {str(ended) or 'SIGINT'}. What was finished is kept; run the same command again.", err=True
            )
            ctx.exit(1)
        except click.ClickException as error:
            error.message = printable(error.message)
            raise
        except Exception as error:  # whatever a library may raise while it is imported
            explained = import_failure(error, extra=self.suggested_extra(ctx), subject=str(ctx.info_name))
            explained = explained or refused_write(error, str(ctx.info_name))
            if explained is None:
                raise
            _end(ctx, explained)

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **settings)
        except FeatureCacheError as error:
            say(f"error: {error}", err=True)
            raise click.exceptions.Exit(error.exit_code) from error
        except click.ClickException as error:
            error.message = printable(error.message)
            raise


class OutputPath(click.Path):
    """Where a command writes: refused while the command line is read, before any work, where it cannot be written.

    A `name` is one that endings are put to, or either a file or a folder; only what it lies in is looked at.
    """

    def __init__(self, kind: Literal["file", "folder", "name"]) -> None:
        super().__init__(path_type=Path)
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        require_writable(path.parent if self._kind == "name" else path, folder=self._kind != "file")
        return path


class TrainerTool(_EndsInWords):
    """A single command that needs the packages of the trainer."""

    extra = "train"


class CommandGroup(_EndsInWords, click.Group):
    """A group of commands; suggests near ones."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known_to_click = getattr(error, "possibilities", None)  # newer releases of click suggest by themselves
            if args and not known_to_click:
                error.message += suggest(args[0], self.list_commands(ctx))
            raise


def _end(ctx: click.Context, error: FeatureCacheError) -> None:
    say(f"error: {error}", err=True)
    ctx.exit(error.exit_code)


def say(text: object = "", *, err: bool = False) -> None:
    """Print a line to standard output, or error; nothing in it acts on the terminal.

    A terminal that closed is no error: what is at work is to be saved first.
    """
    try:
        click.echo(printable(text), err=err)
    except OSError as error:
        if not terminal_is_gone(error):
            raise


def tables() -> Screen:
    """A console for tables, which wraps none of them when it is not a terminal."""
    console = Screen()
    return console if console.is_terminal else Screen(width=160)


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
