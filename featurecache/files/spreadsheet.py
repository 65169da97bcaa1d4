"""Read the rows of xlsx workbooks.

Apart from `table_rows`, because the exporter copies `table_rows` into an exported model, which must run without
openpyxl.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

from featurecache.errors import SpreadsheetError
from featurecache.extras import require


def first_sheet(path: Path, *, extra: str) -> Iterator[tuple[object, ...]]:
    """Yield the cell values of each row of a workbook's first sheet: None for a blank cell, a formula's last result.

    Raises:
        MissingExtraError: openpyxl is not installed; `extra` brings it.
        SpreadsheetError: the file cannot be opened, or is not an xlsx workbook.
    """
    require(extra, "openpyxl", subject=str(path))
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except (OSError, KeyError, ValueError, BadZipFile, InvalidFileException) as error:
        raise SpreadsheetError(
            str(path), expected="an xlsx workbook", got=f"{type(error).__name__}: {error}"
        ) from error
    try:
        yield from book.worksheets[0].iter_rows(values_only=True)
    finally:
        book.close()
