"""Read the tables of emotion wheels: xlsx by openpyxl, csv. What is missing is named, with what was found instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from featurecache.errors import suggest
from featurecache.files.csv_rows import read_csv
from featurecache.files.spreadsheet import first_sheet
from fusion_train.errors import DataError
from fusion_train.metrics.labels import parse_list

NUM_RUNS = 8
LEVELS = ("level1", "level2", "level3")

Tree = dict[str, dict[str, list[str]]]
"""Level 1 -> level 2 -> words of level 3, in the order of the table."""


def refuse_missing_files(folder: Path, names: Sequence[str]) -> None:
    """Raise DataError where some are not there."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            str(folder),
            expected="a folder with " + ", ".join(names),
            got="no such folder" if not folder.is_dir() else "no " + ", ".join(missing),
            next_step="Name the folder of the emotion wheels with --wheels, or leave it out for the small wheel.",
        )


def read_wheel(path: Path) -> Tree:
    """One wheel; blank cells carry the value above down."""
    tree: Tree = {}
    current = dict.fromkeys(LEVELS, "")
    for row in _rows(path, LEVELS):
        current |= {level: row[level] for level in LEVELS if row[level]}
        if not current["level1"]:
            raise DataError(str(path), expected="a level1 in the first row", got="a blank")
        kinds = tree.setdefault(current["level1"], {})
        if current["level2"]:
            words = kinds.setdefault(current["level2"], [])
            words += [current["level3"]] if current["level3"] else []
    if not tree:
        raise DataError(str(path), expected="rows of level1, level2, level3", got="a header alone")
    return tree


def read_synonyms(path: Path, wheel_words: set[str]) -> dict[str, set[str]]:
    """Name -> the wheel words it stands beside in any run, itself included.

    Raises:
        DataError: a word that stands on no wheel, or a column missing.
    """
    runs = [(f"word_run{number}", f"synonym_run{number}") for number in range(1, NUM_RUNS + 1)]
    synonyms: dict[str, set[str]] = {}
    strange: set[str] = set()
    for row in _rows(path, [column for run in runs for column in run]):
        for word_column, synonym_column in runs:
            word = row[word_column]
            if not word:
                continue
            if word not in wheel_words:
                strange.add(word)
            synonyms.setdefault(word, set()).add(word)
            for synonym in parse_list(row[synonym_column]):
                synonyms.setdefault(synonym, set()).add(word)
    if strange:
        first = sorted(strange)[0]
        raise DataError(
            str(path),
            expected="words of the wheels in word_run1..8",
            got=f"{len(strange)} others",
            next_step=suggest(first, wheel_words).strip() or None,
            problems=sorted(strange),
        )
    return synonyms


def read_formats(path: Path) -> dict[str, set[str]]:
    """Surface -> the names whose row lists it, each name itself included."""
    formats: dict[str, set[str]] = {}
    for line, row in read_csv(path):
        if isinstance(row, str):
            raise DataError(str(path), expected="rows of name, format", got=f"line {line}: {row}")
        _refuse_missing_columns(path, ("name", "format"), list(row))
        name = _word(row["name"])
        if name:
            for surface in [name, *parse_list(_word(row["format"]))]:
                formats.setdefault(surface, set()).add(name)
    if not formats:
        raise DataError(str(path), expected="rows of name, format", got="a header alone")
    return formats


def _rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """The rows of the first sheet under its header, as lower-cased words; "" for a blank cell."""
    rows = first_sheet(path, extra="scores")
    header = [_word(cell) for cell in next(rows, ())]
    _refuse_missing_columns(path, columns, header)
    for row in rows:
        cells = dict(zip(header, map(_word, row), strict=False))
        yield {column: cells.get(column, "") for column in columns}


def _refuse_missing_columns(path: Path, columns: Sequence[str], found: Sequence[str]) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise DataError(
            str(path),
            expected="the columns " + ", ".join(columns),
            got=", ".join(name for name in found if name) or "none",
            next_step="Missing: " + ", ".join(missing) + ".",
        )


def _word(cell: Any) -> str:
    return "" if cell is None else str(cell).strip().lower()
