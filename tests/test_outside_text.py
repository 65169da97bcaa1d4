"""Text from outside is shown as it is: it colours nothing, hides nothing, opens nothing and ends nothing."""

from __future__ import annotations

import ast
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from featurecache.console import CommandGroup, note, say
from featurecache.errors import ClipListError
from featurecache.outside_text import (
    figure_text,
    html_text,
    json_text,
    markdown_text,
    one_line,
    printable,
    script_json,
    shown,
)
from featurecache.terminal import Screen, show_progress

ROOT = Path(__file__).parents[1]
HOSTILE = [
    "[laughs] so",
    "a [/] b",
    "[/red]",
    "[link=x]y[/link]",
    ":smile: it",
    "\x1b[31mred",
    "\x9b2J",
    "a\u202eb",
    "\udce9",
]
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_table_shows_every_character(text, terminal):
    file = io.StringIO()
    table = Table("clip", text, title=text)
    table.add_row("a", text)
    Screen(file=file, width=100, force_terminal=terminal, color_system=None).print(table)
    assert file.getvalue().count(printable(text)) == 3
    assert not ACTS.search(re.sub("\x1b\\[[0-9]*m", "", file.getvalue()) if terminal else file.getvalue())


@pytest.mark.parametrize("text", HOSTILE)
def test_lines_messages_and_progress_show_every_character(text, capsys):
    say(text)
    note(f"note: {text}")
    with show_progress(text) as progress:
        progress(1, 1, text)
    found = capsys.readouterr()
    for stream in (found.out, found.err):
        assert printable(text) in stream
        assert not ACTS.search(stream)


def test_an_error_is_one_line_whatever_it_is_about():
    error = ClipListError("a\nb\x1b[2J", expected="x\u2028y", got="\udce9", next_step="z\r", problems=["p\nq"])
    assert str(error) == "a b\\x1b[2J: expected x y, got \\udce9. z \n  p q"
    assert str(error).encode()


def test_messages_of_the_command_line_itself_are_printable():
    group = CommandGroup("tool")

    @group.command()
    @click.option("--number", type=int)
    def go(number):
        raise ClipListError("\x1b[31m", got="x")

    for arguments in (["go", "--number", "\x1b[31m"], ["go", "--\x1b[31m"], ["\x1b[31m"], ["go"]):
        result = CliRunner().invoke(group, arguments, color=True)
        assert result.exit_code == 2
        assert "\x1b" not in result.output
        assert "x1b[31m" in result.output


@pytest.mark.parametrize("text", ["<!--<script>", "</script>", "<!--", "]]>", "&lt;", "a\u2028b", "\udce9", "'\"<b>"])
def test_json_in_a_page_stays_in_its_script(text):
    page = f"<script>const x = {script_json({text: [text]})}</script><p>after</p>"
    assert json.loads(page.partition("= ")[2].partition("</script>")[0]) == {text: [text]}
    inner = page.removeprefix("<script>").partition("</script>")[0]
    assert not re.search("[<>&\u2028]", inner)
    seen: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: seen.append(tag)  # type: ignore[method-assign]
    parser.feed(page + html_text(text))
    assert seen == ["script", "p"]
    assert html_text(text).encode()


@given(st.text(st.characters()))
def test_any_text_can_be_shown_everywhere(text):
    for made in (printable(text), one_line(text), html_text(text), markdown_text(text), figure_text(text), shown(text)):
        assert not ACTS.search(made)
        made.encode()
    assert "\n" not in one_line(text) + markdown_text(text)
    assert json.loads(json_text([text])) == [text]


def test_markdown_shows_its_marks():
    assert markdown_text("a|b <i> [x](y)\n# z") == r"a\|b \<i\> \[x\]\(y\) \# z"


def test_a_drawing_takes_dollars_for_dollars():
    from matplotlib.figure import Figure

    for text in ("$5 or $6", "$", r"\alpha $x$ {", "a_b^c$$"):
        figure = Figure()
        figure.suptitle(figure_text(text))
        figure.savefig(io.BytesIO())


def test_nothing_prints_in_another_way():
    """Every line goes through `say`, every table through `Screen`; pages through `outside_text`."""
    ours = {
        "featurecache/console.py",
        "featurecache/terminal.py",
        "featurecache/outside_text.py",
    }
    paths = [
        *(ROOT / "featurecache").rglob("*.py"),
        *(ROOT / "fusion_train").rglob("*.py"),
        *(ROOT / "tools").glob("*.py"),
    ]
    others = []
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            imported = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            source = node.module if isinstance(node, ast.ImportFrom) else ""
            if name not in ours and (
                called in ("click.echo", "click.secho", "Console", "rich.print", "html.escape")
                or (source in ("html", "rich.markup", "rich.console") and {"escape", "Console"} & set(imported))
            ):
                others.append(f"{name}:{node.lineno}: {called or source}")
    assert others == []
