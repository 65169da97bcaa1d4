"""Survive crashes of native decoders: clips that a dead process was decoding are decoded in a child process.

Each process has an in-flight file, which it locks (flock) and which names the clips that are being decoded. The file
has one slot of fixed length per decode thread; a slot holds a clip id or is empty. A slot is written by one `pwrite`,
which survives any death of the process. A file without a lock belongs to a dead process. Its slots name suspects: clips
that may have crashed the process, or were decoded at that moment by chance. From then on a suspect is decoded in a
child process (`isolated_decoding`). A clip that crashes the child is recorded as failed; all other clips are decoded as
usual.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from featurecache.clips.clip_list import MAX_ID_BYTES
from featurecache.files.hashing import cache_folder
from featurecache.files.publish import lock_now, writing
from featurecache.media.isolated_decoding import IsolatedDecoder

PREFIX = "decoding-"
SLOT_BYTES = 1 + MAX_ID_BYTES


class InFlightFile:
    """The in-flight file of this process."""

    def __init__(self, folder: Path, slots: int) -> None:
        """Create and lock the file.

        Raises:
            WriteError: the disk is full or refuses.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / (PREFIX + secrets.token_hex(8))
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            lock_now(self._fd)
            os.pwrite(self._fd, bytes(slots * SLOT_BYTES), 0)  # reserves the space of all slots
        self._free = list(range(slots))

    @contextlib.contextmanager
    def holding(self, clip_id: str) -> Iterator[None]:
        """Name a clip in a free slot while the block runs; there is one slot per thread."""
        slot = self._free.pop()
        encoded = clip_id.encode()
        os.pwrite(self._fd, bytes([len(encoded)]) + encoded, slot * SLOT_BYTES)
        try:
            yield
        finally:
            os.pwrite(self._fd, b"\0", slot * SLOT_BYTES)
            self._free.append(slot)

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._fd)


def clips_of_dead_processes(folder: Path) -> dict[Path, set[str]]:
    """Return the ids of the clips that dead processes were decoding, by in-flight file."""
    clip_ids: dict[Path, set[str]] = {}
    for path in sorted(folder.glob(PREFIX + "*")):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if lock_now(fd):
                    clip_ids[path] = _clip_ids(os.read(fd, os.fstat(fd).st_size))
            finally:
                os.close(fd)
    return clip_ids


def _clip_ids(data: bytes) -> set[str]:
    slots = (data[at : at + SLOT_BYTES] for at in range(0, len(data), SLOT_BYTES))
    return {slot[1 : 1 + slot[0]].decode("utf-8", "replace") for slot in slots if slot[0]}


class CrashGuard:
    """Names the clips that this process decodes, and isolates the suspects of dead processes."""

    def __init__(self, folders: Sequence[Path], threads: int) -> None:
        """Create an in-flight file in the first of `folders`, and read those of dead processes in all of them.

        Args:
            threads: largest number of clips that are decoded at a time.

        Raises:
            WriteError: the disk is full or refuses.
        """
        self._dead = {path: ids for folder in folders for path, ids in clips_of_dead_processes(folder).items()}
        """In-flight file of a dead process -> its suspects."""
        self._suspects: set[str] = set().union(*self._dead.values())
        self._decoded_suspects: set[str] = set()
        """Suspects that the child process decoded, and whose block raised no error."""
        self._in_flight = InFlightFile(folders[0], threads)
        self._isolated_decoder = IsolatedDecoder()

    @contextlib.contextmanager
    def decoding(self, clip_id: str) -> Iterator[IsolatedDecoder | None]:
        """Name a clip while it is decoded in the block; yield the decoder to use for a suspect, None for others."""
        if clip_id in self._suspects:
            yield self._isolated_decoder
            self._decoded_suspects.add(clip_id)
            return
        with self._in_flight.holding(clip_id):
            yield None

    def forget_decoded_suspects(self) -> None:
        """Remove the files of dead processes all of whose suspects were decoded here without an error."""
        self.forget(self._decoded_suspects.__contains__)

    def forget(self, is_decided: Callable[[str], bool]) -> None:
        """Remove the files of dead processes all of whose suspects are decided."""
        for path, clip_ids in self._dead.items():
            if all(map(is_decided, clip_ids)):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """End the child process and remove the in-flight file of this process."""
        self._isolated_decoder.close()
        self._in_flight.close()


def notes_folder(purpose: str) -> Path:
    """Return the folder of in-flight files for a process without a writable store: in the user's cache, per purpose."""
    return cache_folder() / "decoding" / hashlib.sha256(os.path.realpath(purpose).encode()).hexdigest()[:16]
