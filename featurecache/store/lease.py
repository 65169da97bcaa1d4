"""Who is working on a shard: a small file, locked by its holder and touched as the work goes on.

A dead holder's lock is gone, so its lease is free at once. A stopped or hung one keeps the lock; when it has not
touched the file for a while, the file is put aside and the lease is taken anew. Leases only spare double work: what
makes a takeover harmless is that a commit never replaces another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from featurecache.store.publish import UNSUPPORTED

LEASE_S = 300.0
RENEW_EVERY_S = 5.0


class Lease:
    """The right to write one shard, held until `release` or the end of the process."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._renewed = time.monotonic()

    @classmethod
    def take(cls, folder: Path, name: str, lease_s: float = LEASE_S) -> Lease | None:
        """Take a lease, or None where a living process holds it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        for _ in range(3):  # losing a race means that someone else is at work
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if _lock(fd) and _same_file(path, fd):
                os.utime(fd)
                return cls(path, fd)
            idle_s = time.time() - os.fstat(fd).st_mtime
            same = _same_file(path, fd)
            os.close(fd)
            if same and idle_s < lease_s:
                return None
            if same:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        return None

    @staticmethod
    def sweep(folder: Path) -> None:
        """Remove the leases of dead processes."""
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                if _lock(fd):
                    os.unlink(path)
                os.close(fd)

    def renew(self) -> None:
        """Say that the work goes on."""
        if time.monotonic() - self._renewed > RENEW_EVERY_S:
            os.utime(self._fd)
            self._renewed = time.monotonic()

    def release(self) -> None:
        """Give it back. Safe to call twice, and after a takeover."""
        if self._fd >= 0:
            if _same_file(self._path, self._fd):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    return True


def _same_file(path: Path, fd: int) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)
