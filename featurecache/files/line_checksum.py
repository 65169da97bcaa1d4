"""A checksum in a line of JSON: the key `crc32c`, last, CRC-32C of the canonical JSON of all other keys, in hex."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import google_crc32c

from featurecache.spec import canonical_json

CHECKSUM = "crc32c"


def line_checksum(row: Mapping[str, Any]) -> str:
    """Return the checksum of the keys of a line; ValueError where a number is not finite."""
    return f"{google_crc32c.value(canonical_json(dict(row)).encode()):08x}"
