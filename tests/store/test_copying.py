"""Copies of rows give the same bytes by every way and into memory that begins anywhere."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_stores import fill, make_spec

import featurecache
from featurecache.spec import STORED_DTYPES
from featurecache.store import copying
from featurecache.store.copying import CACHE_LINE_BYTES, PAGE_BYTES, address_of, copy_backwards, copy_by_pieces, empty

WAYS = (np.copyto, copy_backwards, copy_by_pieces)


def at_offset(offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    return empty((offset + num_bytes,), np.dtype(np.uint8))[offset:].view(dtype).reshape(shape)


@pytest.mark.parametrize("copy", WAYS)
@pytest.mark.parametrize("offset", [0, 8, 16, 64, 2048])
@pytest.mark.parametrize("shape", [(1, 32), (7, 64), (64, 1280)])
def test_every_way_copies_the_same_bytes_and_no_others(copy, offset, shape):
    source = np.random.default_rng(0).integers(0, 1 << 16, shape, np.uint16).view(np.float16)
    around = at_offset(offset, (source.size + 8,), np.dtype(np.uint16))
    around[...] = 0xABCD
    target = around[: source.size].view(np.float16).reshape(shape)

    copy(target, source)

    np.testing.assert_array_equal(target.view(np.uint16), source.view(np.uint16))
    assert (around[source.size :] == 0xABCD).all()


@pytest.mark.parametrize("dtype", [np.float16, np.uint16, np.uint8, np.float32])
def test_own_memory_begins_at_a_page(dtype):
    arrays = [empty((3, 5, 7), np.dtype(dtype)) for _ in range(5)]
    assert [address_of(array) % PAGE_BYTES for array in arrays] == [0] * 5
    assert all(array.flags.c_contiguous and array.flags.writeable for array in arrays)


@pytest.mark.parametrize("quickest", WAYS)
def test_the_quickest_way_is_taken_for_memory_a_few_bytes_into_a_page(monkeypatch, quickest):
    seconds = dict.fromkeys(WAYS, 2.0) | {quickest: 1.0}
    monkeypatch.setattr(copying, "_copiers", {})
    monkeypatch.setattr(copying, "_least_seconds", lambda copy, target, source: seconds[copy])
    target = at_offset(16, (2, 64, 64), np.dtype(np.float16))
    assert copying.row_copier(target, 64 * 64 * 2) is quickest


def test_a_way_is_timed_in_several_copies_and_the_least_time_counts(monkeypatch):
    clock, copies = iter([0.0, 5.0, 10.0, 11.0, 20.0, 24.0, 30.0, 33.0, 40.0, 42.0]), []
    monkeypatch.setattr(copying.time, "perf_counter", lambda: next(clock))
    source = np.ones(8, np.uint8)
    assert copying._least_seconds(lambda *arrays: copies.append(arrays), source.copy(), source) == 1.0
    assert len(copies) == 6, "the first one is not timed"


@pytest.mark.parametrize("offset", [0, CACHE_LINE_BYTES, 2048, 2064])
def test_memory_that_is_placed_well_is_copied_plainly(monkeypatch, offset):
    monkeypatch.setattr(copying, "_least_seconds", lambda *_: pytest.fail("nothing is to be measured"))
    target = at_offset(offset, (2, 64, 64), np.dtype(np.float16))
    assert copying.row_copier(target, 64 * 64 * 2) is np.copyto


@pytest.mark.parametrize("quickest", WAYS)
@pytest.mark.parametrize("stored_dtype", STORED_DTYPES)
def test_reads_give_the_same_tokens_wherever_the_buffer_begins(monkeypatch, place: Path, kind, stored_dtype, quickest):
    monkeypatch.setattr(copying, "_measured_copier", lambda offset, row_bytes: quickest)
    writer = featurecache.open_store(place, "a").writer("whisper", make_spec(stored_dtype, shape=(4, 32)))
    writer.plan(ids := ["a", "b", "c"])
    fill(writer)
    feature = featurecache.open_store(place)["whisper"]
    expected = np.stack([feature[clip_id] for clip_id in ids])
    for offset in (0, 16, 64, 2048):
        out = at_offset(offset, expected.shape, feature.dtype)
        for _ in range(2):  # the second read is from memory
            out.view(np.uint8)[...] = 0
            assert feature.read(ids, out).tobytes() == expected.tobytes()
    assert address_of(feature.read(ids)) % PAGE_BYTES == 0


def test_memory_is_used_again_once_no_array_refers_to_it():
    shape, dtype = (3, 1000, 7), np.dtype(np.uint16)
    first = empty(shape, dtype)
    address = address_of(first)
    part = first[1:]
    del first
    assert address_of(empty(shape, dtype)) != address, "a view still refers to it"
    del part
    assert address_of(empty(shape, dtype)) == address


def test_no_two_threads_are_given_the_same_memory():
    def hold(number: int) -> bool:
        arrays = [empty((1000,), np.dtype(np.uint8)) for _ in range(20)]
        for place, array in enumerate(arrays):
            array[...] = (20 * number + place) % 251
        return all((array == (20 * number + place) % 251).all() for place, array in enumerate(arrays))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(hold, range(200)))


def test_kept_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(copying, "_blocks", {})
    for size in range(1, 40):
        empty((size << 20,), np.dtype(np.uint8))
    kept_bytes = sum(size * len(blocks) for size, blocks in copying._blocks.items())
    assert kept_bytes <= copying.KEPT_BYTES


def test_quantised_tokens_are_restored_alike_with_and_without_torch(monkeypatch):
    import torch  # noqa: F401  (restoring uses it where it is loaded)

    from featurecache.store.quantize import dequantise, quantise

    tokens = np.random.default_rng(0).standard_normal((64, 48), np.float32) * np.logspace(-7, 4, 48, dtype=np.float32)
    for stored_dtype in ("int8", "float8"):
        q, scales = quantise(tokens, stored_dtype)
        with_torch = dequantise(q, scales)
        monkeypatch.setitem(sys.modules, "torch", None)
        np.testing.assert_array_equal(dequantise(q, scales).view(np.uint16), with_torch.view(np.uint16))
        monkeypatch.undo()
