"""Read and write the lines of a run's `metrics.jsonl`: a step and numbers, with a checksum at the end of each line.

`line_checksum` serves predictions too (`evaluation.append_only`). It is not part of `featurecache.files.jsonl`, because
the exporter copies that module into an exported model, which must run without google-crc32c.

    {"step": 10, "loss": 1.25, "lr": 0.0001, "crc32c": "1f2e3d4c"}     CRC-32C of the canonical JSON of all other keys

A number that is NaN or infinite, such as the gradient norm of a step that the gradient scaler skipped, is written as
null. A line that contradicts its checksum is damaged: it is skipped and its line number is reported. Bytes after the
last line break were cut off by a kill and are ignored. Lines of earlier releases have no checksum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from featurecache.files.jsonl import parse_object
from featurecache.outside_text import json_text
from featurecache.spec import canonical_json

CHECKSUM = "crc32c"
"""Key of the checksum in a line; it is the last key."""


def line_checksum(row: Mapping[str, Any]) -> str:
    """Return the CRC-32C of the canonical JSON of all other keys of a line, as 8 hex digits.

    Raises:
        ValueError: a number is not finite.
    """
    return f"{google_crc32c.value(canonical_json(dict(row)).encode()):08x}"


Row = Mapping[str, float]


@dataclass(frozen=True)
class MetricLines:
    """Content of a `metrics.jsonl`."""

    rows: list[dict[str, float]]
    """Step and finite numbers of each undamaged line."""
    lines: list[str]
    """Text of the undamaged lines."""
    damaged: dict[int, int]
    """Line number of each damaged line, from 1 -> step of the last undamaged line before it."""
    torn: bool
    """Whether the last line is incomplete."""


def metric_line(step: int, values: Mapping[str, float]) -> str:
    """Return one line, without the line break."""
    row = {"step": step, **{name: value if math.isfinite(value) else None for name, value in values.items()}}
    return json_text({**row, CHECKSUM: line_checksum(row)})


def read_metrics(path: Path) -> MetricLines:
    """Read a file; an absent file has no lines."""
    *whole, rest = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    content = MetricLines([], [], {}, bool(rest.strip()))
    for number, line in enumerate(whole, start=1):
        try:
            row = parse_object(line)
            written = row.pop(CHECKSUM, None)
            finite = {name: value for name, value in row.items() if value is not None}
            valid = written in (None, line_checksum(row)) and all(
                type(value) in (int, float) for value in finite.values()
            )
            if not valid or type(row["step"]) is not int:
                raise ValueError("another checksum")
        except (ValueError, KeyError, TypeError):
            content.damaged[number] = int(content.rows[-1]["step"]) if content.rows else 0
            continue
        content.rows.append({name: value for name, value in finite.items() if math.isfinite(value)})
        content.lines.append(line.decode())
    return content
