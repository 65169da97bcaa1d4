"""Shards of remote stores kept here: bounded, shared by every process of the machine, sound after any crash.

A shard is fetched by one process while the others wait. It gets its name when it is whole and on the disk; a fetch that
was killed leaves a temporary file that the next one sweeps. The shards used longest ago make room, of all stores alike;
whoever has one open or mapped keeps it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from featurecache.files.publish import TemporaryFile, make_folder, sweep, writing
from featurecache.store.direct import OpenFile

DEFAULT_CACHE_BYTES = 64 << 30
LOCK_ENDING = ".lock"


class ShardCache:
    """A folder of mirrors of stores, and the bound of their shards' bytes together."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def open(self, path: Path, num_bytes: int, fetch: Callable[[TemporaryFile], None]) -> OpenFile:
        """Open a shard of a mirror, fetched now unless it was before.

        Raises:
            WriteError: the disk is full or refuses.
            Whatever `fetch` raises.
        """
        if (file := _opened(path, num_bytes)) is not None:
            return file
        with writing(path):
            make_folder(path.parent)
            with _locked(path.with_name(path.name + LOCK_ENDING)):
                return _opened(path, num_bytes) or self._fetched(path, fetch)

    def _fetched(self, path: Path, fetch: Callable[[TemporaryFile], None]) -> OpenFile:
        temporary = self.folder / "tmp"
        sweep(temporary)
        with TemporaryFile(temporary) as file:
            fetch(file)
            opened = OpenFile(file.path)  # before it has its name: from then on another process may make room
            file.replace(path)
        opened.path = path
        self._make_room(path, opened.size)
        return opened

    def _make_room(self, kept: Path, kept_bytes: int) -> None:
        """Remove the shards used longest ago until the cache is within its bounds."""
        shards = []
        for path in self.folder.glob("*/**/*"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                if is_shard(path) and path != kept:
                    shards.append((path.stat(), path))
        total = sum(stat.st_size for stat, _ in shards) + kept_bytes
        for stat, path in sorted(shards, key=lambda each: each[0].st_mtime):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


def default_cache_folder() -> Path:
    """Where shards of remote stores are kept, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featurecache" / "stores"


def is_shard(path: Path) -> bool:
    """Whether a file of a mirror is a shard, of either format."""
    return path.is_file() and (path.suffix == ".tar" or (path.name == "0" and path.parent.name == "0"))


def _opened(path: Path, num_bytes: int) -> OpenFile | None:
    """A shard that is here, marked as used now."""
    with contextlib.suppress(FileNotFoundError):
        file = OpenFile(path)
        if file.size == num_bytes:
            os.utime(path)
            return file
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
