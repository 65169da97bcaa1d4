"""What a stop leaves of an open shard: a shard of its own, in every format, and a plan that stays what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_stores import clip_ids, make_spec, source_of, tokens_of

import featurecache
from featurecache.errors import WriteError
from featurecache.maintenance.repair import repair_store
from featurecache.maintenance.verify import verify_store
from featurecache.store.protocols import Status
from featurecache.store.zarr_store import ARCHIVE_CODEC

KINDS = [("s.zarr", "none", "float16"), ("s.zarr", "none", "int8"), ("s.zarr", ARCHIVE_CODEC, "float16"),
         ("s.zarr", ARCHIVE_CODEC, "int8"), ("s.wds", "none", "float16"), ("s.wds", "none", "int8")]  # fmt: skip


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(kind))
def writer(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    name, codec, dtype = request.param
    store = featurecache.open_store(tmp_path / name, mode="a")
    writer = store.writer("whisper", make_spec(stored_dtype=dtype), shard_rows=8, codec=codec)
    writer.plan(clip_ids(12))
    return writer


def begun(writer):  # type: ignore[no-untyped-def]
    """The first shard with slots 5, 1, 2 and 6 decided, out of order; 2 failed, 6 is absent."""
    shard_writer = writer.begin(writer.pending()[0])
    ids = shard_writer.shard.ids
    for slot in (5, 1):
        shard_writer.put(slot, tokens_of(ids[slot]), source_of(ids[slot]))
    shard_writer.fail(2, "a reason")
    shard_writer.absent(6, "no sound", source_of(ids[6]))
    return shard_writer


@pytest.mark.parametrize("failed", [True, False])
def test_what_is_decided_is_committed_and_nothing_else(writer, failed: bool) -> None:  # type: ignore[no-untyped-def]
    whole_plan = writer.pending()
    ids = clip_ids(12)
    partial_shard = begun(writer).commit_partial(failed=failed)
    assert partial_shard == [ids[slot] for slot in ((1, 2, 5, 6) if failed else (1, 5, 6))]
    feature = featurecache.open_store(writer.location)["whisper"]
    assert list(feature.ids) == [ids[1], ids[5]]
    assert feature.record(ids[6]).status is Status.ABSENT
    assert (feature.record(ids[2]) is not None) == failed
    assert [shard.number for shard in writer.pending()] == [shard.number for shard in whole_plan]
    assert writer.superseded(whole_plan[0]) == set(partial_shard)
    assert writer.superseded(whole_plan[1]) == set()
    report = verify_store(featurecache.open_store(writer.location))
    assert not report.damage
    assert [notice.message for notice in report.notices if notice.kind == "pending"] == [
        f"{8 - len(partial_shard)} planned clips are not extracted",
        "4 planned clips are not extracted",
    ]


def test_rows_are_those_of_a_shard_that_was_not_stopped(writer) -> None:  # type: ignore[no-untyped-def]
    ids = clip_ids(12)
    partial_shard = begun(writer).commit_partial()
    first, second = writer.pending()
    with writer.begin(first) as shard_writer:
        for slot, clip_id in enumerate(first.ids):
            if clip_id in partial_shard:
                shard_writer.mark_superseded(slot)
            else:
                shard_writer.put(slot, tokens_of(clip_id), source_of(clip_id))
        shard_writer.commit()
    with writer.begin(second) as shard_writer:
        for slot, clip_id in enumerate(second.ids):
            shard_writer.put(slot, tokens_of(clip_id), source_of(clip_id))
        shard_writer.commit()
    store = featurecache.open_store(writer.location)
    feature = store["whisper"]
    assert sorted(feature.ids) == sorted(set(ids) - {ids[2], ids[6]})
    assert feature.counts == {Status.OK: 10, Status.FAILED: 1, Status.ABSENT: 1}
    assert feature.record(ids[2]).reason == "a reason"
    for clip_id in feature.ids:
        assert np.allclose(feature[clip_id].astype(np.float32), tokens_of(clip_id), atol=0.05)
    assert not verify_store(store).damage
    assert not repair_store(featurecache.open_store(writer.location, mode="a")).mended


def test_a_second_stop_keeps_what_the_first_one_did_not(writer) -> None:  # type: ignore[no-untyped-def]
    first = set(begun(writer).commit_partial())
    shard = writer.pending()[0]
    shard_writer = writer.begin(shard)
    for slot, clip_id in enumerate(shard.ids):
        if clip_id in first:
            shard_writer.mark_superseded(slot)
    shard_writer.put(0, tokens_of(shard.ids[0]), source_of(shard.ids[0]))
    assert shard_writer.commit_partial() == [shard.ids[0]]
    assert writer.superseded(shard) == first | {shard.ids[0]}
    assert not verify_store(featurecache.open_store(writer.location)).damage


def test_a_shard_without_anything_to_keep_leaves_nothing(writer) -> None:  # type: ignore[no-untyped-def]
    shard_writer = writer.begin(writer.pending()[0])
    shard_writer.fail(0, "a reason")
    assert shard_writer.commit_partial(failed=False) == []
    assert len(writer.shards()) == 2
    assert not list(writer.folder.temporary.iterdir())


def test_a_commit_that_was_refused_can_be_tried_again(writer, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    shard = writer.pending()[1]
    shard_writer = writer.begin(shard)
    for slot, clip_id in enumerate(shard.ids):
        shard_writer.put(slot, tokens_of(clip_id), source_of(clip_id))
    with monkeypatch.context() as patch:
        patch.setattr("featurecache.store.writer.publish_bytes", refused)
        with pytest.raises(WriteError):
            shard_writer.commit()
    assert shard_writer.commit_partial() == list(shard.ids)
    assert not list(writer.folder.temporary.iterdir())
    assert not verify_store(featurecache.open_store(writer.location)).damage


def refused(*args: object) -> bool:
    raise OSError(28, "No space left on device")
