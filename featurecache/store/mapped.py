"""A shard file in memory: mapped read-only, its descriptor closed at once.

Python's own mmap keeps a descriptor for every map; a store of thousands of shards would run out of them. The map lives
as long as any array made from it. Files of a store are never edited in place, so a map does not change under a reader.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptStoreError

MADV_WILLNEED = 3
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def map_file(path: Path, expected_bytes: int, next_step: str) -> np.ndarray:
    """Map a whole file as read-only bytes (n,), uint8.

    Raises:
        CorruptStoreError: the file is missing, or not of the size its record says.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CorruptStoreError(
            str(path), expected="the shard its record describes", got="no file", next_step=next_step
        ) from None
    try:
        size = os.fstat(fd).st_size
        if size != expected_bytes:
            raise CorruptStoreError(str(path), expected=f"{expected_bytes} bytes", got=str(size), next_step=next_step)
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    buffer = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(buffer, _libc.munmap, address, size).atexit = False
    array = np.frombuffer(buffer, np.uint8)
    array.flags.writeable = False
    return array


def will_need(array: np.ndarray) -> None:
    """Ask for a mapped range to be read ahead; costs little where it is in memory already."""
    address = array.__array_interface__["data"][0]
    begin = address & ~(mmap.PAGESIZE - 1)
    _libc.madvise(begin, address + array.nbytes - begin, MADV_WILLNEED)


def is_resident(array: np.ndarray) -> bool:
    """Whether every page of a mapped range is in memory now."""
    address = array.__array_interface__["data"][0]
    begin = address & ~(mmap.PAGESIZE - 1)
    length = address + array.nbytes - begin
    pages = -(-length // mmap.PAGESIZE)
    vector = ctypes.create_string_buffer(pages)
    return _libc.mincore(begin, length, vector) != 0 or b"\0" not in vector.raw[:pages]


def read_into(path: Path, offset: int, row: np.ndarray) -> None:
    """Fill `row` (n,) uint8 from a file, with the interpreter lock released.

    Raises:
        CorruptStoreError: the file ends before.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        done = 0
        while done < row.size:
            count = os.preadv(fd, [row[done:]], offset + done)
            if not count:
                raise CorruptStoreError(str(path), expected=f"{row.size} bytes at {offset}", got=str(done))
            done += count
    finally:
        os.close(fd)


def parallel(function: Callable[..., None], arguments: Sequence[tuple], worth_it: bool = True) -> None:
    """Call `function(*each)` for all arguments, on several threads where that is worth it; raise the first error."""
    if not worth_it or len(arguments) < 2:
        for each in arguments:
            function(*each)
        return
    for future in [_pool().submit(function, *each) for each in arguments]:
        future.result()


def _pool() -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork."""
    if os.getpid() not in _pools:
        _pools.clear()
        _pools[os.getpid()] = ThreadPoolExecutor(max(4, min(32, 2 * (os.cpu_count() or 1))), "featurecache-read")
    return _pools[os.getpid()]


_pools: dict[int, ThreadPoolExecutor] = {}
