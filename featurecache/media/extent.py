"""Where the sound and pictures of a file end, and whether the file was cut short before that.

libav reads what there is and says nothing of what should be there. Some containers state their size (`stated_sizes`),
others are items laid end to end (`item_chains`), whose last one is there whole or not; what follows the last whole item
is no sound, whatever it looks like: tags, padding, leftovers. Containers with an index of their own (mp4) are judged by
that, in `track`. This module decodes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featurecache.files.regular_file import open_regular
from featurecache.media.item_chains import CHAINS, amr_end, chain_end
from featurecache.media.stated_sizes import STATED_SIZES


@dataclass(frozen=True)
class Extent:
    """How much of a file is sound and pictures."""

    end: int
    """Byte after the last one of them that the file holds."""
    lacking: int | None
    """Bytes that the file should have beyond its end; 0 where it is whole, None where nothing tells."""


def extent_of(path: Path, form: str) -> Extent:
    """Look at a file of one of libav's container formats.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        for name in form.split(","):
            if name in STATED_SIZES:
                return _by_stated_size(STATED_SIZES[name], file, size)
            if name == "amr":
                return _by_items(amr_end(file, size), size)
            if name in CHAINS:
                return _by_items(chain_end(CHAINS[name], file, size), size)
    return Extent(size, None)


def _by_stated_size(stated: Callable[[BinaryIO, int], tuple[int, int] | None], file: BinaryIO, size: int) -> Extent:
    found = stated(file, size)
    return Extent(size, None) if found is None else Extent(min(size, found[0]), found[1])


def _by_items(found: tuple[int, int] | None, size: int) -> Extent:
    return Extent(size, None) if found is None else Extent(*found)
