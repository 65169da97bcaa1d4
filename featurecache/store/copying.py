"""Copy rows at the speed of memory, wherever the target begins.

Rows in a store begin at multiples of 64 bytes, in Zarr shards at the start of a page. A large array of numpy begins 16
bytes into a page. On some processors a plain copy between the two takes almost three times as long: loads cross cache
lines, and each load waits for the store before it, because both addresses agree in their last 12 bits (4 KiB aliasing).
So memory that this package allocates begins at a page (`empty`), and for a caller's memory the quickest of three ways
to copy is measured once per process (`row_copier`). All three copy the same bytes.

Fresh memory is slow too: the kernel clears it page by page, which costs several times the copy. `empty` therefore uses
its blocks again once no array refers to them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from math import prod

import numpy as np

PAGE_BYTES = 4096
CACHE_LINE_BYTES = 64
ALIASING_BYTES = 128
"""How far behind its source, modulo a page, a target is disturbed by 4 KiB aliasing."""
PIECE_BYTES = 128 << 10
"""Size of the buffer between source and target; it stays in the second-level cache."""
TIMED_COPIES = 5
KEPT_BYTES = 64 << 20
"""Most memory that is kept to be used again."""

CopyRow = Callable[[np.ndarray, np.ndarray], None]
"""(target, source): copies one row; both C-contiguous, of one shape and one dtype."""


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised C-contiguous array that begins at a page, where possible in memory used before."""
    num_bytes = prod(shape) * dtype.itemsize
    with _blocks_lock:
        block = _free_block(num_bytes)
        begin = -address_of(block) % PAGE_BYTES
        return block[begin : begin + num_bytes].view(dtype).reshape(shape)


def _free_block(num_bytes: int) -> np.ndarray:
    """Return a block with room for `num_bytes` from the start of a page; every array made from it keeps it alive."""
    blocks = _blocks.setdefault(num_bytes, [])
    for block in blocks:
        if sys.getrefcount(block) <= _UNUSED_REFERENCES:
            return block
    block = np.empty(num_bytes + PAGE_BYTES, np.uint8)
    if sum(size * len(kept) for size, kept in _blocks.items()) + num_bytes > KEPT_BYTES:
        _blocks.clear()
    if num_bytes <= KEPT_BYTES:
        _blocks.setdefault(num_bytes, []).append(block)
    return block


def _references_when_unused() -> int:
    """Count the references that `_free_block` sees to a block which only its list holds."""
    blocks = [np.empty(0, np.uint8)]
    for block in blocks:
        return sys.getrefcount(block)
    raise AssertionError


def address_of(array: np.ndarray) -> int:
    """Return the address of the first byte."""
    return array.__array_interface__["data"][0]


def row_copier(target: np.ndarray, row_bytes: int) -> CopyRow:
    """Return the quickest way to copy rows of a store into `target` (B, K, D), which holds them one after another."""
    offset = address_of(target) % PAGE_BYTES
    if offset % CACHE_LINE_BYTES == 0 or offset > ALIASING_BYTES or row_bytes % CACHE_LINE_BYTES:
        return np.copyto
    return _measured_copier(offset, row_bytes)


def copy_backwards(target: np.ndarray, source: np.ndarray) -> None:
    """Copy 8 bytes at a time from the end: no load waits for a store before it."""
    # `positive` walks reversed arrays as they are; `copyto` would turn both round first.
    np.positive(_words(source)[::-1], out=_words(target)[::-1])


def copy_by_pieces(target: np.ndarray, source: np.ndarray) -> None:
    """Copy through a small buffer that lies half a page away from both."""
    buffer = _buffer()
    source, target = source.reshape(-1).view(np.uint8), target.reshape(-1).view(np.uint8)
    for begin in range(0, source.size, PIECE_BYTES):
        piece = source[begin : begin + PIECE_BYTES]
        between = buffer[: piece.size]
        np.copyto(between, piece)
        np.copyto(target[begin : begin + PIECE_BYTES], between)


def _words(row: np.ndarray) -> np.ndarray:
    return row.reshape(-1).view(np.uint64)


def _buffer() -> np.ndarray:
    """(PIECE_BYTES,) uint8, one buffer per thread."""
    if not hasattr(_local, "buffer"):
        _local.buffer = empty((PAGE_BYTES // 2 + PIECE_BYTES,), np.dtype(np.uint8))[PAGE_BYTES // 2 :]
    return _local.buffer


def _measured_copier(offset: int, row_bytes: int) -> CopyRow:
    """Time the three ways on memory of this offset and row size, once per process."""
    key = (offset, row_bytes)
    if key not in _copiers:
        source = empty((row_bytes,), np.dtype(np.uint8))
        source[...] = 1  # touch every page: untouched ones share one page of zeros
        target = empty((offset + row_bytes,), np.dtype(np.uint8))[offset:]
        ways: tuple[CopyRow, ...] = (np.copyto, copy_by_pieces)
        if offset % 8 == 0:  # numpy is slow with words that are not aligned
            ways += (copy_backwards,)
        _copiers[key] = min(ways, key=lambda copy: _least_seconds(copy, target, source))
    return _copiers[key]


def _least_seconds(copy: CopyRow, target: np.ndarray, source: np.ndarray) -> float:
    copy(target, source)
    taken = []
    for _ in range(TIMED_COPIES):
        began = time.perf_counter()
        copy(target, source)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _forget_blocks() -> None:
    """After a fork: the lock may be held by a thread that the child does not have."""
    global _blocks_lock
    _blocks_lock = threading.Lock()


_UNUSED_REFERENCES = _references_when_unused()
_blocks: dict[int, list[np.ndarray]] = {}
"""Blocks by the size they were made for."""
_blocks_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_blocks)
_local = threading.local()
_copiers: dict[tuple[int, int], CopyRow] = {}
