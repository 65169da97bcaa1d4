"""JSON lines: the one reader and the one writer of the project.

A line ends at a line feed and nowhere else: U+2028 and U+0085 are characters of a text. A byte order mark at the
beginning and carriage returns are passed over, empty lines too. A key that stands twice in one object is an error;
NaN is read as the float (older files and other writers have it) and never written. A process that was killed leaves at
most its last line torn: one without a line feed. A line may carry a checksum:
see `line_checksum`.
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
    """Yield (line number, object, or what is wrong with the line); lines are read as they are asked for.

    Args:
        torn: whether what follows the last line feed was not written whole, and does not count.
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
        error: a file that cannot be read, or lines that hold no object; every one is named.
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
        raise error(str(path), expected="one JSON object a line", got=f"{len(problems)} other lines", problems=problems)
    return rows


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the object of one line.

    Raises:
        ValueError: it holds none, with the reason.
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
    """Return objects as the lines of a file."""
    return "".join(json_text(row) + "\n" for row in rows).encode("utf-8")


def _no_repeated_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f'the key "{twice[:80]}" stands twice in one object')
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_no_repeated_key)
