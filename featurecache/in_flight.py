"""Which clips a process is decoding, on disk, so that the next one knows what a dead process was doing.

A file of fixed slots, one a decode thread, locked (flock) by its process: a slot holds the id of the clip that is being
decoded, or nothing. Writing a slot is one `pwrite`, which outlives the process however that dies. A file that nobody
locks is that of a dead process; what its slots name may have killed it, or may have been there by chance. This module
knows no decoder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from featurecache.clips import MAX_ID_BYTES
from featurecache.store.lease import lock_now
from featurecache.store.publish import writing

PREFIX = "decoding-"
SLOT_BYTES = 1 + MAX_ID_BYTES


class InFlight:
    """The file of this process."""

    def __init__(self, folder: Path, slots: int) -> None:
        """Make it.

        Raises:
            WriteError: the disk is full or refuses.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / (PREFIX + secrets.token_hex(8))
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            lock_now(self._fd)
            os.pwrite(self._fd, bytes(slots * SLOT_BYTES), 0)  # no slot waits for space later
        self._free = list(range(slots))

    @contextlib.contextmanager
    def holding(self, clip_id: str) -> Iterator[None]:
        """Name a clip while the block runs; for as many threads at once as there are slots."""
        place = self._free.pop() * SLOT_BYTES
        encoded = clip_id.encode()
        os.pwrite(self._fd, bytes([len(encoded)]) + encoded, place)
        try:
            yield
        finally:
            os.pwrite(self._fd, b"\0", place)
            self._free.append(place // SLOT_BYTES)

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._fd)


def left_behind(folder: Path) -> dict[Path, set[str]]:
    """Clips that dead processes were decoding, by the file that says so."""
    found = {}
    for path in sorted(folder.glob(PREFIX + "*")):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if lock_now(fd):
                    found[path] = _read(os.read(fd, os.fstat(fd).st_size))
            finally:
                os.close(fd)
    return found


def forget(paths: Iterable[Path]) -> None:
    """Remove files of dead processes."""
    for path in paths:
        path.unlink(missing_ok=True)


def _read(data: bytes) -> set[str]:
    slots = (data[at : at + SLOT_BYTES] for at in range(0, len(data), SLOT_BYTES))
    return {slot[1 : 1 + slot[0]].decode("utf-8", "replace") for slot in slots if slot[0]}
