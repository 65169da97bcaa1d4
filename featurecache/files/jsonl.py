"""Read and write JSON lines files.

Only a line feed ends a line: U+2028 and U+0085 are ordinary characters. A byte order mark at the beginning, carriage
returns and empty lines are ignored. A key that occurs twice in one object is an error. NaN is read as the float (older
files and other programs contain it) and is never written. A killed process leaves at most one torn line: the
last, without a line feed.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from featurecache.errors import FeatureCacheError
from featurecache.outside_text import json_text

WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_objects(path: Path, *, torn: bool = False) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line number, object) per line, or (line number, description of the fault). Lines are read lazily.

    Args:
        torn: ignore an incomplete last line, one without a line feed.
    """
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if number == 1:
                if raw.startswith(WIDE_MARKS):
                    yield number, "expected UTF-8, got UTF-16; save the file as UTF-8"
                    return
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw.strip() or (torn and not raw.endswith(b"\n")):
                continue
            try:
                yield number, parse_object(raw)
            except ValueError as error:
                yield number, str(error)


def require_objects(path: Path, error: type[FeatureCacheError], *, torn: bool = False) -> list[dict[str, Any]]:
    """Return the objects of a file.

    Raises:
        error: the file cannot be read, or some lines hold no object; all such lines are listed.
    """
    rows: list[dict[str, Any]] = []
    problems = []
    try:
        for number, row in read_objects(path, torn=torn):
            if isinstance(row, str):
                problems.append(f"line {number}: {row}")
            else:
                rows.append(row)
    except OSError as failure:
        raise error(str(path), expected="a file that can be read", got=failure.strerror or str(failure)) from failure
    if problems:
        raise error(
            str(path), expected="one JSON object per line", got=f"{len(problems)} other lines", problems=problems
        )
    return rows


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the object of one line.

    Raises:
        ValueError: the line holds no object; the message says why.
    """
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, got byte 0x{line[error.start]:02x} at byte {error.start + 1}") from error
    except RecursionError:
        raise ValueError("expected JSON, got brackets nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def dump_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the bytes of a file that holds one object per line."""
    return "".join(json_text(row) + "\n" for row in rows).encode("utf-8")


def _no_repeated_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f'the key "{key[:80]}" stands twice in one object')
            seen.add(key)
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_no_repeated_key)
