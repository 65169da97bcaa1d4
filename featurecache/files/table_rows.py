"""Read the rows of CSV files.

A CSV file has a header and is UTF-8, with or without a byte order mark. Three faults are reported with their line: a
column name that occurs twice, a row with more or fewer cells than the header (often an unquoted comma in a text), and
bytes that are not UTF-8. No row is skipped and no cell is filled in. Tables of datasets can have any encoding;
`importers.tables` reads those.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from featurecache.files.jsonl import WIDE_MARKS

MAX_CELL_CHARACTERS = 1 << 24
"""Python's default is 128 KiB; texts that language models wrote can be longer."""
SHOWN_NAMES = 3

csv.field_size_limit(MAX_CELL_CHARACTERS)


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield (line number, cells by column name) per row, or (line number, description of the fault).

    Reading ends at a faulty header and at text that is not UTF-8.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(2).startswith(WIDE_MARKS):
            yield 1, "expected UTF-8, got UTF-16; save the file as UTF-8"
            return
    with path.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        try:
            header = next(reader, [])
            repeated = [name for name, count in Counter(header).items() if count > 1]
            if repeated:
                yield reader.line_num, f"expected every column once, got {_names(repeated)} more than once"
                return
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield reader.line_num, _wrong_count(header, cells)
                    continue
                yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            yield reader.line_num, f"not CSV ({error})"
        except UnicodeDecodeError as error:
            yield _line_of(path), f"expected UTF-8, got byte 0x{error.object[error.start]:02x}; save the file as UTF-8"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(f'"{name[:80]}"' for name in names[:SHOWN_NAMES]) + more


def _wrong_count(header: list[str], cells: list[str]) -> str:
    quotes = "; a text with a comma in it needs quotes" if len(cells) > len(header) else ""
    return f"expected {len(header)} cells, got {len(cells)}{quotes}"


def _line_of(path: Path) -> int:
    """Return the number of the first line that is not UTF-8. The CSV reader decodes ahead, so its count is too high."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1
