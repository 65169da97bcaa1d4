"""Rows waiting for their place: formats that lay rows down in slot order keep them here in the order they came."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path

from featurecache.store.publish import TemporaryFile

COPY_BYTES = 1 << 20


class Spool:
    """Pieces of bytes in one temporary file, by key."""

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(folder)
        self._places: dict[Hashable, tuple[int, int]] = {}
        self._end = 0

    def put(self, key: Hashable, data: bytes | memoryview) -> None:
        """Keep one piece."""
        length = memoryview(data).nbytes
        self._file.write_at(data, self._end)
        self._places[key] = (self._end, length)
        self._end += length

    def copy(self, key: Hashable, target: TemporaryFile) -> int:
        """Append one piece to `target`; returns its length."""
        self._file.flush()
        begin, length = self._places[key]
        for offset in range(begin, begin + length, COPY_BYTES):
            target.write(os.pread(self._file.fd, min(COPY_BYTES, begin + length - offset), offset))
        return length

    def read(self, key: Hashable) -> bytes | None:
        """One piece; None where it was not put."""
        self._file.flush()
        begin, length = self._places.get(key, (0, -1))
        return None if length < 0 else os.pread(self._file.fd, length, begin)

    def rename(self, keys: Mapping[Hashable, Hashable]) -> None:
        """Give pieces other keys, and forget those that have none in `keys`."""
        self._places = {keys[key]: place for key, place in self._places.items() if key in keys}

    def close(self) -> None:
        self._file.close()
