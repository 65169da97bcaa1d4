"""Stores made to do harm are refused, and before anything of the size they state is allocated."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_stores import build, make_spec

import featurecache
from featurecache.errors import CorruptStoreError, FeatureCacheError, SpecError
from featurecache.maintenance.verify import verify_store
from featurecache.store import columns, plan, records

SMALL_BYTES = 8 << 20


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak < SMALL_BYTES, f"{peak} bytes were allocated"
    finally:
        tracemalloc.stop()


def framed(magic: bytes, header: object, body: bytes = b"") -> bytes:
    """A file of `columns` with any header, its checksum sound."""
    text = json.dumps(header).encode()
    data = struct.pack("<8sI", magic, len(text)) + text + body
    return data + struct.pack("<I", google_crc32c.value(data))


def header_of(path: Path) -> dict:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 8)
    return json.loads(data[12 : 12 + length])


ABSURD_RECORDS: dict[str, Callable[[dict], dict]] = {
    "a huge column": lambda header: header | {"columns": [["status", "|u1", 2**62]]},
    "a negative column": lambda header: header | {"columns": [["status", "|u1", -1]]},
    "a strange dtype": lambda header: header | {"columns": [["status", "|O", 1]]},
    "no columns": lambda header: {key: value for key, value in header.items() if key != "columns"},
    "columns that are no list": lambda header: header | {"columns": 7},
    "a huge shard": lambda header: header | {"shard_rows": 2**60},
    "huge rows": lambda header: header | {"row_bytes": 2**60},
    "huge files": lambda header: header | {"file_bytes": [2**70]},
    "another format": lambda header: header | {"format": 99},
    "reasons that are no texts": lambda header: header | {"reasons": [1]},
    "a shard that is text": lambda header: header | {"shard": "../../x"},
}


@pytest.mark.parametrize("change", ABSURD_RECORDS.values(), ids=ABSURD_RECORDS)
def test_absurd_records_are_refused(small_store, change: Callable[[dict], dict]) -> None:
    path = small_store.folder("whisper").record(0)
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 8)
    header = json.dumps(change(header_of(path)), separators=(",", ":"), sort_keys=True).encode()
    header += b" " * (-(len(header) - length) % 8)  # columns stay aligned
    changed = struct.pack("<8sI", records.MAGIC, len(header)) + header + data[12 + length : -4]
    path.write_bytes(changed + struct.pack("<I", google_crc32c.value(changed)))
    with little_memory(), pytest.raises(CorruptStoreError):
        featurecache.open_store(small_store.location)["whisper"]
    assert verify_store(small_store).damage


def test_a_record_larger_than_any_can_be_is_not_read(small_store) -> None:
    path = small_store.folder("whisper").record(0)
    with path.open("r+b") as file:
        file.truncate(records.MAX_RECORD_BYTES + 1)  # sparse
    with little_memory(), pytest.raises(CorruptStoreError, match="at most"):
        featurecache.open_store(small_store.location)["whisper"]


def test_a_header_longer_than_its_file_is_refused() -> None:
    data = struct.pack("<8sI", records.MAGIC, 2**31) + b"{}"
    data += struct.pack("<I", google_crc32c.value(data))
    with little_memory(), pytest.raises(CorruptStoreError, match="header"):
        columns.unpack(data, records.MAGIC, "record", "")


@pytest.mark.parametrize(
    "header",
    [
        {"first_shard": 2**60},
        {"first_shard": -1},
        {"shard_rows": 2**40},
        {"shard_rows": 0},
        {"codec": 5},
        {"format": 2},
        {"number": 9},
    ],
)
def test_absurd_plans_are_refused(small_store, header: dict) -> None:
    path = small_store.folder("whisper").segment(0)
    stated, arrays = columns.unpack(path.read_bytes(), plan.MAGIC, "plan", "")
    path.write_bytes(columns.pack(plan.MAGIC, stated | header, arrays))
    with little_memory(), pytest.raises(CorruptStoreError):
        small_store.writer("whisper", make_spec())
    assert verify_store(small_store).damage


def test_a_plan_that_promises_billions_of_clips_is_refused(small_store) -> None:
    path = small_store.folder("whisper").segment(0)
    stated, arrays = columns.unpack(path.read_bytes(), plan.MAGIC, "plan", "")
    counts = np.full(1000, 4, "<u4")
    path.write_bytes(columns.pack(plan.MAGIC, stated, dict(arrays) | {"counts": counts}))
    with little_memory(), pytest.raises(CorruptStoreError, match="texts inside"):
        small_store.writer("whisper", make_spec())


@pytest.mark.parametrize("shape", ["[64, 1000000000000]", "[0, 4]", "[-1, 4]", "[4]", '"x"'])
def test_absurd_shapes_are_refused(tmp_path: Path, shape: str) -> None:
    store = build(tmp_path / "s.zarr")
    path = store.folder("whisper").spec
    document = json.loads(path.read_text()) | {"shape": json.loads(shape)}
    identity = {key: value for key, value in document.items() if key not in ("fingerprint", "provenance")}
    import hashlib

    from featurecache.spec import canonical_json

    document["fingerprint"] = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
    path.write_text(json.dumps(document))
    with little_memory(), pytest.raises(FeatureCacheError):
        featurecache.open_store(store.location)["whisper"]


def test_offsets_outside_the_file_are_refused(tmp_path: Path) -> None:
    store = build(tmp_path / "s.wds", "webdataset")
    path = store.folder("whisper").record(0)
    stated, arrays = columns.unpack(path.read_bytes(), records.MAGIC, "record", "")
    for offset in (2**63, 10**9):
        changed = dict(arrays) | {"offset": np.full(4, offset, "<u8")}
        path.write_bytes(columns.pack(records.MAGIC, stated, changed))
        with little_memory(), pytest.raises(CorruptStoreError):
            featurecache.open_store(store.location)["whisper"].read(["set/clip_000"])
        with pytest.raises(CorruptStoreError):
            featurecache.open_store(store.location)["whisper"]["set/clip_000"]
        assert verify_store(store).damage


def test_a_compressed_row_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    store = build(tmp_path / "s.zarr", "archive")
    path = store.root / "whisper/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 2**31 - 1)  # Blosc's own header of the first row: bytes when unpacked
    path.write_bytes(data)
    with little_memory(), pytest.raises(CorruptStoreError, match="compressed row"):
        featurecache.open_store(store.location)["whisper"]["set/clip_000"]


def test_nothing_outside_the_store_is_reached_by_ids_or_names(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    store = build(tmp_path / "s.zarr")
    with pytest.raises(KeyError):
        store["whisper"]["../../secret"]
    with pytest.raises(FeatureCacheError):
        store["../secret"]
    assert "../secret" not in store


def test_a_spec_of_deep_nesting_is_refused(small_store) -> None:
    small_store.folder("whisper").spec.write_text("[" * 100_000)
    with pytest.raises((SpecError, RecursionError)):
        featurecache.open_store(small_store.location)["whisper"]
    assert verify_store(small_store).damage


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), sound=st.booleans())
def test_no_bytes_at_all_do_more_than_be_refused(data: bytes, sound: bool) -> None:
    data = records.MAGIC + data
    if sound:
        data += struct.pack("<I", google_crc32c.value(data))
    try:
        header, arrays = columns.unpack(data, records.MAGIC, "record", "")
        records.check_record(header, arrays, "record", 0, "")
    except CorruptStoreError:
        pass


IDS = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20))


@settings(max_examples=100)
@given(ids=IDS)
def test_texts_survive_packing(ids: list[str]) -> None:
    encoded = [clip_id.encode() for clip_id in ids]
    text, starts = columns.pack_texts(encoded)
    header, arrays = columns.unpack(
        columns.pack(plan.MAGIC, {"a": 1}, {"ids": text, "ids_starts": starts}), plan.MAGIC, "x", ""
    )
    columns.check_texts(arrays, "ids", len(ids), "x", "")
    segment = plan.PlanSegment(0, 0, 4, "none", np.zeros(0, "<u4"), arrays["ids"], arrays["ids_starts"])
    assert header == {"a": 1}
    assert segment.encoded_ids() == encoded
