"""Rows of a clip list as the file has them: (line, object), or (line, what is wrong with it).

JSONL, CSV with flat columns (`labels.emotion`, `responses.reason` and `crop.right` name nested values; an empty cell is
no value; numbers are read where the clip list wants them; `tags` are separated by commas), Parquet. Knows no clip.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featurecache.errors import ClipListError

NESTED_KEYS = ("labels", "responses", "crop")
NUMBER_KEYS = ("peak_frame", "start_s", "end_s")
SCORE_SUFFIX = "_score"
"""A label of such a name is a number: `labels.sentiment_score`."""

Rows = Iterator[tuple[int, dict[str, Any] | str]]


def jsonl_rows(path: Path) -> Rows:
    """One JSON object a line; empty lines are passed over."""
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                row = _STRICT_JSON.decode(raw.decode("utf-8"))
            except ValueError as error:  # also UnicodeDecodeError
                yield number, f"not JSON in UTF-8 ({error})"
                continue
            yield number, row if isinstance(row, dict) else f"expected an object, got {type(row).__name__}"


def _no_repeated_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return row


_STRICT_JSON = json.JSONDecoder(object_pairs_hook=_no_repeated_key)


def csv_rows(path: Path) -> Rows:
    """One row a clip under a header."""
    with path.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text)
        for row in reader:
            if None in row or None in row.values():
                yield reader.line_num, f"expected {len(reader.fieldnames or ())} cells"
                continue
            yield reader.line_num, nest({key: cell for key, cell in row.items() if cell != ""}, from_text=True)


def parquet_rows(path: Path) -> Rows:
    """One row a clip; needs pyarrow.

    Raises:
        ClipListError: no pyarrow, or no Parquet file.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ClipListError(
            str(path), expected="pyarrow to read Parquet", got="none", next_step="pip install 'featurecache[parquet]'."
        ) from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise ClipListError(str(path), expected="a Parquet file", got=str(error)) from error
    for number, row in enumerate(rows, start=1):
        kept = {key: value for key, value in row.items() if value is not None}
        for key in NESTED_KEYS:
            if isinstance(kept.get(key), dict):
                kept[key] = {name: value for name, value in kept[key].items() if value is not None}
        yield number, nest(kept, from_text=False)


def nest(row: dict[str, Any], *, from_text: bool) -> dict[str, Any]:
    """Gather `labels.emotion`, `responses.reason`, `crop.right` under their keys; read numbers where `from_text`."""
    nested: dict[str, Any] = {}
    for key, value in row.items():
        outer, dot, inner = key.partition(".")
        if dot and outer in NESTED_KEYS:
            is_number = outer == "crop" or (outer == "labels" and inner.endswith(SCORE_SUFFIX))
            nested.setdefault(outer, {})[inner] = _number(value) if from_text and is_number else value
        elif from_text and key in NUMBER_KEYS:
            nested[key] = _number(value)
        elif from_text and key == "tags":
            nested[key] = [tag.strip() for tag in value.split(",") if tag.strip()]
        else:
            nested[key] = value
    return nested


def _number(cell: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(cell)
        except ValueError:
            continue
    return cell
