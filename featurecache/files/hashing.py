"""sha256 of files, remembered on this host so that a file of gigabytes is read once.

The memo is a small SQLite file in the user's cache folder, keyed by path, size, modification and change time and inode:
any change of the file misses it. A file changed less than `SETTLED_S` ago is not remembered, since a second change in
the same clock tick would go unnoticed. Without a usable memo everything still works, slower.
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

from featurecache.files.regular_file import open_regular

SETTLED_S = 2.0
BLOCK_BYTES = 1 << 20
MAX_READINGS = 3  # of a file that is being written


def cache_folder() -> Path:
    """Return the user's cache folder for this project (XDG); it may not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "featurecache"


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits.

    Raises:
        OSError: the file cannot be read, is none of bytes on a disk, or does not stop changing.
    """
    resolved = Path(os.path.realpath(path))
    for _ in range(MAX_READINGS):
        before = file_identity(resolved)
        known = _memo.get(before)
        if known is not None:
            return known
        digest = _digest(resolved)
        if file_identity(resolved) == before:  # otherwise it was written while we read: read again
            break
    else:
        raise OSError(errno.EBUSY, "a file that changes while it is read")
    if time.time_ns() - max(before[2], before[3]) > SETTLED_S * 1e9:
        _memo.put(before, digest)
    return digest


Identity = tuple[str, int, int, int, int]


def file_identity(path: Path) -> Identity:
    """Return the path of a file with what changes when its bytes do: size, times and inode."""
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size  # a file that grows faster than it is read would have no end
        while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


class _Memo:
    """One row a path; every failure of SQLite only means that nothing is remembered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._place: tuple[int, Path] | None = None
        self._inherited: list[sqlite3.Connection | None] = []
        """Connections of the process that this one was forked from, which SQLite forbids to use or to close here."""

    def close(self) -> None:
        """Close the connection; the next question opens it again."""
        with self._lock:
            self._let_go()

    def get(self, identity: Identity) -> str | None:
        path, *rest = identity
        rows = self._ask("SELECT size, mtime_ns, ctime_ns, inode, sha256 FROM hashes WHERE path = ?", (path,))
        return rows[0][4] if rows and list(rows[0][:4]) == rest else None

    def put(self, identity: Identity, digest: str) -> None:
        self._ask("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?, ?)", (*identity, digest))

    def _ask(self, statement: str, values: tuple) -> list[tuple]:  # type: ignore[type-arg]
        with self._lock:
            try:
                return self._connect().execute(statement, values).fetchall()
            except (sqlite3.Error, OSError, OverflowError, UnicodeEncodeError):
                return []

    def _connect(self) -> sqlite3.Connection:
        place = (os.getpid(), cache_folder())
        if self._connection is None or self._place != place:
            self._let_go()
            place[1].mkdir(parents=True, exist_ok=True)
            self._connection, self._place = _opened(place[1] / "hashes.sqlite"), place
        return self._connection

    def _let_go(self) -> None:
        if self._place is not None and self._place[0] != os.getpid():
            self._inherited.append(self._connection)
        elif self._connection is not None:
            self._connection.close()
        self._connection = self._place = None


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # losing the memo costs nothing
        connection.execute(
            "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER,"
            " ctime_ns INTEGER, inode INTEGER, sha256 TEXT) WITHOUT ROWID"
        )
    except sqlite3.Error:
        connection.close()
        raise
    return connection


_memo = _Memo()
atexit.register(_memo.close)
