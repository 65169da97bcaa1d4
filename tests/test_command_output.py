"""The options of every command: --quiet, --json, --log-file; examples in help; results and notes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import featurecache.cli
import fusion_train.cli
from featurecache.console import CommandGroup, command, json_result, note, print_table, report_error, say
from featurecache.errors import ClipListError
from featurecache.tables import Table
from featurecache.terminal import OUTPUT, show_progress

GROUPS = {"fcache": featurecache.cli.main, "fusion-train": fusion_train.cli.main}
COMMANDS = [(group, name) for group, main in GROUPS.items() for name in ["", *main.commands]]


@click.group(cls=CommandGroup)
def main() -> None:
    """A group."""


@main.command()
@click.option("--structured", is_flag=True)
@click.option("--fail", is_flag=True)
def work(structured: bool, fail: bool) -> None:
    note("about to work")
    with show_progress("work") as progress:
        progress(3, 3)
    warnings.warn("a library warns", UserWarning, stacklevel=1)
    if fail:
        raise ClipListError("clips.jsonl", expected="a clip list", got="no such file")
    say("one clip")
    print_table(Table(["clip", "score"], [["a", 0.5]], "scores"))
    report_error("b: unreadable")
    if structured:
        json_result({"clips": 1})
    raise SystemExit(1)


def run(*arguments: str) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        return CliRunner().invoke(main, arguments)


def help_of(group: str, name: str, width: int) -> str:
    context = click.Context(GROUPS[group], info_name=group, terminal_width=width)
    if not name:
        return GROUPS[group].get_help(context)
    child = GROUPS[group].commands[name]
    return child.get_help(click.Context(child, parent=context, info_name=name, terminal_width=width))


def test_results_go_to_standard_output_and_the_rest_to_standard_error() -> None:
    result = run("work")
    assert result.stdout.split("\n") == ["one clip", "", "scores", "clip  score", "────  ─────", "a      0.50", ""]
    assert result.stderr.split("\n")[0] == "about to work"
    assert "work: 3/3 clips" in result.stderr
    assert "b: unreadable" in result.stderr
    assert "library" not in result.output


def test_quiet_leaves_results_and_errors() -> None:
    result = run("work", "--quiet")
    assert result.stdout == run("work").stdout
    assert result.stderr == "b: unreadable\n"
    assert run("--quiet", "work").stderr == "b: unreadable\n"
    assert not OUTPUT.quiet, "the settings of one command end with it"


def test_json_is_one_object_with_what_would_be_printed() -> None:
    result = run("work", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "lines": ["one clip"],
        "tables": [{"caption": "scores", "rows": [{"clip": "a", "score": 0.5}]}],
        "error": "b: unreadable",
        "command": "main work",
        "exit_code": 1,
    }


def test_a_structured_result_takes_the_place_of_lines_and_tables() -> None:
    told = json.loads(run("work", "--structured", "--json").stdout)
    assert told == {"clips": 1, "error": "b: unreadable", "command": "main work", "exit_code": 1}


def test_an_error_is_in_the_json_and_on_standard_error() -> None:
    result = run("work", "--fail", "--json")
    assert json.loads(result.stdout)["error"] == "clips.jsonl: expected a clip list, got no such file."
    assert json.loads(result.stdout)["exit_code"] == result.exit_code == 2
    assert "error: clips.jsonl" in result.stderr


def test_the_log_file_has_all_lines_with_times_and_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    assert run("work", "--quiet", "--log-file", str(log)).exit_code == 1
    run("work", "--fail", "--log-file", str(log))
    lines = log.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d  ", line) for line in lines)
    texts = [line.partition("  ")[2] for line in lines]
    assert texts[0] == f"$ main work --quiet --log-file {log}"
    for line in ("about to work", "one clip", "clip  score", "b: unreadable", "exit code 1", "exit code 2"):
        assert line in texts, line
    assert any(text.startswith("work: 3/3 clips") for text in texts)
    assert any("a library warns" in text for text in texts)
    assert "error: clips.jsonl: expected a clip list, got no such file." in texts
    assert OUTPUT.log is None


def test_a_log_file_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("work", "--log-file", str(tmp_path / "file" / "run.log"))
    assert result.exit_code == 1
    assert "a file where a folder should be" in result.output
    assert "one clip" not in result.output


@pytest.mark.parametrize(("package", "program"), [("featurecache", "fcache"), ("fusion_train", "fusion-train")])
def test_a_package_runs_as_a_module_and_completes_words_in_a_shell(package: str, program: str) -> None:
    command_line = [sys.executable, "-m", package]
    shown = subprocess.run([*command_line, "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(f"Usage: {program} ")
    words = {"COMP_WORDS": f"{program} pl", "COMP_CWORD": "1"}
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    completed = subprocess.run(
        command_line, capture_output=True, text=True, env={**os.environ, **words, variable: "bash_complete"}, check=True
    )
    assert completed.stdout == "plain,plan\n"


@pytest.mark.parametrize(("group", "name"), COMMANDS)
def test_every_command_has_the_options_and_help_that_fits(group: str, name: str) -> None:
    for width in (80, 120):
        text = help_of(group, name, width)
        for option in ("--quiet", "--json", "--log-file"):
            assert option in text
        assert [line for line in text.splitlines() if len(line) > width] == []


def test_long_examples_continue_between_options() -> None:
    @command()
    @click.option("--an-option")
    def long(**_: Any) -> None:
        """Work.

        \b
        work positional --an-option value --another-long-option value --a-third-option value --last
        """

    text = long.get_help(click.Context(long, terminal_width=60))
    lines = [line for line in text.splitlines() if "option value" in line or "last" in line]
    assert lines == [
        "  work positional --an-option value \\",
        "      --another-long-option value --a-third-option value \\",
        "      --last",
    ]
