"""What both command lines share: click classes that report errors, the options of every command, and printing.

Exit codes: 0 finished; 1 finished with failures that are listed, or stopped and resumable; 2 wrong use.

Standard output has results (`say`, `print_table`); standard error has errors (`report_error`), progress and notes
(`note`). Every command has three options. --quiet leaves progress and notes out. --log-file keeps all lines in a file
too. With --json, standard output is one JSON object: what the command passes to `json_result`, or else the lines and
tables that it would print; `command` and `exit_code` always, `error` where there is one.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import click

from featurecache.errors import FeatureCacheError, suggest
from featurecache.extras import import_failure, require_all
from featurecache.files.publish import refused_write, require_writable
from featurecache.interrupt import Interrupted, ending_on_signals, terminal_is_gone
from featurecache.outside_text import json_text, printable
from featurecache.tables import Table
from featurecache.terminal import OUTPUT

HELP = ["-h", "--help"]
PIPE_WIDTH = 160
"""Columns of a table that is not printed on a terminal, unless COLUMNS says another number."""


@dataclass
class _JsonDocument:
    """The JSON object of a command that runs with --json."""

    arguments: Sequence[str] | None = None
    """Of the command line; None while no command runs, as where a command line is only parsed."""
    command: str = ""
    printed: bool = False
    """Whether a line went to standard output."""
    requested: bool = False
    lines: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def text(self, exit_code: int) -> str:
        printed = {} if self.result else {"lines": self.lines, "tables": self.tables}
        error = {} if self.error is None else {"error": self.error}
        return json_text({**printed, **self.result, **error, "command": self.command, "exit_code": exit_code})


_document = _JsonDocument()


@contextmanager
def _command_output(arguments: Sequence[str]) -> Iterator[None]:
    """Run one command: warnings of libraries go to the log file only, and at the end the JSON object is printed."""
    global _document
    previous, _document = _document, _JsonDocument(arguments=arguments)
    shown_by_user = bool(sys.warnoptions)
    exit_code = 0
    try:
        with warnings.catch_warnings():
            if not shown_by_user:
                warnings.showwarning = _log_warning
            yield
    except SystemExit as ending:
        exit_code = ending.code if isinstance(ending.code, int) else int(bool(ending.code))
        raise
    except BaseException:
        exit_code = 1
        OUTPUT.write_log(traceback.format_exc().rstrip())
        raise
    finally:
        if _document.requested:
            click.echo(_document.text(exit_code))
        OUTPUT.close(f"exit code {exit_code}")
        _document = previous


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    OUTPUT.write_log(f"{category.__name__}: {message} ({filename}:{lineno})")


def _set_quiet(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    OUTPUT.quiet = OUTPUT.quiet or (value and _document.arguments is not None)


def _set_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    _document.requested = _document.requested or (value and _document.arguments is not None)
    _document.command = ctx.command_path


def _open_log(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None and _document.arguments is not None:
        OUTPUT.open_log(value)
        OUTPUT.write_log(f"$ {shlex.join([str(ctx.find_root().info_name), *_document.arguments])}")


def _output_options() -> list[click.Option]:
    """Return the options that every command has."""
    return [
        click.Option(
            ["--quiet"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_set_quiet,
            help="No progress, no notes.",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_set_json,
            help="Print one JSON object instead of text.",
        ),
        click.Option(
            ["--log-file"],
            type=OutputPath("file"),
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=_open_log,
            help="Append all lines to this file too, with times.",
        ),
    ]


class Command(click.Command):
    """A command with the options that every command has; examples in its help fold between options."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        own = {name for parameter in self.params for name in parameter.opts}
        self.params += [option for option in _output_options() if not own & set(option.opts)]

    def main(self, *arguments: Any, **settings: Any) -> Any:
        given = arguments[0] if arguments else settings.get("args")
        with _command_output(list(sys.argv[1:] if given is None else given)):
            return super().main(*arguments, **settings)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        text = cleandoc(self.help or "")
        if text:
            formatter.write_paragraph()
            with formatter.indentation():
                width = formatter.width - formatter.current_indent
                formatter.write_text("\n\n".join(_fold_example(part, width) for part in text.split("\n\n")))


def command(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Return a decorator like `click.command`."""
    return click.command(name, cls=Command, **settings)


def _fold_example(paragraph: str, width: int) -> str:
    """Continue the long lines of a paragraph of examples (one that begins with \\b) as a shell does, between words."""
    if not paragraph.startswith("\b\n"):
        return paragraph
    lines = []
    for line in paragraph.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        folded = [indent]
        for words in _together(line.split()):
            if len(f"{folded[-1]} {words} \\") > width and folded != [indent]:
                folded[-1] += " \\"
                folded.append(f"{indent}    {words}")
            else:
                folded[-1] += f" {words}" if folded[-1].strip() else words
        lines += folded
    return "\n".join(lines)


def _together(words: Sequence[str]) -> list[str]:
    """Join every option with its value."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("-") and " " not in joined[-1] and not word.startswith("-"):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


class _ErrorReportingCommand(Command):
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
            report_error(interrupted)
            ctx.exit(1)
        except KeyboardInterrupt as stop:
            report_error(f"stopped by {str(stop) or 'SIGINT'}. What was finished is kept; run the same command again.")
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
            report_error(f"error: {error}")
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

    command_class = Command

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
    _record_error(f"error: {error.format_message()}")


def _end(ctx: click.Context, error: FeatureCacheError) -> None:
    report_error(f"error: {error}")
    ctx.exit(error.exit_code)


def say(text: object = "") -> None:
    """Print a line of the result; control codes are escaped."""
    line = printable(text)
    OUTPUT.write_log(line)
    if _document.requested:
        _document.lines.append(line)
    else:
        _print(line)
        _document.printed = True


def note(text: object = "") -> None:
    """Print a line about the work, such as a notice or what comes next, to standard error; not with --quiet."""
    OUTPUT.write_log(str(text))
    if not OUTPUT.quiet:
        _print(printable(text), err=True)


def report_error(text: object) -> None:
    """Print a line about a failure to standard error."""
    _record_error(str(text))
    _print(printable(text), err=True)


def print_table(table: Table, caption: str = "") -> None:
    """Print a table in the width of the terminal; `caption` replaces its own."""
    shown = replace(table, caption=caption or table.caption)
    if _document.requested:
        _document.tables.append({"caption": shown.caption, "rows": shown.records()})
    elif shown.caption and _document.printed:
        _print("")
    _document.printed = True
    for line, bold in shown.lines(shutil.get_terminal_size((PIPE_WIDTH, 24)).columns):
        OUTPUT.write_log(line)
        if not _document.requested:
            _print(click.style(line, bold=True) if bold else line)


def json_result(result: Mapping[str, Any]) -> None:
    """Set fields of the JSON object of the command; without --json, this has no effect."""
    _document.result.update(result)


def _record_error(text: str) -> None:
    OUTPUT.write_log(text)
    _document.error = "\n".join(filter(None, (_document.error, text.removeprefix("error: "))))


def _print(line: str, *, err: bool = False) -> None:
    """Print a line. A closed terminal is not an error: the command goes on to save its work."""
    try:
        click.echo(line, err=err)
    except OSError as error:
        if not terminal_is_gone(error):
            raise


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
