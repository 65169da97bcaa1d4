"""Checksum of one line of a JSON Lines file.

Apart from `jsonl`, because the exporter copies `jsonl` into an exported model, which must run without google-crc32c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import google_crc32c

from featurecache.spec import canonical_json

CHECKSUM = "crc32c"
"""Key of the checksum in a line; it is the last key."""


def line_checksum(row: Mapping[str, Any]) -> str:
    """Return the CRC-32C of the canonical JSON of all other keys of a line, as 8 hex digits.

    Raises:
        ValueError: a number is not finite.
    """
    return f"{google_crc32c.value(canonical_json(dict(row)).encode()):08x}"
