"""Any table of clips: CSV, TSV or xlsx, with a mapping of the clip list's keys to its columns.

    fcache import csv my.csv --option id=name --option "video=videos/{name}.mp4" --option labels.emotion=feeling
        --option "split='train'" --option "labels.multi-label[]=feelings"

A value is a column's name, or a template with {columns}, or text in single quotes, which is itself. A key that ends in
[] is a list. Paths are relative to the table's folder.
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

OWN_OPTIONS = ("delimiter",)
KEYS = ("id", *MEDIA_KINDS, "text", "split", "dataset", "person", "speaker", "dialogue", "tags", *NUMBER_KEYS)
FIELD = re.compile(r"\{([^{}]+)\}")
Cell = Callable[[Mapping[str, str]], str]


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield a clip for every row that has an id.

    Raises:
        DatasetError: a key that no clip has, a column that the table does not have, or a row that is no clip.
    """
    delimiter = request.options.get("delimiter", "").replace("\\t", "\t")
    header = header_of(request.source, request.encoding, delimiter)
    mapping = {key: value for key, value in request.options.items() if key not in OWN_OPTIONS}
    if "id" not in mapping:
        raise DatasetError("--option id", expected="the column of the ids", got="none", next_step=_columns(header))
    columns = {key: _cell(key, value, header) for key, value in mapping.items()}
    problems = []
    names = {name: (name,) for name in header if name.strip()}
    for row in read_table(request.source, {}, names, request.encoding, delimiter):
        values = _values(columns, row.cells)
        if isinstance(values, str):
            problems.append(f"{row.place}: {values}")
            continue
        if not values.get("id"):
            found.leave_out("no id", row.place)
            continue
        problem, clip = parse_row(values, request.source.parent)
        if problem:
            problems.append(f"{row.place}: {problem}")
        elif clip is not None:
            yield clip
    if problems:
        raise DatasetError(str(request.source), expected="rows that are clips", got="others", problems=problems)


def _values(columns: Mapping[str, Cell], cells: Mapping[str, str]) -> dict[str, Any] | str:
    """The values of a row by the keys of a clip, or what is wrong with them."""
    flat: dict[str, Any] = {}
    for key, cell in columns.items():
        value = cell(cells).strip()
        if key.endswith("[]"):
            flat[key.removesuffix("[]")] = list_of(value)
        elif value:
            flat[key] = value
    return nest(flat, from_text=True)


def _cell(key: str, value: str, header: list[str]) -> Cell:
    """Return what reads the value of `key` from a row's cells."""
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
    wanted = FIELD.findall(value) or [value]
    unknown = [name for name in wanted if name not in header]
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
    # A template of an empty cell has no value: "videos/.mp4" is no path.
    return lambda cells: (
        FIELD.sub(lambda match: cells[match[1]], value) if all(cells.get(name) for name in wanted) else ""
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
