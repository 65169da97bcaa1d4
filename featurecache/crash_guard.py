"""A crash inside a native decoder must not cost the run: decode apart what a dead process was decoding.

While a clip is decoded, `in_flight` names it on disk. A clip that a dead process left behind is decoded in a child
process (`decoding_apart`) from then on: the one that kills the child is at fault, the others were there by chance, and
so was every one of them where a person or the system killed the process. What is left behind is forgotten once it is
decided.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from featurecache.decoding_apart import DecodingApart
from featurecache.hashing import cache_folder
from featurecache.in_flight import InFlight, forget, left_behind


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
