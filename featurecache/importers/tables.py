"""Read the tables of datasets: CSV, TSV, xlsx, JSON and lines of text.

Every cell is text, so ids keep their leading zeros. A column may have several names, and case does not matter. A table
that lacks a required column is an error that names the expected and the present columns.
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
csv.field_size_limit(1 << 24)  # texts of language models may exceed the default of 128 KiB

Columns = Mapping[str, Sequence[str]]
"""Name of a column in the importer -> its possible names in tables."""


@dataclass(frozen=True)
class Row:
    """One row: cells by the importer's column names; "" for an empty cell and for an absent optional column."""

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
    """Read the named columns of a table, without outer white space except in the `verbatim` columns.

    Raises:
        DatasetError: the file does not exist or is no table, a column is missing, or a row has a different number of
            cells than the header.
    """
    lines = _lines(path, encoding, delimiter)
    header = lines[0][1] if lines else []
    indices = _column_indices(header, columns)
    missing = [name for name in columns if name not in indices]
    if missing:
        missing_columns = ", ".join(" or ".join(columns[name]) for name in missing)
        raise DatasetError(
            str(path), expected=f"a column {missing_columns}", got="columns " + (", ".join(header) or "none")
        )
    indices |= _column_indices(header, optional or {})
    rows, incomplete = [], []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            incomplete.append(f"line {number}: {len(cells)} cells")
        else:
            values = {
                name: cells[index] if name in verbatim else cells[index].strip() for name, index in indices.items()
            }
            rows.append(Row(f"{path.name} line {number}", values))
    if incomplete:
        raise DatasetError(str(path), expected=f"{len(header)} cells in every row", got="others", problems=incomplete)
    return rows


def header_of(path: Path, encoding: str = "utf-8-sig", delimiter: str = "") -> list[str]:
    """Return the column names of a table.

    Raises:
        DatasetError: the file does not exist or is no table.
    """
    return next((cells for _, cells in _lines(path, encoding, delimiter, limit=1)), [])


def has_columns(path: Path, columns: Columns, encoding: str = "utf-8-sig") -> bool:
    """Return whether a table has all these columns."""
    return len(_column_indices(header_of(path, encoding), columns)) == len(columns)


def find_tables(root: Path, layouts: Sequence[Columns], encoding: str = "utf-8-sig") -> list[tuple[Path, Columns]]:
    """Return every table below `root` that has all columns of some layout, with the first such layout.

    Raises:
        DatasetError: no table fits; the message lists the columns of every table.
    """
    paths = sorted(
        path for path in root.rglob("*") if path.suffix.lower() in TABLE_SUFFIXES and path.name[0] not in ".~"
    )
    matches, other_tables = [], []
    for path in paths:
        header = header_of(path, encoding)
        layout = next((columns for columns in layouts if len(_column_indices(header, columns)) == len(columns)), None)
        if layout is None:
            other_tables.append(f"{path.relative_to(root)}: {', '.join(header)}")
        else:
            matches.append((path, layout))
    if not matches:
        expected_columns = " or of ".join(", ".join(names[0] for names in layout.values()) for layout in layouts)
        got = f"{len(paths)} tables of other columns" if paths else "no table"
        raise DatasetError(str(root), expected=f"a table of {expected_columns}", got=got, problems=other_tables)
    return matches


def tables_in(folder: Path) -> list[Path]:
    """Return the tables of a folder, sorted; files that an operating system or office program creates are skipped."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLE_SUFFIXES and path.name[0] not in ".~" and path.is_file()
    )


def read_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[str, str]]:
    """Yield (file name and line number, text) of every line that is not empty.

    Raises:
        DatasetError: the file cannot be read as text.
    """
    for number, line in enumerate(io.StringIO(_text(path, encoding)), start=1):
        if line.strip():
            yield f"{path.name} line {number}", line.strip()


def read_json(path: Path, kind: type, encoding: str = "utf-8-sig") -> Any:
    """Return a JSON document whose outermost value has the type `kind`.

    Raises:
        DatasetError: the file cannot be read, is no JSON, or holds another type.
    """
    try:
        document = json.loads(_text(path, encoding))
    except (ValueError, RecursionError) as error:
        raise DatasetError(str(path), expected="JSON", got=str(error)) from error
    if not isinstance(document, kind):
        names: dict[type, str] = {dict: "an object", list: "a list"}
        raise DatasetError(str(path), expected=names[kind], got=names.get(type(document), type(document).__name__))
    return document


def _column_indices(header: Sequence[str], columns: Columns) -> dict[str, int]:
    """Return the index of each column that the table has; the first of its possible names counts."""
    # Reversed, so that of two equal names in the header the first one counts.
    index_of = {name.strip().lower(): index for index, name in reversed(list(enumerate(header)))}
    indices = {}
    for name, table_names in columns.items():
        index = next((index_of[key] for key in map(str.lower, table_names) if key in index_of), None)
        if index is not None:
            indices[name] = index
    return indices


def _lines(path: Path, encoding: str, delimiter: str, limit: int | None = None) -> list[tuple[int, list[str]]]:
    """Return (line number, cells) of every row that is not empty, the header first, at most `limit` rows."""
    if path.suffix.lower() == ".xlsx":
        rows = _xlsx_rows(path)
    else:
        delimiter = delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
        reader = csv.reader(io.StringIO(_text(path, encoding), newline=""), delimiter=delimiter)
        rows = ((reader.line_num, cells) for cells in reader)
    lines: list[tuple[int, list[str]]] = []
    try:
        for number, cells in rows:
            if any(cell.strip() for cell in cells):
                lines.append((number, cells))
                if limit is not None and len(lines) >= limit:
                    break
    except csv.Error as error:
        raise DatasetError(str(path), expected="a table", got=str(error)) from error
    return lines


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
    """Yield (row number, cells) of the first sheet; all rows get the width of the header."""
    width = 0
    for number, values in enumerate(first_sheet(path, extra="import"), start=1):
        cells = [_cell_text(value) for value in values]
        if not width:
            width = max((count for count, cell in enumerate(cells, start=1) if cell), default=0)
        yield number, (cells + [""] * width)[: max(width, 1)]


def _cell_text(value: object) -> str:
    """Return the text of an xlsx cell; a whole number has no decimal point."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
