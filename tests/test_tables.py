"""Tables on a terminal: nothing is cut, at any width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from featurecache.tables import Table

CLIP = "caer/train/happy/demo_0001_the_very_long_name_of_a_clip"
WIDE = Table(
    ["feature", "tokens", "ok", "failed", "pending", "bytes", "of these failed", "fingerprint"],
    [
        ["whisper", "64 × 1280", 12000, 3, 0, "3.2 GB", 1, "0123456789ab"],
        ["eva-temporal", "64 × 1408", 7, 3, 0, "912 kB", 1, "ba9876543210"],
    ],
    "what the store holds",
)


def text_of(table: Table, width: int) -> str:
    return "\n".join(line for line, _ in table.lines(width))


def test_a_table_that_fits_stands_under_a_rule() -> None:
    table = Table(["label", "clips"], [["happy", 1200], ["sad", None]], "classes", "a note")
    assert text_of(table, 80).split("\n") == [
        "classes",
        "label  clips",
        "─────  ─────",
        "happy  1,200",
        "sad        –",
        "a note",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_headers_and_numbers_stay_whole_in_every_width(width: int) -> None:
    lines = text_of(WIDE, width).split("\n")
    assert max(map(cell_len, lines)) <= width
    words = " ".join(lines).split()
    for word in ("feature", "tokens", "pending", "fingerprint", "eva-temporal", "12,000", "0123456789ab", "1408"):
        assert word in words, word


def test_columns_that_do_not_fit_continue_below_the_first_one() -> None:
    lines = text_of(WIDE, 60).split("\n")
    assert [line.split()[0] for line in lines if line.startswith("feature")] == ["feature", "feature"]
    assert "" in lines


def test_a_long_id_folds_behind_its_separators_and_loses_no_character() -> None:
    table = Table(["clip", "is", "as"], [[CLIP, "near", CLIP + "_2"]])
    lines = text_of(table, 60).split("\n")[2:]
    assert max(map(len, lines)) <= 60
    assert "".join(line[:24].split("  ")[0] for line in lines) == CLIP
    assert lines[0].startswith("caer/train/happy/demo_")


def test_rows_of_several_lines_are_told_apart_by_an_empty_line() -> None:
    table = Table(["clip", "text"], [["a", "word " * 20], ["b", "short"]])
    assert text_of(table, 40).split("\n")[-2:] == ["", "b     short"]


def test_emphasised_rows_and_headers_are_bold() -> None:
    table = Table(["a"], [["1"], ["2"]], emphasised=frozenset({1}))
    assert [line for line, bold in table.lines(80) if bold] == ["a", "2"]


def test_a_column_without_any_text_is_left_out() -> None:
    assert text_of(Table(["clip", "dataset", "n"], [["a", "", 1], ["b", "", 2]]), 80).split("\n")[0] == "clip  n"
    assert text_of(Table(["clip", "dataset"]), 80).split("\n")[0] == "clip  dataset"


def test_wide_characters_count_as_two_columns() -> None:
    lines = text_of(Table(["clip", "n"], [["日本語", 1], ["abc", 2]]), 80).split("\n")
    assert {cell_len(line) for line in lines[1:]} == {len("日本語") * 2 + 3}


@given(
    st.lists(st.lists(st.text(max_size=60), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(min_value=64, max_value=160),
)
def test_no_character_of_any_cell_is_lost(rows: list[list[str]], width: int) -> None:
    from featurecache.outside_text import one_line

    table = Table(["", "", ""], rows)
    lines = [line for line, _ in table.lines(width)]
    assert all(cell_len(line) <= width for line in lines)
    printed, cells = "".join(lines), "".join(one_line(cell) for row in rows for cell in row)
    assert sorted("".join(printed.replace("─", "").split())) == sorted("".join(cells.replace("─", "").split()))
