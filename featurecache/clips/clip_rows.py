"""Rows of a clip list as the file has them: (line, object), or (line, what is wrong with it).

JSONL, CSV with flat columns (`labels.emotion`, `responses.reason`, `responses.think.intent` and `crop.right` name
nested values; an empty cell is no value; numbers are read where the clip list wants them; `tags` are separated by
commas), Parquet. Knows no clip.
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
"""A label of such a name is a number: `labels.sentiment_score`."""

Rows = Iterator[tuple[int, dict[str, Any] | str]]


def csv_rows(path: Path) -> Rows:
    """One row a clip under a header; cells of labels that no text can mean are read as what they spell."""
    for line, row in read_csv(path):
        if isinstance(row, str):
            yield line, row
        else:
            yield line, nest({key: cell for key, cell in row.items() if cell != ""}, from_text=True)


def parquet_rows(path: Path) -> Rows:
    """One row a clip; needs pyarrow.

    Raises:
        ClipListError: no pyarrow, or no Parquet file.
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
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ClipListError(str(path), expected="every column once", got=f'"{twice[:80]}" more than once')
    for number, row in enumerate(rows, start=1):
        kept = {key: value for key, value in row.items() if value is not None}
        if isinstance(kept.get("crop"), dict):  # a struct has every edge in every row
            kept["crop"] = {edge: value for edge, value in kept["crop"].items() if value is not None}
        yield number, nest(kept, from_text=False)


def nest(row: dict[str, Any], *, from_text: bool) -> dict[str, Any] | str:
    """Gather `labels.emotion`, `responses.think.intent`, `crop.right` under their keys; read numbers where `from_text`.

    Returns what is wrong where a value stands twice: in `labels` and in a column of its own.
    """
    nested: dict[str, Any] = {}
    for key, value in row.items():
        outer, dot, inner = key.partition(".")
        if dot and outer in NESTED_KEYS:
            if outer in row:
                return f'expected either a column "{outer}" or columns "{outer}.…", got both'
            inside = nested.setdefault(outer, {})
            if outer == "responses" and "." in inner:
                inner, _, label = inner.partition(".")
                inside = inside.setdefault(inner, {})
                if not isinstance(inside, dict):
                    return f'expected either a column "responses.{inner}" or columns "responses.{inner}.…", got both'
                inside[label] = value
            elif inner in inside:
                return f'expected either a column "{key}" or columns "{key}.…", got both'
            else:
                inside[inner] = _cell(outer, inner, value) if from_text else value
        elif from_text and key in NUMBER_KEYS:
            nested[key] = _number(value)
        elif from_text and key == "tags":
            nested[key] = [tag.strip() for tag in value.split(",") if tag.strip()]
        else:
            nested[key] = value
    return nested


def _cell(outer: str, inner: str, cell: Any) -> Any:
    """What a cell of text holds: labels of JSON's other types are spelt as JSON and Python spell them."""
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
