"""What every store promises, whatever its format and dtype."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from small_stores import KINDS, SHAPE, build, clip_ids, contents, fill, make_spec, source_of, tokens_of

import featurecache
from featurecache.errors import FingerprintError, MissingFeatureError, StoreError, StoreNotFoundError
from featurecache.spec import STORED_DTYPES
from featurecache.store import shard_files
from featurecache.store.formats import FORMATS
from featurecache.store.protocols import Feature, FeatureWriter, Status, Store
from featurecache.store.shard_format import ShardFormat

TOLERANCE = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 0, "int8": 2e-2, "float8": 0.1}


@pytest.mark.parametrize("stored_dtype", STORED_DTYPES)
def test_tokens_read_back_alone_and_in_batches(place: Path, kind: str, stored_dtype: str) -> None:
    feature = featurecache.open_store(build(place, kind, stored_dtype).location)["whisper"]
    ids = list(feature.ids)[::-1]
    expected = np.stack([tokens_of(clip_id) for clip_id in ids])
    batch = feature.read(ids)
    assert batch.dtype == feature.dtype
    assert np.abs(batch.astype(np.float32) - expected).max() <= TOLERANCE[stored_dtype] * np.abs(expected).max()
    for row, clip_id in zip(batch, ids, strict=True):
        assert row.tobytes() == feature[clip_id].tobytes()
    assert feature.read(ids).tobytes() == batch.tobytes()  # from the maps, after first touch


def test_the_protocols_are_implemented(place: Path, kind: str) -> None:
    store = build(place, kind)
    assert isinstance(store["whisper"], Feature)
    writer = store.writer("whisper", make_spec())
    for name in (*vars(FeatureWriter), *vars(Store)):
        if not name.startswith("_"):
            assert hasattr(writer, name) or hasattr(store, name), name


@pytest.mark.parametrize("shard_format", FORMATS.values(), ids=FORMATS)
def test_every_registered_format_is_chosen_by_name_and_seen_in_the_files(
    tmp_path: Path, shard_format: ShardFormat
) -> None:
    assert isinstance(shard_format, ShardFormat)
    assert shard_format.codecs[0] == "none"
    for ending in shard_format.endings:
        created = featurecache.open_store(tmp_path / f"by-name{ending}", "a")
        created.writer("whisper", make_spec())
        assert created.format.name == shard_format.name
    location = tmp_path / "no-ending"
    featurecache.open_store(location, "a", format=shard_format.name).writer("whisper", make_spec())
    assert featurecache.open_store(location).format.name == shard_format.name


def test_ids_are_in_row_order_and_leave_out_clips_without_tokens(place: Path, kind: str) -> None:
    ids = clip_ids(12)
    feature = build(place, kind)["whisper"]
    assert list(feature.ids) == [*ids[:3], *ids[6:], ids[3]]  # the retried clip lies on a later shard
    assert len(feature) == 10
    assert feature.ids[1:3] == ids[1:3]
    assert ids[3] in feature
    assert ids[5] not in feature
    assert "nothing" not in feature
    assert feature.counts == {Status.OK: 10, Status.FAILED: 1, Status.ABSENT: 1}


def test_records_say_what_became_of_each_clip(place: Path, kind: str) -> None:
    ids = clip_ids(12)
    feature = build(place, kind)["whisper"]
    failed, absent, ok = (feature.record(ids[place]) for place in (5, 4, 0))
    assert failed is not None
    assert absent is not None
    assert ok is not None
    assert (failed.status, failed.reason) == (Status.FAILED, "the decoder gave up")
    assert (absent.status, absent.reason) == (Status.ABSENT, "no audio stream")
    assert ok.source == source_of(ids[0])
    assert ok.absmax == pytest.approx(np.abs(tokens_of(ids[0])).max(), rel=1e-3)
    assert feature.record("nothing") is None
    assert sorted(record.id for record in feature.records()) == sorted(ids)
    queried_ids = ["nothing", *ids[::-1], "zzz"]
    expected = [-1, *(feature.record(clip_id).status for clip_id in ids[::-1]), -1]
    assert feature.statuses(queried_ids).tolist() == expected
    assert feature.statuses([]).tolist() == []


def test_missing_clips_are_all_named_with_their_reasons_and_out_is_untouched(place: Path, kind: str) -> None:
    ids = clip_ids(12)
    feature = build(place, kind)["whisper"]
    out = np.full((4, *SHAPE), 7, np.float16)
    with pytest.raises(MissingFeatureError, match="the decoder gave up") as caught:
        feature.read([ids[0], ids[5], "nothing", ids[4]], out)
    assert caught.value.clip_ids == [ids[5], "nothing", ids[4]]
    assert "not extracted" in str(caught.value)
    assert (out == 7).all()
    with pytest.raises(KeyError):
        feature["nothing"]


def test_a_misspelt_clip_suggests_the_near_one(small_store) -> None:
    with pytest.raises(MissingFeatureError, match='Did you mean "set/clip_001"'):
        small_store["whisper"]["set/clip_0001"]


def test_out_is_checked(small_store) -> None:
    feature = small_store["whisper"]
    ids = clip_ids(2)
    out = np.empty((2, *SHAPE), np.float16)
    assert feature.read(ids, out) is out
    for wrong in (np.empty((3, *SHAPE), np.float16), np.empty((2, *SHAPE), np.float32), out.transpose(0, 2, 1)):
        with pytest.raises(ValueError, match="out: expected C-contiguous"):
            feature.read(ids, wrong)


def test_bfloat16_is_read_into_the_bits_of_a_tensor(tmp_path: Path) -> None:
    feature = build(tmp_path / "b.zarr", stored_dtype="bfloat16")["whisper"]
    assert feature.dtype == np.dtype(ml_dtypes.bfloat16)
    bits = np.empty((2, *SHAPE), np.int16)
    feature.read(clip_ids(2), bits)
    assert bits.tobytes() == feature.read(clip_ids(2)).tobytes()


def test_views_are_read_only_and_zero_copy(small_store) -> None:
    view = small_store["whisper"]["set/clip_001"]
    assert not view.flags.writeable
    assert not view.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_equal_content_gives_equal_bytes_in_any_order(tmp_path: Path, kind: str, order: list[int]) -> None:
    expected = contents(build(tmp_path / "a" / KINDS[kind][0], kind).root)
    location = tmp_path / "b" / KINDS[kind][0]
    store = featurecache.open_store(location, mode="a")
    writer = store.writer("whisper", make_spec(), shard_rows=4, codec=KINDS[kind][1])
    ids = clip_ids(12)
    writer.plan(ids[:10])
    for shard in reversed(writer.pending()):
        with writer.begin(shard) as shard_writer:
            for slot in sorted(range(len(shard.ids)), key=lambda slot: order[slot]):
                clip_id = shard.ids[slot]
                if clip_id in (ids[3], ids[5]):
                    shard_writer.fail(slot, "the decoder gave up", source_of(clip_id))
                elif clip_id == ids[4]:
                    shard_writer.absent(slot, "no audio stream", source_of(clip_id))
                else:
                    shard_writer.put(slot, tokens_of(clip_id), source_of(clip_id))
            shard_writer.commit()
    writer.plan(ids)
    writer.retry([ids[3]])
    fill(writer)
    assert contents(location) == expected


def test_growing_touches_nothing_that_is_there(place: Path, kind: str) -> None:
    store = build(place, kind)
    before = contents(store.root)
    writer = store.writer("whisper", make_spec())
    writer.plan(clip_ids(30))
    fill(writer)
    other = store.writer("eva", make_spec("float32", (3, 4)))
    other.plan(clip_ids(2))
    fill(other)
    after = contents(store.root)
    derived = {f"whisper/{store.format.spec_copy}"}
    assert all(after[path] == data for path, data in before.items() if path not in derived)
    assert store.names == ["eva", "whisper"]
    assert store["eva"].shape == (3, 4)
    assert len(store["whisper"]) == 28


def test_planning_twice_plans_once(small_store) -> None:
    writer = small_store.writer("whisper", make_spec())
    before = contents(small_store.root)
    writer.plan(clip_ids(12))
    assert not writer.pending()
    assert contents(small_store.root) == before


def test_a_retry_is_planned_once_while_it_is_pending(small_store) -> None:
    writer = small_store.writer("whisper", make_spec())
    bad = clip_ids(12)[5]
    writer.retry([bad])
    writer.retry([bad])
    assert [shard.ids for shard in writer.pending()] == [(bad,)]
    record = small_store["whisper"].record(bad)
    assert record.status is Status.FAILED  # until the retry is committed
    fill(writer)
    assert writer.record(bad).status is Status.OK
    assert bad in featurecache.open_store(small_store.location)["whisper"]


def test_another_spec_is_refused_and_every_field_named(small_store) -> None:
    with pytest.raises(FingerprintError, match=r"tap\.blocks: 4 != 5") as caught:
        small_store.writer("whisper", make_spec(tap={"blocks": 5}, compute_dtype="bfloat16"))
    assert 'compute_dtype: "float32" != "bfloat16"' in str(caught.value)
    assert small_store.writer("whisper", make_spec(provenance={"hub": "elsewhere"})).spec == make_spec()


def test_an_unknown_feature_suggests_the_near_one(place: Path, kind: str) -> None:
    store = build(place, kind)
    with pytest.raises(StoreNotFoundError, match='Did you mean "whisper"'):
        store["wisper"]
    with pytest.raises(StoreNotFoundError, match="no such folder"):
        featurecache.open_store(place.with_name("nowhere.zarr"))
    with pytest.raises(StoreError, match="mode"):
        featurecache.open_store(place, "w")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match='mode "a"'):
        featurecache.open_store(place).writer("new", make_spec())


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "whisper.scales", "a b", "x" * 101, "zarr.json"])
def test_feature_names_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="feature name"):
        featurecache.open_store(tmp_path / "s.zarr", "a").writer(name, make_spec())
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
@pytest.mark.parametrize("stored_dtype", ["float16", "int8"])
def test_numbers_that_cannot_be_stored_are_refused(tmp_path: Path, bad: float, stored_dtype: str) -> None:
    writer = featurecache.open_store(tmp_path / "s.zarr", "a").writer("w", make_spec(stored_dtype))
    writer.plan(["a"])
    tokens = tokens_of("a")
    tokens[2, 3] = bad
    with writer.begin(writer.pending()[0]) as shard_writer:
        with pytest.raises(ValueError, match="finite"):
            shard_writer.put(0, tokens, "")
        with pytest.raises(ValueError, match="shape"):
            shard_writer.put(0, tokens[:2], "")
        with pytest.raises(ValueError, match="undecided"):
            shard_writer.commit()
        shard_writer.fail(0, "not finite")
        with pytest.raises(ValueError, match="decided before"):
            shard_writer.absent(0, "again")
        shard_writer.commit()
    assert writer.counts[Status.FAILED] == 1


@pytest.mark.parametrize("bad", ["", "a\nb", "../x", "a//b", "/abs", "a\\b", " a", "x" * 256, "a/../b", "\ud800"])
def test_ids_that_a_clip_list_refuses_are_refused(tmp_path: Path, bad: str) -> None:
    writer = featurecache.open_store(tmp_path / "s.zarr", "a").writer("w", make_spec())
    with pytest.raises(StoreError, match="clip ids"):
        writer.plan(["good", bad])
    with pytest.raises(StoreError, match="stands twice"):
        writer.plan(["good", "good"])
    assert not writer.pending()


def test_stores_and_features_travel_to_other_processes(place: Path, kind: str) -> None:
    store = build(place, kind)
    feature = pickle.loads(pickle.dumps(featurecache.open_store(place)["whisper"]))
    assert feature["set/clip_001"].tobytes() == store["whisper"]["set/clip_001"].tobytes()
    assert pickle.loads(pickle.dumps(store)).names == ["whisper"]


def test_a_moved_store_is_the_same_store(place: Path, kind: str) -> None:
    before = build(place, kind)["whisper"]
    moved = place.with_name("elsewhere")
    place.rename(moved)
    after = featurecache.open_store(moved)["whisper"]
    assert after.fingerprint == before.fingerprint
    assert list(after.ids) == list(before.ids)
    assert after["set/clip_001"].shape == SHAPE


def test_reading_imports_no_torch(small_store) -> None:
    code = (
        "import sys, featurecache; from featurecache.store.prefetching import iterate\n"
        f"store = featurecache.open_store({small_store.location!r})\n"
        "store['whisper'].read(list(store['whisper'].ids)); list(iterate(store))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_kept_names_a_machine_or_a_time(place: Path, kind: str) -> None:
    words = [word for word in (str(place.parent), socket.gethostname()) if len(word) > 3]
    for path, data in contents(build(place, kind).root).items():
        assert not any(word.encode() in data for word in words), path


@pytest.mark.parametrize("stored_dtype", ["float16", "int8"])
def test_large_batches_copied_by_several_threads_are_the_same(
    tmp_path: Path, stored_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = build(tmp_path / "s.zarr", stored_dtype=stored_dtype)["whisper"]
    ids = list(feature.ids)
    alone = feature.read(ids).tobytes()
    monkeypatch.setattr(shard_files, "PARALLEL_BYTES", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert shard_files.copy_threads(1) == 4
    for _ in range(2):
        assert feature.read(ids).tobytes() == alone


def test_rows_are_read_in_order_at_random_and_cold(tmp_path: Path) -> None:
    writer = featurecache.open_store(tmp_path / "s.zarr", "a").writer("whisper", make_spec(shape=(64, 160)))
    ids = clip_ids(400)  # 8 MB: more than one run
    writer.plan(ids)
    fill(writer)
    (shard,) = (tmp_path / "s.zarr/whisper/c").glob("*/0/0")
    shuffled = [ids[place] for place in np.random.default_rng(0).permutation(len(ids))]
    for order in (ids, shuffled):
        with shard.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        feature = featurecache.open_store(tmp_path / "s.zarr")["whisper"]
        for _ in range(2):
            for begin in range(0, len(order), 150):
                some = order[begin : begin + 150]
                expected = np.stack([tokens_of(clip_id, (64, 160)) for clip_id in some]).astype(np.float16)
                assert np.array_equal(feature.read(some), expected)


def test_more_rows_than_one_call_may_fill_are_read_at_once(tmp_path: Path) -> None:
    """A feature of one small token a clip, such as CLS: thousands of rows lie within one run of the disk."""
    store = featurecache.open_store(tmp_path / "features.zarr", mode="a")
    writer = store.writer("cls", make_spec(shape=(1, 4)))
    ids = clip_ids(2 * shard_files.RUN_ROWS + 5)
    writer.plan(ids)
    fill(writer)
    read = featurecache.open_store(tmp_path / "features.zarr")["cls"].read(ids)
    assert np.array_equal(read[-1], tokens_of(ids[-1], (1, 4)).astype(np.float16))
    assert np.array_equal(read[shard_files.RUN_ROWS], tokens_of(ids[shard_files.RUN_ROWS], (1, 4)).astype(np.float16))
