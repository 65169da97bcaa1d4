"""Copy rows at memory speed, for any alignment of the target.

Rows of a store begin at multiples of 64 bytes, in Zarr shards at the start of a page. A large array of numpy begins 16
bytes after the start of a page. On some processors a plain copy between the two takes almost three times as long: loads
cross cache lines, and each load waits for the preceding store, because both addresses have the same last 12 bits (4 KiB
aliasing). Arrays that this package allocates therefore begin at a page (`empty`). For memory of the caller, the fastest
of three copy functions is measured once per process (`row_copier`). All three copy the same bytes.

New memory is slow too: the kernel clears it page by page, which takes several times as long as the copy. `empty`
therefore reuses a block when no array refers to it any more.
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
"""4 KiB aliasing slows a target down that begins up to this many bytes after its source, modulo a page."""
PIECE_BYTES = 128 << 10
"""Size of the buffer between source and target; it fits into the second-level cache."""
TIMED_COPIES = 5
KEPT_BYTES = 64 << 20
"""Upper bound for the memory that is kept for reuse."""

CopyRow = Callable[[np.ndarray, np.ndarray], None]
"""(target, source): copies one row; both C-contiguous, of one shape and one dtype."""


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised C-contiguous array that begins at a page, in reused memory if possible."""
    num_bytes = prod(shape) * dtype.itemsize
    with _blocks_lock:
        block = _free_block(num_bytes)
        begin = -address_of(block) % PAGE_BYTES
        return block[begin : begin + num_bytes].view(dtype).reshape(shape)


def _free_block(num_bytes: int) -> np.ndarray:
    """Return a block with at least `num_bytes` from a page start on; arrays made from it keep it alive."""
    blocks = _blocks.setdefault(num_bytes, [])
    for block in blocks:
        if sys.getrefcount(block) <= _UNUSED_REFERENCES:
            return block
    block = np.empty(num_bytes + PAGE_BYTES, np.uint8)
    if sum(size * len(same_size) for size, same_size in _blocks.items()) + num_bytes > KEPT_BYTES:
        _blocks.clear()
    if num_bytes <= KEPT_BYTES:
        _blocks.setdefault(num_bytes, []).append(block)
    return block


def _references_when_unused() -> int:
    """Return the reference count that `_free_block` sees for a block which only its list refers to."""
    blocks = [np.empty(0, np.uint8)]
    for block in blocks:
        return sys.getrefcount(block)
    raise AssertionError


def address_of(array: np.ndarray) -> int:
    """Return the address of the first byte."""
    address: int = array.__array_interface__["data"][0]
    return address


def row_copier(target: np.ndarray, row_bytes: int) -> CopyRow:
    """Return the fastest function that copies rows of a store into the contiguous array `target` (B, K, D)."""
    offset = address_of(target) % PAGE_BYTES
    if offset % CACHE_LINE_BYTES == 0 or offset > ALIASING_BYTES or row_bytes % CACHE_LINE_BYTES:
        return np.copyto
    return _measured_copier(offset, row_bytes)


def copy_backwards(target: np.ndarray, source: np.ndarray) -> None:
    """Copy 8 bytes at a time from the end to the beginning, so that no load waits for the preceding store."""
    # `positive` iterates reversed arrays backwards; `copyto` would reverse both of them first.
    np.positive(_words(source)[::-1], out=_words(target)[::-1])


def copy_by_pieces(target: np.ndarray, source: np.ndarray) -> None:
    """Copy through a small buffer whose address differs from both by half a page."""
    buffer = _buffer()
    source, target = source.reshape(-1).view(np.uint8), target.reshape(-1).view(np.uint8)
    for begin in range(0, source.size, PIECE_BYTES):
        piece = source[begin : begin + PIECE_BYTES]
        buffered = buffer[: piece.size]
        np.copyto(buffered, piece)
        np.copyto(target[begin : begin + PIECE_BYTES], buffered)


def _words(row: np.ndarray) -> np.ndarray:
    return row.reshape(-1).view(np.uint64)


def _buffer() -> np.ndarray:
    """Return the buffer of this thread, (PIECE_BYTES,) uint8."""
    if not hasattr(_local, "buffer"):
        _local.buffer = empty((PAGE_BYTES // 2 + PIECE_BYTES,), np.dtype(np.uint8))[PAGE_BYTES // 2 :]
    buffer: np.ndarray = _local.buffer
    return buffer


def _measured_copier(offset: int, row_bytes: int) -> CopyRow:
    """Return the fastest copy function for this offset and row size, timed once per process."""
    key = (offset, row_bytes)
    if key not in _copiers:
        source = empty((row_bytes,), np.dtype(np.uint8))
        source[...] = 1  # write to every page: unwritten pages all map to the same page of zeros
        target = empty((offset + row_bytes,), np.dtype(np.uint8))[offset:]
        candidates: tuple[CopyRow, ...] = (np.copyto, copy_by_pieces)
        if offset % 8 == 0:  # numpy is slow with unaligned words
            candidates += (copy_backwards,)
        _copiers[key] = min(candidates, key=lambda copy: _least_seconds(copy, target, source))
    return _copiers[key]


def _least_seconds(copy: CopyRow, target: np.ndarray, source: np.ndarray) -> float:
    copy(target, source)  # not timed: the first copy also fills the caches
    durations = []
    for _ in range(TIMED_COPIES):
        began = time.perf_counter()
        copy(target, source)
        durations.append(time.perf_counter() - began)
    return min(durations)


def _replace_lock() -> None:
    """Replace the lock after a fork: a thread that does not exist in the child may have held it."""
    global _blocks_lock
    _blocks_lock = threading.Lock()


_UNUSED_REFERENCES = _references_when_unused()
_blocks: dict[int, list[np.ndarray]] = {}
"""Blocks by the size that they were allocated for."""
_blocks_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_lock)
_local = threading.local()
_copiers: dict[tuple[int, int], CopyRow] = {}
