"""Importer of any table of clips (CSV, TSV or xlsx); options map the keys of a clip to columns.

    fcache import csv my.csv --option id=name --option "video=videos/{name}.mp4" --option labels.emotion=feeling
        --option "split='train'" --option "labels.multi-label[]=feelings"

A value is the name of a column, a template with {columns}, or constant text in single quotes. A key that ends in [] is
a list. Paths are relative to the folder of the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from featurecache.clips.clip_list import MEDIA_KINDS, Clip, parse_row
from featurecache.clips.clip_rows import NESTED_KEYS, NUMBER_KEYS, SCORE_SUFFIX, nest
from featurecache.errors import DatasetError, suggest
from featurecache.importers import Importer, Request
from featurecache.importers.findings import Findings, list_of
from featurecache.importers.tables import header_of, read_table

TABLE_OPTIONS = ("delimiter",)
KEYS = (
    "id",
    *MEDIA_KINDS,
    "text",
    "split",
    "dataset",
    "person",
    "speaker",
    "dialogue",
    "session",
    "tags",
    "mute",
    *NUMBER_KEYS,
)
FIELD = re.compile(r"\{([^{}]+)\}")
CellReader = Callable[[Mapping[str, str]], str]
"""Cells of a row by column name -> the value of one key."""


def read(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield one clip per row that has an id.

    Raises:
        DatasetError: clips have no such key, the table has no such column, or a row is no valid clip.
    """
    delimiter = request.options.get("delimiter", "").replace("\\t", "\t")
    header = header_of(request.source, request.encoding, delimiter)
    mapping = {key: value for key, value in request.options.items() if key not in TABLE_OPTIONS}
    if "id" not in mapping:
        raise DatasetError("--option id", expected="the column of the ids", got="none", next_step=_columns(header))
    readers = {key: _cell_reader(key, value, header) for key, value in mapping.items()}
    problems = []
    names = {name: (name,) for name in header if name.strip()}
    for row in read_table(request.source, {}, names, request.encoding, delimiter):
        values = _values(readers, row.cells)
        if isinstance(values, str):
            problems.append(f"{row.place}: {values}")
            continue
        if not values.get("id"):
            findings.leave_out("no id", row.place)
            continue
        problem, clip = parse_row(values, request.source.parent)
        if problem:
            problems.append(f"{row.place}: {problem}")
        elif clip is not None:
            yield clip
    if problems:
        raise DatasetError(str(request.source), expected="rows that are clips", got="others", problems=problems)


def _values(readers: Mapping[str, CellReader], cells: Mapping[str, str]) -> dict[str, Any] | str:
    """Return the values of a row by the keys of a clip, or a text that says why they are invalid."""
    flat: dict[str, Any] = {}
    for key, reader in readers.items():
        value = reader(cells).strip()
        if key.endswith("[]"):
            flat[key.removesuffix("[]")] = list_of(value)
        elif value:
            flat[key] = value
    return nest(flat, from_text=True)


def _cell_reader(key: str, value: str, header: list[str]) -> CellReader:
    """Return the function that reads the value of `key` from the cells of a row.

    Raises:
        DatasetError: clips have no such key, or the table has no such column.
    """
    plain = key.removesuffix("[]")
    outer, dot, inner = plain.partition(".")
    if plain not in KEYS and not (dot and inner and outer in NESTED_KEYS):
        known = [
            *KEYS,
            "labels.TASK",
            "labels.TASK" + SCORE_SUFFIX,
            "responses.TASK",
            "responses.TASK.LABEL",
            "crop.EDGE",
        ]
        near = suggest(plain, known).strip() or None
        raise DatasetError(f"--option {key}", expected="a key of clips: " + ", ".join(known), got=plain, next_step=near)
    if len(value) > 1 and value[0] == value[-1] == "'":
        return lambda cells: value[1:-1]
    columns = FIELD.findall(value) or [value]
    unknown = [name for name in columns if name not in header]
    if unknown:
        near = suggest(unknown[0], header).strip()
        raise DatasetError(
            f"--option {key}={value}",
            expected="a column of the table",
            got=unknown[0],
            next_step=f"{near} {_columns(header)} Text that is itself stands in single quotes.".strip(),
        )
    if not FIELD.search(value):
        return lambda cells: cells.get(value, "")
    # A template with an empty cell has no value: "videos/.mp4" is no path.
    return lambda cells: (
        FIELD.sub(lambda match: cells[match[1]], value) if all(cells.get(name) for name in columns) else ""
    )


def _columns(header: list[str]) -> str:
    return "Its columns are " + ", ".join(header) + "."


IMPORTER = Importer(
    name="csv",
    title="any table",
    read=read,
    layout=(
        "a table (csv, tsv, xlsx) with a header; --option KEY=COLUMN for every key of a clip:",
        "  --option id=name --option 'video=videos/{name}.mp4' --option labels.emotion=feeling",
        "  --option \"split='train'\" is the text itself",
        "  'labels.multi-label[]=feelings' is a list; delimiter=; where it is not a comma",
    ),
    licence="as the table's author says.",
    any_option=True,
)
