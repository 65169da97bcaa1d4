"""Tables of datasets: CSV, TSV, xlsx and lines of text, read as text and checked by their headers.

Every cell is text, so ids keep their leading zeros. Columns are found by any of the names they go by, whatever their
case; a table without a column that is needed is an error that names what was expected and what was found.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import DatasetError
from featurecache.files.spreadsheet import first_sheet

TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx")
csv.field_size_limit(1 << 24)  # reasons of language models are longer than the default of 128 KiB

Columns = Mapping[str, Sequence[str]]
"""Our name of a column -> the names it goes by in tables."""


@dataclass(frozen=True)
class Row:
    """One row: cells by our names of the columns; "" for an empty cell and for an optional column that is not there."""

    place: str
    """File and line, for messages."""
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def read_table(
    path: Path,
    columns: Columns,
    optional: Columns | None = None,
    encoding: str = "utf-8-sig",
    delimiter: str = "",
    *,
    verbatim: Collection[str] = (),
) -> list[Row]:
    """Read a table; cells of other columns are left out, outer white space too, but in `verbatim` columns (our names).

    Raises:
        DatasetError: no such file, not a table, a column missing, or a row with another number of cells.
    """
    lines = _lines(path, encoding, delimiter)
    header = lines[0][1] if lines else []
    places = _find(header, columns)
    missing = [name for name in columns if name not in places]
    if missing:
        wanted = ", ".join(" or ".join(columns[name]) for name in missing)
        raise DatasetError(str(path), expected=f"a column {wanted}", got="columns " + (", ".join(header) or "none"))
    places |= _find(header, optional or {})
    rows, torn = [], []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            torn.append(f"line {number}: {len(cells)} cells")
        else:
            found = {name: cells[place] if name in verbatim else cells[place].strip() for name, place in places.items()}
            rows.append(Row(f"{path.name} line {number}", found))
    if torn:
        raise DatasetError(str(path), expected=f"{len(header)} cells in every row", got="others", problems=torn)
    return rows


def header_of(path: Path, encoding: str = "utf-8-sig", delimiter: str = "") -> list[str]:
    """Return the column names of a table.

    Raises:
        DatasetError: no such file, or not a table.
    """
    return next((cells for _, cells in _lines(path, encoding, delimiter, limit=1)), [])


def has_columns(path: Path, columns: Columns, encoding: str = "utf-8-sig") -> bool:
    """Return whether a table has all of these columns."""
    return len(_find(header_of(path, encoding), columns)) == len(columns)


def find_tables(root: Path, layouts: Sequence[Columns], encoding: str = "utf-8-sig") -> list[tuple[Path, Columns]]:
    """Return every table below `root` that has the columns of one of the layouts, with the first that fits.

    Raises:
        DatasetError: there is none; the columns of those that there are, are named.
    """
    paths = sorted(
        path for path in root.rglob("*") if path.suffix.lower() in TABLE_SUFFIXES and path.name[0] not in ".~"
    )
    found, others = [], []
    for path in paths:
        header = header_of(path, encoding)
        layout = next((each for each in layouts if len(_find(header, each)) == len(each)), None)
        if layout is None:
            others.append(f"{path.relative_to(root)}: {', '.join(header)}")
        else:
            found.append((path, layout))
    if not found:
        wanted = " or of ".join(", ".join(names[0] for names in layout.values()) for layout in layouts)
        got = f"{len(paths)} tables of other columns" if paths else "no table"
        raise DatasetError(str(root), expected=f"a table of {wanted}", got=got, problems=others)
    return found


def tables_in(folder: Path) -> list[Path]:
    """Return the tables of a folder, by name; what an operating system leaves there (`._x`, `~$x`) is none."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLE_SUFFIXES and path.name[0] not in ".~" and path.is_file()
    )


def read_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[str, str]]:
    """Yield (file and line number, text) of every line that is not empty.

    Raises:
        DatasetError: the file cannot be read as text.
    """
    for number, line in enumerate(io.StringIO(_text(path, encoding)), start=1):
        if line.strip():
            yield f"{path.name} line {number}", line.strip()


def read_json(path: Path, kind: type, encoding: str = "utf-8-sig") -> Any:
    """Return a JSON document whose outermost value is a `kind`.

    Raises:
        DatasetError: the file cannot be read, is no JSON, or holds something else.
    """
    try:
        document = json.loads(_text(path, encoding))
    except (ValueError, RecursionError) as error:
        raise DatasetError(str(path), expected="JSON", got=str(error)) from error
    if not isinstance(document, kind):
        names = {dict: "an object", list: "a list"}
        raise DatasetError(str(path), expected=names[kind], got=names.get(type(document), type(document).__name__))
    return document


def _find(header: Sequence[str], columns: Columns) -> dict[str, int]:
    """Where each column stands; the first of its names that is there counts."""
    spelled = {name.strip().lower(): place for place, name in reversed(list(enumerate(header)))}
    found = {}
    for name, spellings in columns.items():
        place = next((spelled[each.lower()] for each in spellings if each.lower() in spelled), None)
        if place is not None:
            found[name] = place
    return found


def _lines(path: Path, encoding: str, delimiter: str, limit: int | None = None) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every row that is not empty, the header first."""
    if path.suffix.lower() == ".xlsx":
        rows = _xlsx_rows(path)
    else:
        delimiter = delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
        reader = csv.reader(io.StringIO(_text(path, encoding), newline=""), delimiter=delimiter)
        rows = ((reader.line_num, cells) for cells in reader)
    kept = []
    try:
        for number, cells in rows:
            if any(cell.strip() for cell in cells):
                kept.append((number, cells))
                if limit is not None and len(kept) >= limit:
                    break
    except csv.Error as error:
        raise DatasetError(str(path), expected="a table", got=str(error)) from error
    return kept


def _text(path: Path, encoding: str) -> str:
    try:
        return path.read_bytes().decode(encoding)
    except OSError as error:
        raise DatasetError(str(path), expected="a file that can be read", got=error.strerror) from error
    except LookupError as error:
        raise DatasetError(f"--encoding {encoding}", expected="an encoding that Python knows", got="none") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            str(path),
            expected=f"text in {encoding}",
            got=f"byte {error.start} that is none",
            next_step="Name its encoding with --encoding, such as gb18030 or cp1252.",
        ) from error


def _xlsx_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    width = 0
    for number, values in enumerate(first_sheet(path, extra="import"), start=1):
        cells = [_cell_text(value) for value in values]
        if not width:
            width = max((place for place, cell in enumerate(cells, start=1) if cell), default=0)
        yield number, (cells + [""] * width)[: max(width, 1)]


def _cell_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
