"""One reader and one writer of JSON lines: a line ends at a line feed, and what is written is read back."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.errors import ClipListError
from featurecache.files.jsonl import dump_lines, parse_object, read_objects, require_objects

ROOT = Path(__file__).parents[1]
ODD = ["a\u2028b", "a\x85b", "a\u2029b", "a\x0bb\x0cc\x1cd", "\udcff.mp4", "\x9b31m", "\x1b[31m", "é", "\r", "a\nb"]


@pytest.mark.parametrize("text", ODD)
def test_any_text_is_one_line_of_utf8_and_is_read_back(tmp_path: Path, text: str) -> None:
    data = dump_lines([{"id": text}, {text: [text]}])
    assert data.count(b"\n") == 2
    assert len(data.decode("utf-8").splitlines()) == 2
    assert not [byte for byte in data.replace(b"\n", b"") if byte < 0x20]
    (tmp_path / "a.jsonl").write_bytes(data)
    assert [row for _, row in read_objects(tmp_path / "a.jsonl")] == [{"id": text}, {text: [text]}]


@given(st.dictionaries(st.text(st.characters(), max_size=5), st.text(st.characters(), max_size=20), max_size=3))
def test_objects_come_back_as_they_went(row: dict[str, str]) -> None:
    (line,) = dump_lines([row]).splitlines()
    assert parse_object(line) == row


def test_a_number_that_json_does_not_have_is_written_as_null_and_read_as_it_stands() -> None:
    line = dump_lines([{"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}}])
    assert json.loads(line, parse_constant=pytest.fail) == {"a": None, "b": [None, 1.5], "c": {"d": None}}
    assert math.isnan(parse_object(b'{"a": NaN}')["a"])


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"b": "\xe2\x80\xa8"}\n[1]\n{"a": 1, "a": 2}\n\xff\n{"c": 3')
    rows = list(read_objects(path))
    assert rows[:2] == [(1, {"a": 1}), (3, {"b": "\u2028"})]
    assert rows[2] == (4, "expected an object, got list")
    assert rows[3][0] == 5
    assert 'the key "a" stands twice' in str(rows[3][1])
    assert rows[4] == (6, "expected UTF-8, got byte 0xff at byte 1")
    assert rows[5][0] == 7
    assert [number for number, _ in read_objects(path, torn=True)] == [1, 3, 4, 5, 6]


def test_what_is_wrong_is_raised_as_the_error_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' + "[" * 100_000 + "\n")
    with pytest.raises(ClipListError) as caught:
        require_objects(path, ClipListError)
    assert caught.value.problems == ["line 2: expected JSON, got brackets nested too deeply"]
    with pytest.raises(ClipListError, match="No such file"):
        require_objects(tmp_path / "none.jsonl", ClipListError)


def test_nothing_else_reads_or_writes_json_lines_or_csv() -> None:
    """`splitlines` breaks texts at U+2028; `DictReader` drops what is beyond the header."""
    offending = []
    for package in ("featurecache", "fusion_train", "tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = ast.unparse(node) if isinstance(node, ast.expr) else ""
                written = text.startswith("json.dumps(") and text.endswith(") + '\\n'") and "indent" not in text
                read = text.startswith(("csv.DictReader", "map(json.loads")) or (
                    isinstance(node, ast.ListComp | ast.GeneratorExp)
                    and "json.loads" in text
                    and text.endswith("splitlines()]")
                )
                if written or read:
                    offending.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert offending == []
