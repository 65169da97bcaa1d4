"""CSV files with a header: the one reader of the project.

UTF-8, with or without a byte order mark. A column that is named twice, a row with more or fewer cells than the header
(a comma in a text that stands without quotes) and a text that is not UTF-8 are said with their line; nothing is left
out and nothing is filled in. Tables of datasets, which come in any encoding, are read by `importers.tables`.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from featurecache.files.jsonl import WIDE_MARKS

MAX_CELL_CHARACTERS = 1 << 24
"""Reasons of language models are longer than Python's default of 128 KiB."""
SHOWN_NAMES = 3

csv.field_size_limit(MAX_CELL_CHARACTERS)


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield (line number, cells by column, or what is wrong); nothing follows a header or a text that is wrong.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as start:
        if start.read(2).startswith(WIDE_MARKS):
            yield 1, "expected UTF-8, got UTF-16; save the file as UTF-8"
            return
    with path.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        try:
            header = next(reader, [])
            twice = [name for name, count in Counter(header).items() if count > 1]
            if twice:
                yield reader.line_num, f"expected every column once, got {_names(twice)} more than once"
                return
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield reader.line_num, _other_count(header, cells)
                    continue
                yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            yield reader.line_num, f"not CSV ({error})"
        except UnicodeDecodeError as error:
            yield _line_of(path), f"expected UTF-8, got byte 0x{error.object[error.start]:02x}; save the file as UTF-8"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(f'"{name[:80]}"' for name in names[:SHOWN_NAMES]) + more


def _other_count(header: list[str], cells: list[str]) -> str:
    quotes = "; a text with a comma in it needs quotes" if len(cells) > len(header) else ""
    return f"expected {len(header)} cells, got {len(cells)}{quotes}"


def _line_of(path: Path) -> int:
    """The first line that is not UTF-8; the reader's own count is of what it has decoded ahead."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1
