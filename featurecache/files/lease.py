"""Who is working on something: a small file, locked by its holder and touched as the work goes on.

A dead holder's lock is gone, so its lease is free at once. Two uses differ in what happens to a holder that lives but
does nothing. The lease of a shard is taken over when its file has not been touched for a while: leases of shards only
spare double work, since a commit never replaces another. The writer of a run, a sweep, an index, an answer file or an
export is never taken over (`sole_writer`), since a second one would mix its bytes with those of the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from featurecache.errors import WriteError
from featurecache.files.publish import UNSUPPORTED, make_folder, writing

LEASE_S = 300.0
RENEW_EVERY_S = 5.0


class Lease:
    """The right to write one thing, held until `release` or the end of the process."""

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
            if lock_now(fd) and _same_file(path, fd):
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
        """Remove the leases of dead processes, and nothing else that lies there."""
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if not path.name.isdigit():
                continue
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                if lock_now(fd):
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


@contextlib.contextmanager
def sole_writer(file: Path, subject: str | Path) -> Iterator[None]:
    """Hold `file` locked inside the block, as the only process that writes `subject`.

    The file, and folders made for it that are still empty, are gone after the block; what a killed process leaves of
    it is not locked and stops nobody.

    Raises:
        WriteError: another process holds it, or the file cannot be made.
    """
    with writing(file):
        made = make_folder(file.parent, sync=False)
        lease = Lease.take(file.parent, file.name, lease_s=math.inf)
    if lease is None:
        raise WriteError(
            str(subject),
            expected="one process to write it",
            got="another one that is at work",
            next_step="Wait for it, or name another place with --out.",
        )
    try:
        yield
    finally:
        lease.release()
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def beside(path: Path) -> Path:
    """Name of the lock file of a file or folder that is published whole, which cannot hold it itself."""
    return path.with_name(f".{path.name}.writer")


def lock_now(fd: int) -> bool:
    """Lock a file; False where another process has it, True where the file system knows no locks."""
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
