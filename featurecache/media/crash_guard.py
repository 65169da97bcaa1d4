"""Survive crashes of native decoders: clips that a dead process was decoding are decoded in a child process.

While a clip is decoded, a file names it on disk: a file of fixed slots, one per decode thread, locked (flock) by its
process. A slot holds the id of the clip that is being decoded, or nothing. Writing a slot is one `pwrite`, which
survives any death of the process. A file that no process locks belongs to a dead process: its slots name clips that may
have killed it, or were there by chance. Such a clip is decoded in a child process (`isolated_decoding`) from then on. A
clip that kills the child is recorded as failed; all others are decoded as usual.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from featurecache.clips.clip_list import MAX_ID_BYTES
from featurecache.files.hashing import cache_folder
from featurecache.files.publish import lock_now, writing
from featurecache.media.isolated_decoding import DecodingApart

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


class CrashGuard:
    """Names the clips that this process decodes, and knows those that dead ones did."""

    def __init__(self, folders: Sequence[Path], threads: int) -> None:
        """Write into the first of `folders`, read all of them; `threads` is how many clips are decoded at once.

        Raises:
            WriteError: the disk is full or refuses.
        """
        self._left = {path: ids for folder in folders for path, ids in left_behind(folder).items()}
        self._suspects = set().union(*self._left.values())
        self._done: set[str] = set()
        """Suspects that were decoded apart, and raised nothing."""
        self._in_flight = InFlight(folders[0], threads)
        self._apart = DecodingApart()

    @contextlib.contextmanager
    def decoding(self, clip_id: str) -> Iterator[DecodingApart | None]:
        """Hold a clip while it is decoded; gives what is to decode it where that had better happen apart."""
        if clip_id in self._suspects:
            yield self._apart
            self._done.add(clip_id)
            return
        with self._in_flight.holding(clip_id):
            yield None

    def forget_apart(self) -> None:
        """Forget dead processes all of whose clips were decoded apart here, and raised nothing."""
        self.forget(self._done.__contains__)

    def forget(self, is_decided: Callable[[str], bool]) -> None:
        """Forget dead processes all of whose clips are decided."""
        forget(path for path, ids in self._left.items() if all(map(is_decided, ids)))

    def close(self) -> None:
        """End the child, and say that this process decodes nothing any more."""
        self._apart.close()
        self._in_flight.close()


def notes_folder(purpose: str) -> Path:
    """Where processes note what they decode that have no store to write into: the user's cache, a folder a purpose."""
    return cache_folder() / "decoding" / hashlib.sha256(os.path.realpath(purpose).encode()).hexdigest()[:16]
