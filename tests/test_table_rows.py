"""The one reader of CSV: every row is read or said, whatever stands before it."""

from __future__ import annotations

from pathlib import Path

from featurecache.files.table_rows import SHOWN_NAMES, read_csv


def test_empty_lines_and_wrong_rows_end_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id,x\na,1\n\nb,"2,\n3"\nc\nd,4,5\ne,6\n')
    assert list(read_csv(path)) == [
        (2, {"id": "a", "x": "1"}),
        (5, {"id": "b", "x": "2,\n3"}),
        (6, "expected 2 cells, got 1"),
        (7, "expected 2 cells, got 3; a text with a comma in it needs quotes"),
        (8, {"id": "e", "x": "6"}),
    ]


def test_a_header_with_many_repeated_columns_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    names = [f"c{number}" for number in range(SHOWN_NAMES + 2)]
    for count, rest in ((SHOWN_NAMES, ""), (SHOWN_NAMES + 2, " and 2 more")):
        path.write_text(",".join(names[:count] * 2) + "\n")
        shown = ", ".join(f'"{name}"' for name in names[:SHOWN_NAMES])
        assert list(read_csv(path)) == [(1, f"expected every column once, got {shown}{rest} more than once")]
