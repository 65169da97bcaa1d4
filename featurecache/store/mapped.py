"""A shard file in memory: mapped read-only, its descriptor closed at once.

Python's own mmap keeps a descriptor for every map; a store of thousands of shards would run out of them. The map lives
as long as any array made from it. Files of a store are never edited in place, so a map does not change under a reader.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from featurecache.store.direct import OpenFile

PROT_NONE = 0
MAP_FIXED = 0x10
HUGE_PAGE_BYTES = 2 << 20
"""Maps begin at a multiple of it, so that the kernel can use huge pages where its cache has them."""
MADV_WILLNEED = 3
MADV_POPULATE_READ = 22
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def map_file(file: OpenFile) -> np.ndarray:
    """Map a whole file as read-only bytes (n,), uint8; n as checked when it was opened."""
    path, size = file.path, file.size
    reserved = _mmap(None, size + HUGE_PAGE_BYTES, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, path)
    aligned = -(-reserved // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    address = _mmap(aligned, size, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, file.fd, path)
    buffer = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(buffer, _libc.munmap, reserved, size + HUGE_PAGE_BYTES).atexit = False
    array = np.frombuffer(buffer, np.uint8)
    array.flags.writeable = False
    return array


def _mmap(address: int | None, length: int, protection: int, flags: int, fd: int, path: Path) -> int:
    mapped = _libc.mmap(address, length, protection, flags, fd, 0)
    if mapped == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return mapped


def populate(array: np.ndarray) -> None:
    """Bring a mapped range into this process's page table in one call, instead of a page fault every few pages."""
    address = array.__array_interface__["data"][0]
    begin = address & ~(mmap.PAGESIZE - 1)
    length = address + array.nbytes - begin
    if _libc.madvise(begin, length, MADV_POPULATE_READ):  # before Linux 5.14
        _libc.madvise(begin, length, MADV_WILLNEED)
