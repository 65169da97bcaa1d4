"""Duplicates and leaks on planted ones, and the rule that finds them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import planted
import pytest
import recordings as rec

from featurecache.clips import Clip
from featurecache.errors import StoreError
from featurecache.similarity import calibration as cal
from featurecache.similarity.augment import AUGMENTATIONS, augment
from featurecache.similarity.doubles import find_duplicates, find_leaks, known_calibration
from featurecache.similarity.duplicates import Pair, groups
from featurecache.similarity.search import Neighbourhood, open_neighbourhood, update_indices

COUNT = 80
COPIES = {"c050": ("c002", 0.0), "c051": ("c003", 0.05), "c044": ("c001", 0.05), "c075": ("c002", 0.05)}


@pytest.fixture(scope="module")
def planted_store(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    store = planted.write_store(tmp_path_factory.mktemp("doubles") / "s.zarr", planted.planted_clips(COUNT), COPIES)
    update_indices(store)
    return store, open_neighbourhood(store)


def test_planted_copies_are_found_and_nothing_else(planted_store, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store, clips = planted_store
    listed = planted.write_list(tmp_path / "clips.jsonl", planted.planted_clips(COUNT))
    found = find_duplicates(store, clips, listed, known_calibration(store, clips))
    assert found.groups == [["c002", "c050", "c075"], ["c001", "c044"], ["c003", "c051"]]
    assert found.exclusion == ["c044", "c050", "c051", "c075"]
    kinds = {frozenset((pair.a, pair.b)): pair.kind for pair in found.pairs}
    assert kinds[frozenset(("c002", "c050"))] == "same content"
    assert kinds[frozenset(("c003", "c051"))] == "near"
    assert all(0 <= pair.confidence <= 1 for pair in found.pairs)


def test_a_leak_is_reported_with_the_training_side_first(planted_store, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store, clips = planted_store
    everything = planted.planted_clips(COUNT)
    train = [clip.id for clip in everything if clip.split == "train"]
    test = [clip.id for clip in everything if clip.split == "test"]
    assert "c044" in test
    found = find_leaks(store, clips, train, test, known_calibration(store, clips))
    assert [(pair.a, pair.b) for pair in found.pairs] == [("c001", "c044")]
    assert found.exclusion == ["c001"]


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
    clips = open_neighbourhood(store)
    listed = planted.write_list(tmp_path / "clips.jsonl", planted.planted_clips(30))
    found = find_duplicates(store, clips, listed, known_calibration(store, clips))
    assert [(pair.a, pair.b, pair.kind) for pair in found.pairs] == [("c004", "c009", "same media")]


def test_groups_join_what_hangs_together() -> None:
    pair = lambda a, b: Pair(a, b, "near", 1, 1, 1)  # noqa: E731
    assert groups([pair("d", "e"), pair("a", "b"), pair("b", "c")]) == [["a", "b", "c"], ["d", "e"]]


def test_a_calibration_keeps_the_rate_asked_for_on_clips_it_has_not_seen() -> None:
    random = np.random.default_rng(0)
    copies, clips = 240, 300
    original = np.repeat(np.arange(40), 6)
    similarity = 0.08 * random.standard_normal((copies, clips))
    agreement = similarity - 0.05
    similarity[np.arange(copies), original] = 0.7 + 0.08 * random.standard_normal(copies)
    agreement[np.arange(copies), original] = 0.4
    ways = [f"way {n % 6}" for n in range(copies)]
    rule = cal.fit_calibration(similarity, agreement, original, ways, {"f": "1"}, {"f": 1.0}, 1e-3)
    assert rule.false_positive_rate is not None
    assert rule.false_positive_rate <= 1e-3
    assert min(rule.recall.values()) > 0.95
    assert rule.confidence(np.array([0.7]))[0] > 0.9 > 0.1 > rule.confidence(np.array([0.0]))[0]


def test_a_calibration_is_read_back_for_the_same_features_alone(tmp_path: Path) -> None:
    rule = cal.Calibration(0.5, 0.1, 10.0, -5.0, {"f": "1"}, {"f": 1.0}, 40, 1e-3, {"mirrored": 1.0})
    path = tmp_path / "calibration.json"
    path.write_text(rule.to_json())
    assert cal.load_calibration(path, {"f": "1"}, {"f": 1.0}) == rule
    assert cal.load_calibration(path, {"f": "2"}, {"f": 1.0}) is None
    assert cal.load_calibration(path, {"f": "1"}, {"f": 2.0}) is None
    path.write_text("{}")
    with pytest.raises(StoreError, match="Delete it"):
        cal.load_calibration(path, {"f": "1"}, {"f": 1.0})


def test_sound_and_picture_must_agree(planted_store) -> None:  # type: ignore[no-untyped-def]
    store, clips = planted_store
    rule = known_calibration(store, clips)
    assert rule.floor > 0
    high, low = np.array([0.95]), np.array([rule.floor - 0.01])
    assert not rule.passes(high, low).any()


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
    from featurecache.similarity.duplicates import PairScorer

    scorer = PairScorer(clips, {name: planted.spec_of(name) for name in ("voice", "face")})
    similarity, agreement = scorer(clips.parts([0]), clips.parts([1]))
    assert similarity.tolist() == agreement.tolist() == [0.0]
    similarity, agreement = scorer(clips.parts([1]), clips.parts([1]))
    assert similarity[0] == pytest.approx(1)
    assert agreement[0] == pytest.approx(1)
