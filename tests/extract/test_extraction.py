"""Extraction: every clip is decided once, and its bytes do not depend on how the work is divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from awkward_clips import NAMES, NUM_PLAIN
from stored_rows import file_hashes
from stub_encoders import stub_encoders

from featurecache import load_clips, open_store
from featurecache.clips.clip_list import ClipList
from featurecache.encoders import Encoder
from featurecache.errors import MediaError
from featurecache.extract.prepare import reason_of
from featurecache.extract.run import extract, parse_rank
from featurecache.extract.work_units import plan_work_units
from featurecache.media.decode import decode
from featurecache.store.protocols import Status


def test_every_clip_is_ok_absent_or_failed_with_its_reason(reference: Path) -> None:
    store = open_store(reference)
    assert store.names == sorted(NAMES)
    statuses = {
        name: {record.id: record.status.name.lower() for record in store[name].records()} for name in store.names
    }
    plain = {f"c{number}": "ok" for number in range(NUM_PLAIN)} | {"part": "ok"}
    broken = {"bad": "failed", "gone": "failed", "words": "absent"}
    assert statuses["whisper"] == plain | broken | {"mute": "absent", "voice": "ok", "still": "absent"}
    assert statuses["eva-global"] == plain | broken | {"mute": "ok", "voice": "absent", "still": "ok"}
    assert statuses["eva-temporal"] == plain | broken | {"mute": "ok", "voice": "absent", "still": "absent"}
    assert store["whisper"].record("mute").reason == "no audio stream"
    assert "no such file" in store["eva-global"].record("gone").reason
    assert "mute" not in store["whisper"]


def test_stored_tokens_are_what_the_encoder_gives_for_the_clip_alone(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder]
) -> None:
    store = open_store(reference)
    for name, encoder in encoders.items():
        for clip_id in ("c2", "part"):
            view = decode(clips.by_id(clip_id), [encoder.view])[0]
            tokens = encoder.pool(encoder.forward(encoder.preprocess(view)[None]))[0].numpy()
            assert np.array_equal(store[name][clip_id], tokens.astype(np.float16))


@pytest.mark.parametrize("workers", [1, 5])
def test_worker_count_does_not_change_a_byte(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path, workers: int
) -> None:
    extract(open_store(tmp_path / "s", "a"), clips, encoders, shard_clips=4, workers=workers)
    assert file_hashes(tmp_path / "s") == file_hashes(reference)


def test_order_in_the_list_does_not_change_a_clips_tokens(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    other = open_store(tmp_path / "s", "a")
    extract(other, ClipList(list(clips)[::-1]), encoders, shard_clips=2)
    store = open_store(reference)
    for name in NAMES:
        feature = open_store(tmp_path / "s")[name]
        assert sorted(feature.ids) == sorted(store[name].ids)
        for clip_id in feature.ids:
            assert np.array_equal(feature[clip_id], store[name][clip_id])


def test_batches_of_a_fixed_shape_do_not_depend_on_which_neighbours_failed(
    collection: Path, encoders: dict[str, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    encoder = encoders["whisper"]
    forward = encoder.forward
    monkeypatch.setattr(encoder, "batch_size", 4)
    monkeypatch.setattr(encoder, "forward", lambda batch: (shapes.append(batch.shape), forward(batch))[1])
    clips = load_clips(collection / "clips.jsonl")
    chosen = [clips.by_id(clip_id) for clip_id in ("c0", "bad", "c1", "mute", "c2")]
    extract(open_store(tmp_path / "with", "a"), ClipList(chosen), {"whisper": encoder}, shard_clips=8)
    swapped = [clips.by_id(clip_id) for clip_id in ("c0", "c4", "c1", "c3", "c2")]
    extract(open_store(tmp_path / "without", "a"), ClipList(swapped), {"whisper": encoder}, shard_clips=8)
    assert {shape[0] for shape in shapes} == {4}
    assert len(shapes) == 4
    for clip_id in ("c0", "c1", "c2"):
        first, second = (open_store(tmp_path / store_name)["whisper"][clip_id] for store_name in ("with", "without"))
        assert np.array_equal(first, second)


def test_ranks_together_do_everything_once(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    done = []
    for rank in range(3):
        stats = extract(open_store(tmp_path / "s", "a"), clips, encoders, shard_clips=4, rank=(rank, 3))
        done.append(stats.num_clips)
    assert sum(done) == len(clips)
    assert file_hashes(tmp_path / "s") == file_hashes(reference)


def test_a_rank_that_starts_late_takes_no_unit_of_another(clips: ClipList, tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", "a")
    extract(store, clips, stub_encoders(), shard_clips=4, rank=(0, 2))
    writers = {name: store.writer(name, encoder.spec("float16")) for name, encoder in stub_encoders().items()}
    units = plan_work_units(writers, clips)
    assert [bool(unit.shards) for unit in units] == [False, True, False, True]


def test_a_clip_is_decoded_once_for_all_features(
    clips: ClipList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurecache.extract import prepare as preparation

    decoded = []
    decode_each = preparation.decode_each
    monkeypatch.setattr(
        preparation, "decode_each", lambda clip, *given: (decoded.append(clip.id), decode_each(clip, *given))[1]
    )
    extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), shard_clips=4)
    assert sorted(decoded) == sorted(clips.ids)


def test_features_of_other_shard_sizes_still_share_one_decode(
    clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    store = open_store(tmp_path / "s", "a")
    rows = {"whisper": 8, "eva-global": 2, "eva-temporal": 4}
    writers = {name: store.writer(name, encoders[name].spec("float16"), shard_rows=rows[name]) for name in NAMES}
    for writer in writers.values():
        writer.plan(clips.ids)
    units = plan_work_units(writers, clips)
    assert [len(unit.shards) for unit in units] == [1 + 4 + 2, 1 + 3 + 2]
    stats = extract(store, clips, encoders)
    assert stats.num_clips == len(clips)


def test_output_that_is_not_finite_fails_that_clip_alone(
    clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoders["whisper"]
    pool = encoder.pool
    calls = []

    def poisoned(tokens):  # type: ignore[no-untyped-def]
        calls.append(1)
        return pool(tokens) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(encoder, "pool", poisoned)
    stats = extract(open_store(tmp_path / "s", "a"), clips[:4], {"whisper": encoder}, shard_clips=4)
    assert (stats.by_feature["whisper"].ok, stats.by_feature["whisper"].failed) == (3, 1)
    record = open_store(tmp_path / "s")["whisper"].record("c1")
    assert record.status is Status.FAILED
    assert "cannot be stored" in record.reason


def test_a_shard_is_finished_though_some_of_its_clips_left_the_list(clips: ClipList, tmp_path: Path) -> None:
    some = {"loudness": stub_encoders()["loudness"]}
    store = open_store(tmp_path / "s", "a")
    writer = store.writer("loudness", stub_encoders()["loudness"].spec("float16"), shard_rows=4)
    writer.plan(clips[:6].ids)
    extract(store, clips[:2], some)
    feature = open_store(tmp_path / "s")["loudness"]
    assert list(feature.ids) == ["c0", "c1"]
    assert feature.record("c2").reason.startswith("not in the clip list")
    assert feature.record("c4") is None  # its shard has no clip of this list, and waits


def test_a_unit_that_another_process_works_on_is_left_to_it(clips: ClipList, tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", "a")
    writer = store.writer("loudness", stub_encoders()["loudness"].spec("float16"), shard_rows=4)
    writer.plan(clips.ids)
    with writer.claim(writer.pending()[1]):
        stats = extract(store, clips, stub_encoders(), shard_clips=4)
    assert (stats.num_clips, stats.num_left) == (len(clips) - 4, 4)
    assert extract(store, clips, stub_encoders()).num_clips == 4


def test_reasons_hold_neither_path_nor_clip_id() -> None:
    error = OSError(28, "No space left on device", "/somewhere/private/clip.mp4")
    assert reason_of(error) == "No space left on device"
    assert reason_of(MediaError('clip "x"', expected="its video file", got="no such file")) == (
        "expected its video file, got no such file"
    )
    assert reason_of(ValueError("two\nlines")) == "ValueError: two lines"


def test_ranks_are_read_from_text() -> None:
    assert parse_rank("2/4") == (2, 4)
    for wrong in ("4/4", "-1/4", "1", "a/b", "0/0"):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_rank(wrong)
