"""Read rows straight into the caller's memory, past the map: for rows that no page table knows yet.

Neighbouring rows are read by one call. What is in the page cache is copied at once. The rest is read with the
interpreter lock released: by one reader where rows come in the order of the file, which the kernel then reads ahead,
and by several threads otherwise. Checksums are compared while the next rows are read.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptStoreError
from featurecache.machine import advise_in_order, max_buffers, read_into, usable_cores

MAX_COPY_THREADS = 8
PARALLEL_BYTES = 16 << 20
"""From this size on, a batch is copied by several threads."""
RUN_BYTES = 4 << 20
"""Longest stretch that one call reads."""
RUN_ROWS = max_buffers()
NO_WAITING = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class OpenFile:
    """A descriptor that lives as long as somebody uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cold = self.advised = False
        """Whether some read had to wait for the disk, and whether the kernel was told that reads come in order."""
        self.end = 0
        """Where the last read ended."""
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def open_shard(path: Path, expected_bytes: int, next_step: str) -> OpenFile:
    """Open a shard file.

    Raises:
        CorruptStoreError: the file is missing, or not of the size its record says.
    """
    try:
        file = OpenFile(path)
    except FileNotFoundError:
        raise CorruptStoreError(
            str(path), expected="the shard its record describes", got="no file", next_step=next_step
        ) from None
    if file.size != expected_bytes:
        raise CorruptStoreError(str(path), expected=f"{expected_bytes} bytes", got=str(file.size), next_step=next_step)
    return file


@dataclass(frozen=True)
class Row:
    """One row to read: where from, where to (n,) uint8, and what to do with it then."""

    file: OpenFile
    begin: int
    target: np.ndarray
    done: Callable[[np.ndarray], None]


def read_rows(rows: Sequence[Row]) -> None:
    """Read all rows; whatever `done` raises is raised.

    Raises:
        CorruptStoreError: a file ends before its row does.
    """
    waiting, futures = [], []
    for run in _runs(rows):
        file, in_order = run[0].file, run[0].begin == run[0].file.end
        read = 0 if file.cold and in_order else _read(run, 0, getattr(os, "RWF_NOWAIT", 0))
        if read < _length(run):
            file.cold = True
            if not in_order:
                waiting.append((run, read))
                continue
            if not file.advised:
                advise_in_order(file.fd)
                file.advised = True
            _read_fully(run, read)  # in order, the kernel reads ahead: one reader is quickest
            futures.append(_pool().submit(_finish, run))  # while the next run is read
        else:
            _finish(run)
        file.end = run[0].begin + _length(run)
    if len(waiting) == 1 and _length(waiting[0][0]) <= RUN_BYTES // 4:
        _read_all(*waiting[0])
    else:
        futures += [_pool().submit(_read_all, *each) for each in waiting]
    for run, _ in waiting:
        run[0].file.end = run[0].begin + _length(run)
    for future in futures:
        future.result()


def _runs(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that follow each other in a file, together."""
    runs: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (id(row.file), row.begin)):
        last = runs[-1][-1] if runs else None
        follows = last is not None and last.file is row.file and last.begin + last.target.size == row.begin
        if follows and _length(runs[-1]) + row.target.size <= RUN_BYTES and len(runs[-1]) < RUN_ROWS:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _length(run: list[Row]) -> int:
    return run[-1].begin + run[-1].target.size - run[0].begin


def _read(run: list[Row], done: int, flags: int) -> int:
    """Read on from `done` bytes into the run, once; returns how many bytes of the run are read now."""
    targets, skip = [], done
    for row in run:
        if skip < row.target.size:
            targets.append(row.target[skip:])
        skip = max(0, skip - row.target.size)
    try:
        count = read_into(run[0].file.fd, targets, run[0].begin + done, flags)
    except OSError as error:
        if flags and error.errno in NO_WAITING:
            return done
        raise
    if not count and not flags:
        raise CorruptStoreError(
            str(run[0].file.path), expected=f"{_length(run)} bytes at {run[0].begin}", got=str(done)
        )
    return done + count


def _read_fully(run: list[Row], done: int) -> None:
    while done < _length(run):
        done = _read(run, done, 0)


def _read_all(run: list[Row], done: int) -> None:
    _read_fully(run, done)
    _finish(run)


def _finish(run: list[Row]) -> None:
    for row in run:
        row.done(row.target)


def copy_threads(num_bytes: int) -> int:
    """How many threads a copy of so many bytes is worth: one on few cores, which others need too."""
    if num_bytes < PARALLEL_BYTES:
        return 1
    cores = usable_cores()
    return min(MAX_COPY_THREADS, cores // 2) if cores >= 4 else 1


def parallel(function: Callable[..., None], arguments: Sequence[tuple], threads: int) -> None:
    """Call `function(*each)` for all arguments, divided over some threads; the first error is raised."""

    def several(some: Sequence[tuple]) -> None:
        for each in some:
            function(*each)

    if threads < 2:
        several(arguments)
        return
    for future in [_pool().submit(several, arguments[first::threads]) for first in range(threads)]:
        future.result()


def _pool() -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork."""
    if os.getpid() not in _pools:
        _pools.clear()
        _pools[os.getpid()] = ThreadPoolExecutor(max(4, min(32, 2 * usable_cores())), "featurecache-read")
    return _pools[os.getpid()]


_pools: dict[int, ThreadPoolExecutor] = {}
