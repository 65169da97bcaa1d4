"""The code blocks of the documentation: where they stand, what they hold, and a check of each shell command."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
LANGUAGES = ("sh", "python", "yaml", "toml", "json", "text")
"""`text` is output or a drawing; everything else is checked."""
UNCHECKED = re.compile(r"<!-- unchecked: (?P<reason>.+) -->")
"""Stands before a block that no test can check, with the reason."""
OTHER_PROGRAMS = ("eval", "git", "cd", "cat", "pre-commit", "hf")
"""Programs of others, in commands that are not run here."""


def pages() -> list[Path]:
    """Every page: those at the root of the repository and all below docs/ and examples/."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


@dataclass(frozen=True)
class Block:
    """One code block of a page."""

    page: str
    line: int
    language: str
    text: str
    unchecked: str = ""
    """Why no test checks it."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """The code blocks of all pages, in these languages; all where none is named."""
    return [block for page in pages() for block in blocks_of(page) if not languages or block.language in languages]


def blocks_of(page: Path) -> Iterator[Block]:
    name, reason = page.relative_to(ROOT).as_posix(), ""
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            language = token.info.strip() if token.type == "fence" else "indented"
            yield Block(name, token.map[0] + 1, language, token.content, reason)
        marker = UNCHECKED.match(token.content) if token.type == "html_block" else None
        reason = marker["reason"] if marker else ""


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, each as its words; comments, redirections and joined lines are resolved."""
    command_lines: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|>")
        lexer.whitespace_split = True
        words = list(lexer)
        while words:
            end = next((i for i, word in enumerate(words) if set(word) <= set("&;|>")), len(words))
            if words[:end]:
                command_lines.append(words[:end])
            words = words[end + (2 if end < len(words) and ">" in words[end] else 1) :]
    return command_lines


class UnknownCommandError(Exception):
    """A command that the project or the programs around it do not have, or one with wrong options."""


def check_command(words: list[str]) -> None:
    """Raise UnknownCommandError unless a command can be parsed by the program that it names."""
    while words and (re.fullmatch(r"[A-Z_]+=.*", words[0]) or words[0] == "srun"):
        words = words[1:]
    launched = launched_words(words)
    if launched is not None:
        words = ["fusion-train", *launched]
    program, arguments = words[0], words[1:]
    if program == "make":
        known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        unknown = [word for word in arguments if "=" not in word and word not in known]
        if unknown:
            raise UnknownCommandError(f"make has no target {unknown}")
    elif program == "pip":
        _check_extras(arguments)
    elif program.endswith("python") and arguments[:2] == ["-m", "pytest"]:
        _check_pytest(arguments[2:])
    elif arguments[:1] == ["tools/mutants.py"]:
        _check_mutants(arguments[1:])
    elif program.endswith("python") and arguments[0].startswith("tools/"):
        parse(f"python {arguments[0]}", arguments[1:])
    elif program in ("fcache", "fusion-train"):
        parse(program, arguments)
    elif program not in OTHER_PROGRAMS:
        raise UnknownCommandError(f"no test knows {program}")


def launched_words(words: list[str]) -> list[str] | None:
    """The words behind `-m fusion_train.cli`, where accelerate or torchrun starts it."""
    if words[0] in ("accelerate", "torchrun") and "fusion_train.cli" in words:
        return words[words.index("fusion_train.cli") + 1 :]
    return None


def program(name: str) -> click.Command:
    """The click command behind `fcache`, `fusion-train` or `python tools/NAME.py`."""
    if name == "fcache":
        from featurecache.cli import main
    elif name == "fusion-train":
        from fusion_train.cli import main
    else:
        if str(ROOT / "tools") not in sys.path:
            sys.path.insert(0, str(ROOT / "tools"))
        main = __import__(Path(name).stem).main
    return main


def parse(name: str, arguments: list[str]) -> tuple[click.Command, click.Context]:
    """Parse arguments by the real command with its real options; nothing is run, and no path has to exist."""
    command = program(name)
    with mock.patch.object(click.Path, "convert", lambda path, value, *_: path.coerce_path_result(value)):
        return _parse(command, name, [re.sub(r"\$\w+", "0", word) for word in arguments])


def _parse(command: click.Command, name: str, arguments: list[str]) -> tuple[click.Command, click.Context]:
    try:
        context = command.make_context(name, list(arguments))
        while isinstance(command, click.Group) and (rest := [*context._protected_args, *context.args]):
            child_name, child, rest = command.resolve_command(context, rest)
            assert child is not None
            command, context = child, child.make_context(child_name, rest, parent=context)
    except click.exceptions.Exit as stopped:  # --help and --version
        if stopped.exit_code:
            raise UnknownCommandError(f"{name} {shlex.join(arguments)}: exit code {stopped.exit_code}") from stopped
        context = click.Context(command)
    except click.ClickException as error:
        raise UnknownCommandError(f"{name} {shlex.join(arguments)}: {error.format_message()}") from error
    return command, context


def settings_of(words: list[str]) -> dict[str, Any] | None:
    """What a training command says of its configuration, as arguments of `load_config`; None for other commands."""
    words = ["fusion-train", *(launched_words(words) or [])] if launched_words(words) is not None else words
    if words[0] != "fusion-train":
        return None
    parameters = parse(words[0], words[1:])[1].params
    if not {"config", "overrides"} <= set(parameters):  # the settings of a search are those of its file
        return None
    return {name: parameters.get(name) for name in ("config", "stage")} | {"overrides": parameters["overrides"]}


def _check_extras(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in arguments:
        named = re.fullmatch(r"(?:featurecache|\.)\[(.+)\]", word)
        unknown = set(named[1].split(",")) - set(project["optional-dependencies"]) if named else set()
        if unknown:
            raise UnknownCommandError(f"pyproject.toml has no extra {sorted(unknown)}")


def _check_pytest(arguments: list[str]) -> None:
    missing = [word for word in arguments if word.startswith("tests") and not (ROOT / word).exists()]
    if missing:
        raise UnknownCommandError(f"there is no {missing}")


def _check_mutants(arguments: list[str]) -> None:
    """Compare options with the text of tools/mutants.py, which needs a package that only its extra brings."""
    text = (ROOT / "tools/mutants.py").read_text(encoding="utf-8")
    unknown = [word for word in arguments if word.startswith("--") and f'click.option("{word}"' not in text]
    if unknown:
        raise UnknownCommandError(f"tools/mutants.py has no {unknown}")
