"""What both command lines share: click classes that report errors, exit codes, and the printing of lines and sizes.

Exit codes: 0 finished; 1 finished with failures that are listed, or stopped and resumable; 2 wrong use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import click

from featurecache.errors import FeatureCacheError, suggest
from featurecache.extras import import_failure, require_all
from featurecache.files.publish import refused_write, require_writable
from featurecache.interrupt import Interrupted, ending_on_signals, terminal_is_gone
from featurecache.outside_text import printable
from featurecache.terminal import Screen

HELP = ["-h", "--help"]


class _ErrorReportingCommand(click.Command):
    """A command that reports expected errors as one message and an exit code.

    Expected errors are the project's exceptions, missing or broken packages, and refusals of the disk. A subclass that
    needs an extra names it in `extra`: without the extra, only its help works.
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
        except Interrupted as interrupted:
            say(interrupted, err=True)
            ctx.exit(1)
        except KeyboardInterrupt as stop:
            say(
                f"stopped by {str(stop) or 'SIGINT'}. What was finished is kept; run the same command again.",
                err=True,
            )
            ctx.exit(1)
        except click.ClickException as error:
            _make_printable(error)
            raise
        except Exception as error:  # a library may raise any exception while it is imported
            command = str(ctx.info_name)
            reported = import_failure(error, self.suggested_extra(ctx), command) or refused_write(error, command)
            if reported is None:
                raise
            _end(ctx, reported)

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **settings)
        except FeatureCacheError as error:
            say(f"error: {error}", err=True)
            raise click.exceptions.Exit(error.exit_code) from error
        except click.ClickException as error:
            _make_printable(error)
            raise


class OutputPath(click.Path):
    """Path of an output. A path that cannot be written is refused while the command line is parsed, before any work.

    Of kind "name" is a path to which endings are added, or which may become a file or a folder: only its parent folder
    is checked.
    """

    def __init__(self, kind: Literal["file", "folder", "name"]) -> None:
        super().__init__(path_type=Path)
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = cast(Path, super().convert(value, param, ctx))  # by `path_type`
        require_writable(path.parent if self._kind == "name" else path, folder=self._kind != "file")
        return path


class TrainerTool(_ErrorReportingCommand):
    """A command that needs the packages of the trainer."""

    extra = "train"


class CommandGroup(_ErrorReportingCommand, click.Group):
    """A group of commands that suggests the nearest name for an unknown one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            suggestions_of_click = getattr(error, "possibilities", None)  # newer releases of click have them
            if args and not suggestions_of_click:
                vars(error)["message"] = error.message + suggest(args[0], self.list_commands(ctx))
            raise


def _make_printable(error: click.ClickException) -> None:
    vars(error)["message"] = printable(error.message)  # `message` is declared final, and click reads it when it prints


def _end(ctx: click.Context, error: FeatureCacheError) -> None:
    say(f"error: {error}", err=True)
    ctx.exit(error.exit_code)


def say(text: object = "", *, err: bool = False) -> None:
    """Print a line to standard output, or to standard error; its control codes are escaped.

    A closed terminal is not an error: the command goes on to save its work.
    """
    try:
        click.echo(printable(text), err=err)
    except OSError as error:
        if not terminal_is_gone(error):
            raise


def tables() -> Screen:
    """Return a console for tables. Output that is not a terminal is 160 columns wide, so that tables do not wrap."""
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
