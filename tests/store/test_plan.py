"""Plans: how clips are divided over shards, and every bound from both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurecache.errors import CorruptStoreError
from featurecache.store import columns
from featurecache.store.layout import MAX_SHARD_ROWS, MAX_SHARDS, FeatureFolder
from featurecache.store.plan import MAGIC, ShardPlan, load_segment, make_segment, publish_segment

IDS = [f"clip {number}".encode() for number in range(7)]


def planned(tmp_path: Path, *segments) -> ShardPlan:
    folder = FeatureFolder(tmp_path, "whisper")
    for path in (folder.plan, folder.temporary):
        path.mkdir(parents=True, exist_ok=True)
    for segment in segments:
        assert publish_segment(folder, segment)
    return ShardPlan(folder)


def written(tmp_path: Path, change: dict, counts=None) -> Path:
    header, arrays = columns.unpack(make_segment(2, 5, 3, "none", IDS).pack(), MAGIC, "segment", "")
    if counts is not None:
        arrays = arrays | {"counts": np.array(counts, "<u4")}
    path = tmp_path / "00002"
    path.write_bytes(columns.pack(MAGIC, header | change, arrays))
    return path


@pytest.mark.parametrize(
    ("clips", "counts"), [(0, []), (1, [1]), (2, [2]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (7, [3, 3, 1])]
)
def test_all_shards_of_a_segment_but_the_last_are_full(clips, counts):
    segment = make_segment(0, 5, 3, "none", IDS[:clips])
    assert segment.counts.tolist() == counts
    assert (segment.num_clips, segment.end_shard) == (clips, 5 + len(counts))
    assert [end - begin for _, begin, end in segment.shards()] == counts
    assert [shard for shard, _, _ in segment.shards()] == list(range(5, 5 + len(counts)))
    assert [id for _, begin, end in segment.shards() for id in segment.encoded_ids(begin, end)] == IDS[:clips]


def test_ids_of_a_range_are_those_of_the_whole():
    segment = make_segment(0, 0, 3, "none", IDS)
    assert segment.encoded_ids() == IDS
    for first in range(8):
        assert segment.encoded_ids(first) == IDS[first:]
        for last in range(first, 8):
            assert segment.encoded_ids(first, last) == IDS[first:last]


def test_a_segment_is_read_as_it_was_written(tmp_path):
    segment = load_segment(written(tmp_path, {}), 2)
    assert (segment.number, segment.first_shard, segment.shard_rows, segment.codec) == (2, 5, 3, "none")
    assert (segment.counts.tolist(), segment.encoded_ids()) == ([3, 3, 1], IDS)
    assert load_segment(written(tmp_path, {"number": 4}), None).number == 4


@pytest.mark.parametrize(
    "change",
    [{"first_shard": 0}, {"first_shard": MAX_SHARDS}, {"shard_rows": MAX_SHARD_ROWS}],
)
def test_the_largest_and_smallest_plans_are_read(tmp_path, change):
    assert load_segment(written(tmp_path, change), 2).num_clips == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_shard": -1}, "at most 10000000 shards, got first shard -1 of 3"),
        ({"first_shard": MAX_SHARDS + 1}, "at most 10000000 shards"),
        ({"first_shard": "5"}, "at most 10000000 shards"),
        ({"shard_rows": 0}, "1 to 65536 rows per shard"),
        ({"shard_rows": 2}, "at most 2 clips per shard, got 3"),
        ({"shard_rows": MAX_SHARD_ROWS + 1}, "1 to 65536 rows per shard"),
        ({"shard_rows": "3"}, "1 to 65536 rows per shard"),
        ({"codec": 5}, "a codec, got 5"),
        ({"format": 2}, "format 1, got 2"),
        ({"number": 3}, "segment 2, got segment 3"),
    ],
)
def test_a_segment_that_contradicts_itself_is_refused(tmp_path, change, message):
    with pytest.raises(CorruptStoreError, match=message):
        load_segment(written(tmp_path, change), 2)


def test_a_segment_that_states_no_number_or_other_counts_is_refused(tmp_path):
    with pytest.raises(CorruptStoreError, match="segment None, got segment 'x'"):
        load_segment(written(tmp_path, {"number": "x"}), None)
    with pytest.raises(CorruptStoreError, match="6 texts inside"):
        load_segment(written(tmp_path, {}, counts=[3, 3]), 2)
    with pytest.raises(CorruptStoreError, match="2147483650 texts inside"):  # a sum beyond 32 bits does not wrap
        load_segment(written(tmp_path, {"shard_rows": MAX_SHARD_ROWS}, counts=[MAX_SHARD_ROWS] * 32768 + [2]), 2)


def test_the_rows_of_a_plan_end_with_its_last_clip(tmp_path):
    empty = planned(tmp_path)
    assert (empty.end_shard, empty.num_rows, list(empty.shards())) == (0, 0, [])
    first, second = make_segment(0, 0, 3, "none", IDS[:4]), make_segment(1, 2, 3, "none", IDS[4:])
    plan = planned(tmp_path, first, second, make_segment(2, 3, 3, "none", []))
    assert (plan.end_shard, plan.num_rows) == (3, 9)
    assert [shard[1:] for shard in plan.shards()] == [(0, 0, 3), (1, 3, 4), (2, 0, 3)]
    assert [shard[0].number for shard in plan.shards()] == [0, 0, 1]
    assert not publish_segment(FeatureFolder(tmp_path, "whisper"), replace(second, codec="zstd"))


def test_a_planned_shard_without_clips_is_passed_over(tmp_path):
    plan = planned(tmp_path, make_segment(0, 0, 3, "none", IDS[:4], counts=[3, 0, 1]))
    assert [shard[1:] for shard in plan.shards()] == [(0, 0, 3), (2, 3, 4)]
    assert plan.num_rows == 7


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (make_segment(1, 1, 3, "none", IDS), "shards from 2, 3 rows each, got from 1, 3 rows each"),
        (make_segment(1, 2, 4, "none", IDS), "shards from 2, 3 rows each, got from 2, 4 rows each"),
        (make_segment(2, 2, 3, "none", IDS), "segment 1 before it"),
    ],
)
def test_segments_that_overlap_or_leave_one_out_are_refused(tmp_path, second, message):
    with pytest.raises(CorruptStoreError, match=message):
        planned(tmp_path, make_segment(0, 0, 3, "none", IDS[:4]), second)


def test_a_segment_may_leave_shards_out(tmp_path):
    plan = planned(tmp_path, make_segment(0, 0, 3, "none", IDS[:4]), make_segment(1, 9, 3, "none", IDS[4:]))
    assert (plan.end_shard, plan.num_rows) == (10, 30)
