"""Read the rows of a clip list from CSV and Parquet: pairs of line number and object, or line number and problem.

Columns of CSV are flat: `labels.emotion`, `responses.reason`, `responses.think.intent` and `crop.right` name nested
values. An empty cell is no value, numbers are read for keys that take numbers, true and false for `mute`, and `tags`
are separated by commas. Parquet may nest values or use the same flat columns. This module does not validate values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featurecache.errors import ClipListError
from featurecache.files.table_rows import read_csv

NESTED_KEYS = ("labels", "responses", "crop")
NUMBER_KEYS = ("peak_frame", "start_s", "end_s", "duration_s")
SCORE_SUFFIX = "_score"
"""End of the names of labels that are numbers: `labels.sentiment_score`."""

Rows = Iterator[tuple[int, dict[str, Any] | str]]


def csv_rows(path: Path) -> Rows:
    """Read CSV with a header and one row per clip; numbers, true, false and null in label cells are not text."""
    for line, row in read_csv(path):
        if isinstance(row, str):
            yield line, row
        else:
            yield line, nest({key: cell for key, cell in row.items() if cell != ""}, from_text=True)


def parquet_rows(path: Path) -> Rows:
    """Read Parquet with one row per clip; needs pyarrow.

    Raises:
        ClipListError: pyarrow is not installed, or the file is not Parquet.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ClipListError(
            str(path), expected="pyarrow to read Parquet", got="none", next_step="pip install 'featurecache[parquet]'."
        ) from error
    try:
        table = parquet.read_table(path)
        names, rows = table.column_names, table.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ClipListError(str(path), expected="a Parquet file", got=str(error)) from error
    if len(set(names)) != len(names):
        repeated = next(name for index, name in enumerate(names) if name in names[:index])
        raise ClipListError(str(path), expected="every column once", got=f'"{repeated[:80]}" more than once')
    for number, row in enumerate(rows, start=1):
        values = {key: value for key, value in row.items() if value is not None}
        if isinstance(values.get("crop"), dict):  # a Parquet struct has every edge in every row
            values["crop"] = {edge: value for edge, value in values["crop"].items() if value is not None}
        yield number, nest(values, from_text=False)


def nest(row: dict[str, Any], *, from_text: bool) -> dict[str, Any] | str:
    """Collect `labels.emotion`, `responses.think.intent`, `crop.right` under their keys.

    Args:
        from_text: cells are text, from which numbers and tags are read.

    Returns:
        The nested row, or a problem if a value has two columns: in `labels` and in a column of its own.
    """
    nested: dict[str, Any] = {}
    for key, value in row.items():
        outer, dot, inner = key.partition(".")
        if dot and outer in NESTED_KEYS:
            if outer in row:
                return f'expected either a column "{outer}" or columns "{outer}.…", got both'
            values = nested.setdefault(outer, {})
            if outer == "responses" and "." in inner:
                inner, _, label = inner.partition(".")
                texts = values.setdefault(inner, {})
                if not isinstance(texts, dict):
                    return f'expected either a column "responses.{inner}" or columns "responses.{inner}.…", got both'
                texts[label] = value
            elif inner in values:
                return f'expected either a column "{key}" or columns "{key}.…", got both'
            else:
                values[inner] = _cell_value(outer, inner, value) if from_text else value
        elif from_text and key in NUMBER_KEYS:
            nested[key] = _number(value)
        elif from_text and key == "tags":
            nested[key] = [tag.strip() for tag in value.split(",") if tag.strip()]
        elif from_text and key == "mute":
            nested[key] = {"true": True, "false": False}.get(value.strip().lower(), value)
        else:
            nested[key] = value
    return nested


def _cell_value(outer: str, inner: str, cell: Any) -> Any:
    """Return the value of a text cell; NaN, null, true, false and numbers of labels are spelt as in JSON and Python."""
    if not isinstance(cell, str):
        return cell
    if outer == "crop" or (outer == "labels" and inner.endswith(SCORE_SUFFIX)):
        return _number(cell)
    if outer != "labels":
        return cell
    lower = cell.strip().lower()
    if lower in ("nan", "null", "<na>"):
        return math.nan
    return lower == "true" if lower in ("true", "false") else _number(cell)


def _number(cell: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(cell)
        except ValueError:
            continue
    return cell
