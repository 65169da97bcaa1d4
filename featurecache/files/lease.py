"""Leases: a small lock file gives one process the right to write something.

The holder keeps the file locked and updates its modification time while it works. The system drops the lock of a dead
process, so its lease is free at once. A holder that lives but is idle is treated in one of two ways. The lease of a
shard expires when its file was not updated for a while: such leases only avoid double work, because a commit never
replaces another commit. The lease of a run, a sweep, an index, an answer file or an export never expires
(`sole_writer`): a second writer would mix its bytes with those of the first.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from featurecache.errors import WriteError
from featurecache.files.publish import lock_now, make_folder, writing

LEASE_S = 300.0
RENEW_EVERY_S = 5.0


class Lease:
    """The right of this process to write something, until `release` or the end of the process."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._renewed = time.monotonic()

    @classmethod
    def take(cls, folder: Path, name: str, lease_s: float = LEASE_S) -> Lease | None:
        """Acquire a lease; return None if a living process holds it.

        A lease whose file was not updated for `lease_s` seconds counts as expired.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        for _ in range(3):  # each failed attempt means that another process replaced the file meanwhile
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
    def sweep(folder: Path, *, dry_run: bool = False) -> list[Path]:
        """Remove the lease files of dead processes and return them; with `dry_run` only return them.

        Lease files have numbers as names; other files stay.
        """
        removed: list[Path] = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if not path.name.isdigit():
                continue
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if lock_now(fd):
                        removed.append(path)
                        if not dry_run:
                            os.unlink(path)
                finally:
                    os.close(fd)
        return removed

    def renew(self) -> None:
        """Update the modification time of the lease file, at most every `RENEW_EVERY_S` seconds."""
        if time.monotonic() - self._renewed > RENEW_EVERY_S:
            os.utime(self._fd)
            self._renewed = time.monotonic()

    def release(self) -> None:
        """Give the lease up. Safe to call twice, and after another process took the lease over."""
        if self._fd >= 0:
            if _same_file(self._path, self._fd):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def sole_writer(file: Path, subject: str | Path) -> Iterator[None]:
    """Hold the lock file `file` inside the block, so that only this process writes `subject`.

    The lock file is removed after the block, and so are empty folders that were created for it. A lock file that a
    killed process leaves behind is not locked and blocks no one.

    Raises:
        WriteError: another process holds the lock, or the lock file cannot be created.
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
    """Return the path of the lock file of a file or folder that is published whole: beside it, not inside it."""
    return path.with_name(f".{path.name}.writer")


def _same_file(path: Path, fd: int) -> bool:
    """Return whether the path still names the open file."""
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    opened = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
