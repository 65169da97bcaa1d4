"""Duplicates and leaks on planted ones, and the rule that finds them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import planted
import pytest
import recordings as rec
import voices

from featurecache.clips.clip_list import Clip
from featurecache.errors import CorruptStoreError
from featurecache.explore import calibration as cal
from featurecache.explore import calibration_run
from featurecache.explore.calibration_run import AUGMENTATIONS, augment, known_calibration
from featurecache.explore.duplicates import Duplicates, Pair, find_duplicates, find_leaks, groups, near_pairs
from featurecache.explore.index_files import CALIBRATION, IndexFiles
from featurecache.explore.projection import COPIES
from featurecache.explore.search import Neighbourhood, open_neighbourhood, update_indices

COUNT = 80
PLANTED_STORE = {"c050": ("c002", 0.0), "c051": ("c003", 0.05)}


@pytest.fixture(scope="module")
def planted_store(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("doubles")
    store = planted.write_store(folder / "s.zarr", planted.planted_clips(COUNT), PLANTED_STORE)
    update_indices(store)
    return store, open_neighbourhood(store, comparison=COPIES)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Six sentences by six speakers each and four copies: store, list, and clips compared by content."""
    store, clips = voices.write_voices(tmp_path_factory.mktemp("spoken") / "data")
    update_indices(store)
    return store, clips, open_neighbourhood(store, comparison=COPIES)


PLANTED = {frozenset((way, f"s{sentence}p{speaker}")) for way, (sentence, speaker) in voices.COPIES.items()}


def pairs_of(duplicates: Duplicates) -> set[frozenset[str]]:
    return {frozenset((pair.a, pair.b)) for pair in duplicates.pairs}


def test_one_sentence_by_many_speakers_is_no_pair_and_its_copies_are(spoken) -> None:  # type: ignore[no-untyped-def]
    """By averages all of them are alike: every sentence is as near to the other speakers' as to its own copy."""
    store, clips, neighbourhood = spoken
    rule = known_calibration(store, neighbourhood)
    alike = pairs_by_averages(store, neighbourhood, clips, rule)
    assert len(alike) > 25
    assert alike >= PLANTED
    assert pairs_of(find_duplicates(store, neighbourhood, clips, rule)) == PLANTED


def pairs_by_averages(store, neighbourhood, clips, rule) -> set[frozenset[str]]:  # type: ignore[no-untyped-def]
    specs = {name: store.spec(name) for name in neighbourhood.names}
    anything = dataclasses.replace(rule, agreement=-1.0)
    near = near_pairs(neighbourhood, specs, anything, lambda a, b: 1.0, clips.ids)
    return {frozenset((pair.a, pair.b)) for pair in near.pairs}


def test_without_a_calibration_near_pairs_are_shown_and_not_left_out(spoken) -> None:  # type: ignore[no-untyped-def]
    store, clips, neighbourhood = spoken
    rule = known_calibration(store, neighbourhood)
    assert not rule.calibrated
    assert "not calibrated" in rule.describe()
    assert find_duplicates(store, neighbourhood, clips, rule).exclusion == []
    measured = dataclasses.replace(rule, num_clips=40)
    assert find_duplicates(store, neighbourhood, clips, measured).exclusion == list(voices.COPIES)


def test_leaks_are_judged_in_time_too(spoken) -> None:  # type: ignore[no-untyped-def]
    store, clips, neighbourhood = spoken
    rule = dataclasses.replace(known_calibration(store, neighbourhood), num_clips=40)
    originals = [clip.id for clip in clips if clip.id not in voices.COPIES]
    leaks = find_leaks(store, neighbourhood, clips, originals, list(voices.COPIES), rule)
    assert pairs_of(leaks) == PLANTED
    assert set(leaks.exclusion) == {f"s{sentence}p{speaker}" for sentence, speaker in voices.COPIES.values()}


def test_false_positives_are_counted_on_the_same_text_by_other_speakers(spoken) -> None:  # type: ignore[no-untyped-def]
    store, clips, neighbourhood = spoken
    chosen = [clips.by_id("s1p1"), clips.by_id("s3p4")]
    pairs = calibration_run._hard_negatives(store, neighbourhood, clips, chosen)
    same_text_pairs = [(clips.by_id(a), clips.by_id(b)) for a, b, same_text in pairs if same_text]
    assert len(same_text_pairs) >= 10
    assert all(a.text == b.text and a.speaker != b.speaker for a, b in same_text_pairs)
    assert all(clips.by_id(a).text != clips.by_id(b).text for a, b, same_text in pairs if not same_text)


def test_media_that_cannot_be_compared_are_counted_and_no_pair(planted_store, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store, clips = planted_store
    listed = planted.write_list(tmp_path / "clips.jsonl", planted.planted_clips(COUNT))
    duplicates = find_duplicates(store, clips, listed, known_calibration(store, clips))
    assert [(pair.a, pair.b, pair.kind) for pair in duplicates.pairs] == [("c002", "c050", "same content")]
    assert duplicates.exclusion == ["c050"]
    assert duplicates.undecided >= 1


def test_an_exact_leak_is_reported_with_the_training_side_first(planted_store, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store, clips = planted_store
    listed = planted.write_list(tmp_path / "clips.jsonl", planted.planted_clips(COUNT))
    leaks = find_leaks(store, clips, listed, ["c001", "c050"], ["c002", "c003"], known_calibration(store, clips))
    assert [(pair.a, pair.b, pair.kind) for pair in leaks.pairs] == [("c050", "c002", "same content")]
    assert leaks.exclusion == ["c050"]


def test_equal_media_are_found_without_any_likeness(tmp_path: Path) -> None:
    import featurecache

    location = tmp_path / "s.zarr"
    store = featurecache.open_store(location, "a")
    writer = store.writer("face", planted.spec_of("face"), shard_rows=64)
    writer.plan([f"c{n:03d}" for n in range(30)])
    with writer.begin(writer.pending()[0]) as shard:
        for n in range(30):
            source = f"{7 if n in (4, 9) else n + 100:064x}"
            shard.put(n, planted.tokens(f"c{n:03d}", "face", planted.label_of(n)), source)
        shard.commit()
    store = featurecache.open_store(location)
    update_indices(store)
    clips = open_neighbourhood(store, comparison=COPIES)
    listed = planted.write_list(tmp_path / "clips.jsonl", planted.planted_clips(30))
    duplicates = find_duplicates(store, clips, listed, known_calibration(store, clips))
    assert [(pair.a, pair.b, pair.kind) for pair in duplicates.pairs] == [("c004", "c009", "same media")]


def test_groups_join_what_hangs_together() -> None:
    pair = lambda a, b: Pair(a, b, "near", 1, 1, 1)  # noqa: E731
    assert groups([pair("d", "e"), pair("a", "b"), pair("b", "c")]) == [["a", "b", "c"], ["d", "e"]]


def measured(copies: int, others: int, *, true: float = 0.95, false: float = 0.4) -> cal.CalibrationPairs:
    random = np.random.default_rng(0)
    copy_of, false_of = np.arange(copies) % 40, np.arange(others) % 40
    return cal.CalibrationPairs(
        0.7 + 0.08 * random.standard_normal(copies),
        np.full(copies, 0.4),
        true + 0.02 * random.standard_normal(copies),
        copy_of,
        [f"way {n // 40}" for n in range(copies)],
        0.7 + 0.08 * random.standard_normal(others),
        np.full(others, 0.4),
        false + 0.1 * random.standard_normal(others),
        false_of,
        np.arange(others) // 40 % 2 == 0,
    )


def test_a_calibration_stands_between_copies_and_clips_that_look_like_them() -> None:
    rule = cal.fit_calibration(measured(240, 640), {"f": "1"}, {"f": 1.0}, 1e-3)
    assert 0.8 < rule.agreement < 0.9
    assert (rule.num_false_positives, rule.num_false_pairs, rule.same_text) == (0, 320, 160)
    assert min(rule.recall.values()) > 0.95
    assert rule.confidence(np.array([0.95]))[0] > 0.9 > 0.1 > rule.confidence(np.array([0.4]))[0]
    assert "0 of 160 pairs of the same text by other speakers and 160 pairs nearest clips (rate below 0.9%)" in (
        rule.describe()
    )


def test_where_clips_and_copies_overlap_the_rate_on_hard_negatives_is_kept() -> None:
    rule = cal.fit_calibration(measured(240, 4000, true=0.8, false=0.6), {"f": "1"}, {"f": 1.0}, 1e-2)
    assert rule.false_positive_rate is not None
    assert 0 < rule.false_positive_rate <= 1e-2
    assert max(rule.recall.values()) < 0.7


def test_a_calibration_is_read_back_for_the_same_features_alone(tmp_path: Path) -> None:
    rule = cal.Calibration(0.5, 0.1, 0.7, 10.0, -5.0, {"f": "1"}, {"f": 1.0}, 40, 320, 0, 160, {"mirrored": 1.0})
    files = IndexFiles(tmp_path)
    files.write(CALIBRATION, rule.to_bytes())
    assert cal.load_calibration(files, {"f": "1"}, {"f": 1.0}) == rule
    assert cal.load_calibration(files, {"f": "2"}, {"f": 1.0}) is None
    assert cal.load_calibration(files, {"f": "1"}, {"f": 2.0}) is None
    text = (tmp_path / CALIBRATION).read_text()
    (tmp_path / CALIBRATION).write_text(text.replace('"threshold": 0.5', '"threshold": 0.1'))
    with pytest.raises(CorruptStoreError, match="Delete it"):
        cal.load_calibration(files, {"f": "1"}, {"f": 1.0})


def test_sound_and_picture_must_agree(planted_store) -> None:  # type: ignore[no-untyped-def]
    store, clips = planted_store
    rule = known_calibration(store, clips)
    assert rule.floor > 0
    high, low = np.array([0.95]), np.array([rule.floor - 0.01])
    assert not rule.screens(high, low).any()


@pytest.mark.parametrize("how", AUGMENTATIONS, ids=lambda how: how.name)
def test_every_altered_copy_is_a_recording_of_the_part_in_use(how, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rec.write_clip(tmp_path / "a.mp4", num_frames=40, rate=10, sound=rec.sine(4.0))
    clip = Clip("a", video=tmp_path / "a.mp4", start_s=1.0, end_s=3.0)
    augment(clip, how, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as copy:
        expected = {"cut by 0.5 s": 1.5, "1.05× speed": 2 / 1.05}.get(how.name, 2.0)
        assert float(copy.duration) / 1e6 == pytest.approx(expected, abs=0.15)
        assert len(copy.streams.video) == len(copy.streams.audio) == 1
        assert sum(1 for _ in copy.decode(video=0)) == pytest.approx(25 * expected, abs=3)


def test_similarity_of_one_modality_alone_is_that_modality(tmp_path: Path) -> None:
    ids = ["a", "b"]
    unit = np.eye(2, dtype=np.float32)
    clips = Neighbourhood({"voice": (ids, unit), "face": (["a"], unit[:1])}, {"voice": 1.0, "face": 3.0})
    from featurecache.explore.duplicates import PairScorer

    scorer = PairScorer(clips, {name: planted.spec_of(name) for name in ("voice", "face")})
    similarity, agreement = scorer(clips.by_feature([0]), clips.by_feature([1]))
    assert similarity.tolist() == agreement.tolist() == [0.0]
    similarity, agreement = scorer(clips.by_feature([1]), clips.by_feature([1]))
    assert similarity[0] == pytest.approx(1)
    assert agreement[0] == pytest.approx(1)
