"""Other programs read our stores; conversion loses nothing; quantisation loses what its record says."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zarr
from small_stores import KINDS, SHAPE, build, clip_ids, contents, fill, make_spec, source_of, tokens_of

import featurecache
from featurecache.errors import CorruptStoreError, StoreError
from featurecache.maintenance.convert import convert_store
from featurecache.maintenance.diff import compare_stores
from featurecache.maintenance.verify import verify_store
from featurecache.spec import STORED_DTYPES
from featurecache.store.layout import MAX_SHARD_BYTES, default_shard_rows
from featurecache.store.protocols import Status
from featurecache.store.quantize import dequantise, measured_error, quantise
from featurecache.store.webdataset_store import tar_key
from featurecache.store.zarr_store import ARCHIVE_CODEC


def by_webdataset(shards: list[str]) -> list[dict]:
    """Read by plain webdataset, in a process of its own: it leaves files open."""
    pytest.importorskip("webdataset")
    code = (
        "import pickle, sys, webdataset\n"
        "data = webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False).decode()\n"
        "sys.stdout.buffer.write(pickle.dumps(list(data)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *shards], capture_output=True, check=True)
    return pickle.loads(done.stdout)


def as_read(array: np.ndarray, stored_dtype: str) -> np.ndarray:
    return array.view(ml_dtypes.bfloat16) if stored_dtype == "bfloat16" else array


def by_zarr(array: Path) -> np.ndarray:
    return zarr.open_array(array, mode="r")[:]


def by_tensorstore(array: Path) -> np.ndarray:
    tensorstore = pytest.importorskip("tensorstore")
    where = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(array)}}
    return tensorstore.open(where).result().read().result()


@pytest.mark.parametrize("read", [by_zarr, by_tensorstore])
@pytest.mark.parametrize("stored_dtype", STORED_DTYPES)
@pytest.mark.parametrize("codec_kind", ["zarr", "archive"])
def test_zarr_and_tensorstore_read_what_we_read(
    tmp_path: Path, stored_dtype: str, codec_kind: str, read: Callable[[Path], np.ndarray]
) -> None:
    store = build(tmp_path / "s.zarr", codec_kind, stored_dtype)
    feature = store["whisper"]
    arrays = [read(folder) for folder in feature.format.folders(feature.folder, feature.parts)]
    assert arrays[0].shape == (17, *SHAPE)  # 10 clips on three shards, 2 on the fourth, the retried one on the fifth
    for clip_id in feature.ids:
        record = feature.record(clip_id)
        row = 4 * record.shard + record.slot
        for array, part in zip(arrays, feature.disk_rows(clip_id)[0], strict=True):
            assert array[row].tobytes() == part.tobytes()
    for row in (3, 4, 5, 11, 14):  # failed, absent, and the gaps at the ends of segments
        assert np.isnan(as_read(arrays[-1], stored_dtype)[row].astype(np.float32)).all()  # of scales where there are


@pytest.mark.parametrize("stored_dtype", STORED_DTYPES)
def test_webdataset_reads_what_we_read(tmp_path: Path, stored_dtype: str) -> None:
    store = build(tmp_path / "s.wds", "webdataset", stored_dtype)
    feature = store["whisper"]
    shards = [str(path) for path in sorted((store.root / "whisper").glob("*.tar"))]
    seen = []
    for sample in by_webdataset(shards):
        document = sample["json"]
        assert sample["__key__"] == tar_key(document["id"])
        if document["status"] != "ok":
            assert document["reason"]
            assert "whisper.npy" not in sample
            continue
        rows, _ = feature.disk_rows(document["id"])
        assert sample["whisper.npy"].tobytes() == rows[0].tobytes()
        if len(rows) == 2:
            assert sample["whisper.scales.npy"].tobytes() == rows[1].tobytes()
        seen.append(document["id"])
    assert seen == list(feature.ids)


def test_ids_with_dots_slashes_and_other_letters_survive_a_tar(tmp_path: Path) -> None:
    ids = ["a.b/c.d", "müller 1", "%2E", "x" * 240, "a.b/c", "~", "日本"]
    writer = featurecache.open_store(tmp_path / "s.wds", "a").writer("whisper", make_spec())
    writer.plan(ids)
    fill(writer)
    assert len({tar_key(clip_id) for clip_id in ids}) == len(ids)
    shards = [str(path) for path in (tmp_path / "s.wds/whisper").glob("*.tar")]
    samples = by_webdataset(shards)
    assert [sample["json"]["id"] for sample in samples] == ids
    assert all(sample["whisper.npy"].shape == SHAPE for sample in samples)
    assert not verify_store(featurecache.open_store(tmp_path / "s.wds")).problems


@pytest.mark.parametrize("stored_dtype", STORED_DTYPES)
def test_conversion_there_and_back_gives_the_same_bytes(tmp_path: Path, stored_dtype: str) -> None:
    original = build(tmp_path / "a.zarr", stored_dtype=stored_dtype)
    tar = featurecache.open_store(tmp_path / "b.wds", "a")
    packed = featurecache.open_store(tmp_path / "c.zarr", "a")
    back = featurecache.open_store(tmp_path / "d.zarr", "a")
    convert_store(original, tar)
    convert_store(tar, packed, codec=ARCHIVE_CODEC)
    convert_store(packed, back)
    for store in (tar, packed, back):
        assert all(difference.same for difference in compare_stores(original, store))
        assert not verify_store(store).problems
        assert store["whisper"].fingerprint == original["whisper"].fingerprint
    assert contents(back.root) == contents(original.root)
    before = contents(tar.root)
    convert_store(original, tar)  # again: nothing to do
    assert contents(tar.root) == before


def test_extracting_and_converting_give_the_same_tar(tmp_path: Path) -> None:
    extracted = build(tmp_path / "a.wds", "webdataset")
    convert_store(build(tmp_path / "a.zarr"), featurecache.open_store(tmp_path / "b.wds", "a"))
    assert contents(tmp_path / "b.wds") == contents(extracted.root)


def test_a_compact_copy_leaves_out_what_was_superseded(tmp_path: Path) -> None:
    original = build(tmp_path / "a.zarr")
    copy = featurecache.open_store(tmp_path / "b.zarr", "a")
    convert_store(original, copy, compact=True)
    feature = copy["whisper"]
    assert sum(len(record) for record in feature.committed) == 12
    assert feature.counts == original["whisper"].counts
    assert all(difference.same for difference in compare_stores(original, copy))
    with pytest.raises(StoreError, match="plan"):
        convert_store(original, copy)


def test_shards_of_different_features_nest() -> None:
    for row_bytes in (1, 163_840, 180_224, 2_886_400, MAX_SHARD_BYTES, 4 * MAX_SHARD_BYTES):
        rows = default_shard_rows(row_bytes)
        assert rows & (rows - 1) == 0
        assert rows == 1 or rows * row_bytes <= MAX_SHARD_BYTES
    assert default_shard_rows(163_840) == 1024
    assert default_shard_rows(2_886_400) == 64


@pytest.mark.parametrize("shape", [(64, 1280), (1025, 64), (5, 6), (1, 1)])
def test_outlier_channels_do_not_ruin_int8(shape: tuple[int, int]) -> None:
    tokens = np.random.default_rng(0).standard_normal(shape, np.float32)
    outliers = [] if shape[1] < 6 else [1, 5, *range(20, min(50, shape[1]), 10)]
    tokens[:, outliers] *= 100
    others = np.setdiff1d(np.arange(shape[1]), outliers)
    restored = dequantise(*quantise(tokens, "int8")).astype(np.float32)
    difference = (restored - tokens)[:, others]
    assert np.sqrt((difference**2).mean() / (tokens[:, others] ** 2).mean()) <= 0.01
    restored = dequantise(*quantise(tokens, "float8")).astype(np.float32)
    assert np.sqrt(((restored - tokens) ** 2).mean() / (tokens**2).mean()) <= 0.04


@pytest.mark.parametrize("stored_dtype", ["int8", "float8"])
def test_quantisation_is_exact_on_zeros_and_survives_extremes(stored_dtype: str) -> None:
    tokens = np.zeros((40, 4), np.float32)
    tokens[:, 1] = 65504
    tokens[:, 2] = 1e-7
    tokens[0, 3] = -3
    restored = dequantise(*quantise(tokens, stored_dtype)).astype(np.float32)
    assert np.isfinite(restored).all()
    assert (restored[:, 0] == 0).all()
    assert np.abs(restored[:, 1] / 65504 - 1).max() < 0.01
    assert restored[0, 3] == pytest.approx(-3, rel=1e-2)
    assert measured_error(tokens, tokens) == {"error_rms": 0, "error_max": 0, "error_cosine": pytest.approx(1)}


@pytest.mark.parametrize("stored_dtype", ["int8", "float8"])
def test_the_measured_error_is_in_the_record(place: Path, kind: str, stored_dtype: str) -> None:
    feature = build(place, kind, stored_dtype)["whisper"]
    for clip_id in feature.ids:
        exact, read = tokens_of(clip_id).astype(np.float64), feature[clip_id].astype(np.float64)
        errors = feature.record(clip_id).errors
        assert errors["error_rms"] == pytest.approx(np.linalg.norm(read - exact) / np.linalg.norm(exact), rel=1e-5)
        assert errors["error_max"] == pytest.approx(np.abs(read - exact).max(), rel=1e-5)
        assert 0.99 < errors["error_cosine"] <= 1
    assert feature.dtype == np.float16


def test_a_quantised_store_without_its_error_is_refused(tmp_path: Path) -> None:
    from featurecache.store.columns import pack, unpack
    from featurecache.store.records import MAGIC, load_record

    store = build(tmp_path / "s.zarr", stored_dtype="int8")
    path = store.folder("whisper").record(0)
    header, columns = unpack(path.read_bytes(), MAGIC, "record", "")
    path.write_bytes(pack(MAGIC, header, {key: value for key, value in columns.items() if key != "error_rms"}))
    assert load_record(path, 0, make_spec("int8").fingerprint).shard == 0
    with pytest.raises(CorruptStoreError, match="measured error"):
        featurecache.open_store(store.location)["whisper"]
    assert verify_store(store).damage


def test_archives_are_smaller_where_there_is_something_to_gain(tmp_path: Path) -> None:
    sizes = {}
    for kind in ("zarr", "archive"):
        writer = featurecache.open_store(tmp_path / kind, "a").writer(
            "whisper", make_spec(shape=(64, 128)), shard_rows=4, codec=KINDS[kind][1]
        )
        writer.plan(clip_ids(4))
        with writer.begin(writer.pending()[0]) as shard_writer:
            for slot, clip_id in enumerate(clip_ids(4)):
                shard_writer.put(slot, np.round(tokens_of(clip_id, (64, 128))), source_of(clip_id))
            shard_writer.commit()
        sizes[kind] = sum(writer.committed[0].file_bytes)
        assert writer.counts[Status.OK] == 4
    assert sizes["archive"] < 0.5 * sizes["zarr"]


def test_a_foreign_reader_finds_the_spec_in_the_attributes(small_store) -> None:
    attributes = dict(zarr.open_group(small_store.location, mode="r")["whisper"].attrs)["featurecache"]
    assert attributes["fingerprint"] == small_store["whisper"].fingerprint
    assert attributes["spec"]["encoder"] == "whisper"
    assert json.loads(small_store.folder("whisper").spec.read_text()) == attributes["spec"]
