"""Find where the media of a file end, and whether the file was cut short.

libav reads the bytes that exist and does not report missing ones. Some containers state their size (`stated_sizes`).
Others are sequences of items (`item_sequences`), whose last item is complete or not; bytes after the last complete item
are tags, padding or leftovers, never media. Containers with an index (mp4) are checked against it in `track`.
This module decodes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featurecache.files.regular_file import open_regular
from featurecache.media.item_sequences import ITEM_FORMATS, amr_end, sequence_end
from featurecache.media.stated_sizes import STATED_SIZES, StatedEnd


@dataclass(frozen=True)
class Extent:
    """The extent of the media bytes in a file."""

    end: int
    """Position after the last media byte in the file."""
    missing_bytes: int | None
    """Media bytes that a file cut short lacks after its end; 0 for a whole file, None if the file does not tell."""


def extent_of(path: Path, format_names: str) -> Extent:
    """Return the extent of a file; `format_names` is libav's comma-separated name of its container format.

    Raises:
        OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        for name in format_names.split(","):
            if name in STATED_SIZES:
                return _by_stated_size(STATED_SIZES[name], file, size)
            if name == "amr":
                return _by_items(amr_end(file, size), size)
            if name in ITEM_FORMATS:
                return _by_items(sequence_end(ITEM_FORMATS[name], file, size), size)
    return Extent(size, None)


def _by_stated_size(read_size: Callable[[BinaryIO, int], StatedEnd], file: BinaryIO, size: int) -> Extent:
    stated = read_size(file, size)
    return Extent(size, None) if stated is None else Extent(min(size, stated[0]), stated[1])


def _by_items(last_item: tuple[int, int] | None, size: int) -> Extent:
    return Extent(size, None) if last_item is None else Extent(*last_item)
