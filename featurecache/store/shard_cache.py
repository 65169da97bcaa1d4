"""The cache of shards of remote stores: bounded, shared by all processes of the machine, valid after any crash.

One process fetches a shard while the others wait. A shard gets its name when it is complete and on the disk; a killed
fetch leaves a temporary file, which the next fetch removes. If the cache is full, the least recently used shards of all
stores are removed. A process that has a removed shard open or mapped can still read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from featurecache.files.publish import TemporaryFile, make_folder, sweep, writing
from featurecache.store.formats import is_shard_of_any_format
from featurecache.store.shard_files import OpenFile

DEFAULT_CACHE_BYTES = 64 << 30
LOCK_ENDING = ".lock"


class ShardCache:
    """A folder of mirrored stores, with an upper bound for the total size of their shards."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def open(self, path: Path, num_bytes: int, fetch: Callable[[TemporaryFile], None]) -> OpenFile:
        """Open a mirrored shard; fetch it first if the cache does not have it.

        Raises:
            WriteError: the disk is full or refuses.
            Exception: errors of `fetch`.
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
            opened = OpenFile(file.path)  # before the file has its name: then another process may evict it
            file.replace(path)
        opened.path = path
        self._evict(path, opened.size)
        return opened

    def _evict(self, newest: Path, newest_bytes: int) -> None:
        """Remove the least recently used shards, but not `newest`, until the cache is within its bound."""
        shards = []
        for path in self.folder.glob("*/**/*"):
            with contextlib.suppress(FileNotFoundError):  # another process evicts too
                mirror = self.folder / path.relative_to(self.folder).parts[0]
                if path != newest and is_mirrored_shard(path, mirror):
                    shards.append((path.stat(), path))
        total = sum(stat.st_size for stat, _ in shards) + newest_bytes
        for stat, path in sorted(shards, key=lambda entry: entry[0].st_mtime):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


def default_cache_folder() -> Path:
    """Return the folder for shards of remote stores, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featurecache" / "stores"


def is_mirrored_shard(path: Path, mirror: Path) -> bool:
    """Return whether a path below the mirror of a store is the file of a shard."""
    inside_feature = "/".join(path.relative_to(mirror).parts[1:])
    return is_shard_of_any_format(inside_feature) and path.is_file()


def _opened(path: Path, num_bytes: int) -> OpenFile | None:
    """Open a shard if the cache has it, and mark it as used now; return None otherwise."""
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
