"""Open, map and read shard files.

`map_file` maps a file read-only and closes its descriptor at once. Python's own mmap keeps a descriptor per map, so a
store of thousands of shards would run out of descriptors. The map lives as long as any array made from it. Files of a
store are never edited in place, so a map does not change under a reader.

`read_rows` reads rows directly into the caller's memory instead. This is faster for rows that this process has not
mapped into its page table yet. Adjacent rows are read by one call. Rows in the page cache are copied at once. Other
rows are read with the interpreter lock released: by one thread if they are requested in file order, so that the kernel
reads ahead, and by several threads otherwise. Checksums are compared while the next rows are read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import CorruptStoreError
from featurecache.machine import advise_in_order, max_buffers, read_into, usable_cores

MAX_COPY_THREADS = 8
PARALLEL_BYTES = 16 << 20
"""Batches of at least this size are copied by several threads."""
RUN_BYTES = 4 << 20
"""Maximum size of a run: adjacent rows that one call reads."""
RUN_ROWS = max_buffers()
# Errors of preadv with RWF_NOWAIT: the data are not in the page cache, or the system does not support the flag.
NO_WAITING = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class OpenFile:
    """An open file, closed when the last reference is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cold = False
        """Whether a read had to wait for the disk."""
        self.advised = False
        """Whether the kernel was told that reads come in file order."""
        self.end = 0
        """Offset at which the last read ended."""
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def open_shard(path: Path, expected_bytes: int, next_step: str) -> OpenFile:
    """Open a shard file.

    Raises:
        CorruptStoreError: the file is missing, or its size differs from that in its record.
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
class RowRead:
    """A row to read at `begin` of `file` into `target` (n,) uint8; `done` is called with the target afterwards."""

    file: OpenFile
    begin: int
    target: np.ndarray
    done: Callable[[np.ndarray], None]


def read_rows(rows: Sequence[RowRead]) -> None:
    """Read all rows. Errors of `done` are raised.

    Raises:
        CorruptStoreError: a file ends before the end of a row.
    """
    unfinished, futures = [], []
    for run in _runs(rows):
        file, in_order = run[0].file, run[0].begin == run[0].file.end
        # First copy what the page cache holds (RWF_NOWAIT), unless the file was not cached and is read in order.
        read = 0 if file.cold and in_order else _read(run, 0, getattr(os, "RWF_NOWAIT", 0))
        if read < _length(run):
            file.cold = True
            if not in_order:
                unfinished.append((run, read))
                continue
            if not file.advised:
                advise_in_order(file.fd)
                file.advised = True
            _read_fully(run, read)  # the kernel reads ahead in file order, so one reader is fastest
            futures.append(_pool().submit(_finish, run))  # in parallel with the reading of the next run
        else:
            _finish(run)
        file.end = run[0].begin + _length(run)
    if len(unfinished) == 1 and _length(unfinished[0][0]) <= RUN_BYTES // 4:  # too little for another thread
        _read_all(*unfinished[0])
    else:
        futures += [_pool().submit(_read_all, run, read) for run, read in unfinished]
    for run, _ in unfinished:
        run[0].file.end = run[0].begin + _length(run)
    for future in futures:
        future.result()


def _runs(rows: Sequence[RowRead]) -> list[list[RowRead]]:
    """Group adjacent rows of the same file into runs."""
    runs: list[list[RowRead]] = []
    for row in sorted(rows, key=lambda row: (id(row.file), row.begin)):
        last = runs[-1][-1] if runs else None
        follows = last is not None and last.file is row.file and last.begin + last.target.size == row.begin
        if follows and _length(runs[-1]) + row.target.size <= RUN_BYTES and len(runs[-1]) < RUN_ROWS:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _length(run: list[RowRead]) -> int:
    return run[-1].begin + run[-1].target.size - run[0].begin


def _read(run: list[RowRead], done: int, flags: int) -> int:
    """Read once, from `done` bytes into the run; return how many bytes of the run are read now."""
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


def _read_fully(run: list[RowRead], done: int) -> None:
    while done < _length(run):
        done = _read(run, done, 0)


def _read_all(run: list[RowRead], done: int) -> None:
    _read_fully(run, done)
    _finish(run)


def _finish(run: list[RowRead]) -> None:
    for row in run:
        row.done(row.target)


def copy_threads(num_bytes: int) -> int:
    """Return the number of threads for a copy: one if the machine has few cores, which other work needs."""
    if num_bytes < PARALLEL_BYTES:
        return 1
    cores = usable_cores()
    return min(MAX_COPY_THREADS, cores // 2) if cores >= 4 else 1


def parallel(function: Callable[..., None], arguments: Sequence[tuple[Any, ...]], threads: int) -> None:
    """Call `function` once per argument tuple, on several threads; the first error is raised."""

    def call_all(share: Sequence[tuple[Any, ...]]) -> None:
        for call_arguments in share:
            function(*call_arguments)

    if threads < 2:
        call_all(arguments)
        return
    for future in [_pool().submit(call_all, arguments[first::threads]) for first in range(threads)]:
        future.result()


def _pool() -> ThreadPoolExecutor:
    """Return the thread pool of this process. A forked child needs its own, because threads do not survive a fork."""
    if os.getpid() not in _pools:
        _pools.clear()
        _pools[os.getpid()] = ThreadPoolExecutor(max(4, min(32, 2 * usable_cores())), "featurecache-read")
    return _pools[os.getpid()]


_pools: dict[int, ThreadPoolExecutor] = {}


PROT_NONE = 0
MAP_FIXED = 0x10
HUGE_PAGE_BYTES = 2 << 20
"""Maps begin at multiples of this size, so that the kernel can map huge pages of its cache."""
MADV_WILLNEED = 3
MADV_POPULATE_READ = 22
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def map_file(file: OpenFile) -> np.ndarray:
    """Map a whole file; return its bytes as a read-only array (n,) uint8."""
    path, size = file.path, file.size
    # Reserve a larger range without memory, then map the file at the aligned address inside it.
    reserved = _mmap(None, size + HUGE_PAGE_BYTES, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, path)
    aligned = -(-reserved // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    address = _mmap(aligned, size, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, file.fd, path)
    buffer = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(buffer, _libc.munmap, reserved, size + HUGE_PAGE_BYTES).atexit = False
    array: np.ndarray = np.frombuffer(buffer, np.uint8)  # type: ignore[call-overload]  # numpy: not declared for ctypes
    array.flags.writeable = False
    return array


def _mmap(address: int | None, length: int, protection: int, flags: int, fd: int, path: Path) -> int:
    mapped: int = _libc.mmap(address, length, protection, flags, fd, 0)
    if mapped == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return mapped


def populate(array: np.ndarray) -> None:
    """Enter a mapped range into the page table by one call, which replaces a page fault every few pages."""
    address = array.__array_interface__["data"][0]
    begin = address & ~(mmap.PAGESIZE - 1)
    length = address + array.nbytes - begin
    if _libc.madvise(begin, length, MADV_POPULATE_READ):  # before Linux 5.14
        _libc.madvise(begin, length, MADV_WILLNEED)
