"""Compute the sha256 of files, and cache it per host so that a large file is read once.

The hash cache is a small SQLite file in the user's cache folder. Its key is path, size, modification time, change time
and inode, so a changed file is never found in it. A file that changed less than `SETTLED_S` seconds ago is not cached,
because a second change within the same clock tick would not be noticed. Without a usable hash cache, hashing only takes
longer.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from featurecache.files.regular_file import open_regular

SETTLED_S = 2.0
BLOCK_BYTES = 1 << 20
MAX_READINGS = 3
"""A file that another process writes is read again at most this often."""


def cache_folder() -> Path:
    """Return the user's cache folder for this project, by the XDG convention. The folder may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "featurecache"


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits.

    Raises:
        OSError: the file cannot be read, is not a regular file, or keeps changing.
    """
    resolved = Path(os.path.realpath(path))
    for _ in range(MAX_READINGS):
        identity = file_identity(resolved)
        cached = _hash_cache.get(identity)
        if cached is not None:
            return cached
        digest = _digest(resolved)
        if file_identity(resolved) == identity:  # otherwise the file changed during the reading
            break
    else:
        raise OSError(errno.EBUSY, "a file that changes while it is read")
    if time.time_ns() - max(identity[2], identity[3]) > SETTLED_S * 1e9:
        _hash_cache.put(identity, digest)
    return digest


Identity = tuple[str, int, int, int, int]


def file_identity(path: Path) -> Identity:
    """Return path, size, modification time, change time and inode, which together change whenever the bytes do."""
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size  # reading up to this size ends even if the file keeps growing
        while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


class _HashCache:
    """SQLite table with one row per path. A failure of SQLite is a cache miss, not an error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._place: tuple[int, Path] | None = None
        self._inherited: list[sqlite3.Connection | None] = []
        """Connections of the parent process before a fork. SQLite forbids a child to use or close them."""

    def close(self) -> None:
        """Close the connection; the next query opens it again."""
        with self._lock:
            self._disconnect()

    def get(self, identity: Identity) -> str | None:
        path, *version = identity
        rows = self._query("SELECT size, mtime_ns, ctime_ns, inode, sha256 FROM hashes WHERE path = ?", (path,))
        return rows[0][4] if rows and list(rows[0][:4]) == version else None

    def put(self, identity: Identity, digest: str) -> None:
        self._query("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?, ?)", (*identity, digest))

    def _query(self, statement: str, values: tuple[str | int, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connect().execute(statement, values).fetchall()
            except (sqlite3.Error, OSError, OverflowError, UnicodeEncodeError):
                return []

    def _connect(self) -> sqlite3.Connection:
        place = (os.getpid(), cache_folder())
        if self._connection is None or self._place != place:
            self._disconnect()
            place[1].mkdir(parents=True, exist_ok=True)
            self._connection, self._place = _open_database(place[1] / "hashes.sqlite"), place
        return self._connection

    def _disconnect(self) -> None:
        if self._place is not None and self._place[0] != os.getpid():
            self._inherited.append(self._connection)
        elif self._connection is not None:
            self._connection.close()
        self._connection = self._place = None


def _open_database(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # a lost cache costs only time
        connection.execute(
            "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER,"
            " ctime_ns INTEGER, inode INTEGER, sha256 TEXT) WITHOUT ROWID"
        )
    except sqlite3.Error:
        connection.close()
        raise
    return connection


_hash_cache = _HashCache()
atexit.register(_hash_cache.close)
