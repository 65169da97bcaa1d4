"""The index: derived from the store alone, incremental, exact, tied to the fingerprint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import planted
import pytest

from featurecache.errors import MissingFeatureError, StoreError
from featurecache.explore import search
from featurecache.explore.index import open_index
from featurecache.explore.index_files import index_files
from featurecache.explore.projection import CONTENT, COPIES, OVERALL, Projection, summarise
from featurecache.explore.search import Neighbourhood, build_approximate, open_neighbourhood, update_indices


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_summary_is_mean_and_deviation_over_the_tokens(dtype: str) -> None:
    tokens = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(dtype)
    wide = tokens.astype(np.float64)
    expected = np.concatenate([wide.mean(1), wide.std(1)], axis=1)
    np.testing.assert_allclose(summarise(tokens), expected, atol=1e-5)
    np.testing.assert_array_equal(tokens.astype(np.float64), wide)  # the store's own memory is not written to


@pytest.mark.parametrize("count", [12, 400])
def test_a_projection_whitens_whichever_gram_matrix_is_smaller(count: int) -> None:
    random = np.random.default_rng(1)
    summaries = random.standard_normal((count, 30)) @ random.standard_normal((30, 30)) + 5
    projection = Projection.fit(summaries.astype(np.float32))
    coordinates = projection.coordinates(summaries.astype(np.float32))
    count_whitened = projection.num_whitened(COPIES)
    whitened = (coordinates * projection.scale(COPIES))[:, :count_whitened]
    np.testing.assert_allclose(whitened.T @ whitened / count, np.eye(count_whitened), atol=5e-2)
    for comparison in (OVERALL, CONTENT, COPIES):
        vectors = projection.project(summaries.astype(np.float32), comparison)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_overall_similarity_is_that_of_standardised_summaries() -> None:
    summaries = np.random.default_rng(2).standard_normal((60, 30)) * np.geomspace(1, 50, 30) + 3
    standard = (summaries - summaries.mean(0)) / summaries.std(0)
    standard /= np.linalg.norm(standard, axis=1, keepdims=True)
    vectors = Projection.fit(summaries.astype(np.float32)).project(summaries.astype(np.float32), OVERALL)
    np.testing.assert_allclose(vectors @ vectors.T, standard @ standard.T, atol=5e-3)


def test_the_nearest_are_those_of_brute_force(tmp_path: Path) -> None:
    store = planted.write_store(tmp_path / "s.zarr", planted.planted_clips(60))
    assert update_indices(store) == 120
    neighbourhood = open_neighbourhood(store)
    similarities, places = neighbourhood.search(neighbourhood.vectors, 5)
    brute = neighbourhood.vectors.astype(np.float64) @ neighbourhood.vectors.T.astype(np.float64)
    np.testing.assert_allclose(similarities, -np.sort(-brute, axis=1)[:, :5], atol=1e-5)
    assert (places[:, 0] == np.arange(60)).all()


def test_an_update_computes_only_what_is_new(tmp_path: Path) -> None:
    clips = planted.planted_clips(60)
    planted.write_store(tmp_path / "s.zarr", clips[:48])
    store = planted.write_store(tmp_path / "s.zarr", clips[:48])
    assert update_indices(store) == 96
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr.similar").rglob("*") if path.is_file()}
    assert update_indices(store) == 0
    store = planted.write_store(tmp_path / "s.zarr", clips)
    assert update_indices(store) == 24
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(open_neighbourhood(store)) == 60


def test_deleting_the_index_loses_nothing(tmp_path: Path) -> None:
    store = planted.write_store(tmp_path / "s.zarr", planted.planted_clips(30))
    update_indices(store)
    vectors = open_neighbourhood(store).vectors
    shutil.rmtree(tmp_path / "s.zarr.similar")
    update_indices(store)
    np.testing.assert_array_equal(open_neighbourhood(store).vectors, vectors)


def test_a_retried_clip_counts_once_and_by_its_new_tokens(tmp_path: Path) -> None:
    clips = planted.planted_clips(30)
    store = planted.write_store(tmp_path / "s.zarr", clips)
    update_indices(store)
    import featurecache

    writer = featurecache.open_store(tmp_path / "s.zarr", "a").writer("face", planted.spec_of("face"))
    writer.retry(["c003"])
    (shard,) = writer.pending()
    with writer.begin(shard) as open_shard:
        open_shard.put(0, planted.tokens("c006", "face", planted.label_of(6)), "f" * 64)
        open_shard.commit()
    store = featurecache.open_store(tmp_path / "s.zarr")
    update_indices(store)
    ids, vectors = open_index(store["face"]).vectors(COPIES)
    assert sorted(ids) == [clip.id for clip in clips]
    np.testing.assert_allclose(vectors[ids.index("c003")], vectors[ids.index("c006")], atol=1e-6)


def test_a_projection_that_was_read_may_become_tensors(tmp_path: Path) -> None:
    store = planted.write_store(tmp_path / "s.zarr", planted.planted_clips(30))
    update_indices(store)
    projection = open_index(store["face"]).require_projection()
    assert projection.axes.shape == (len(projection.mean), len(projection.deviations))
    assert all(array.flags.writeable and array.flags.c_contiguous for array in (projection.mean, projection.axes))


def test_without_an_index_the_error_says_what_to_run(tmp_path: Path) -> None:
    store = planted.write_store(tmp_path / "s.zarr", planted.planted_clips(30))
    with pytest.raises(StoreError, match=r"got none\. Run `fcache index`"):
        open_neighbourhood(store)


def test_an_index_of_another_fingerprint_is_not_used(tmp_path: Path) -> None:
    store = planted.write_store(tmp_path / "s.zarr", planted.planted_clips(30))
    update_indices(store)
    root = index_files(store.location).root
    shutil.rmtree(root / "face")
    shutil.copytree(root / "voice", root / "face")
    with pytest.raises(StoreError, match="another fingerprint"):
        open_neighbourhood(store)
    update_indices(store)
    assert len(open_neighbourhood(store)) == 30


def test_a_store_behind_its_index_is_noticed(tmp_path: Path) -> None:
    clips = planted.planted_clips(60)
    update_indices(planted.write_store(tmp_path / "s.zarr", clips[:48]))
    with pytest.raises(StoreError, match="without"):
        open_neighbourhood(planted.write_store(tmp_path / "s.zarr", clips))


def test_a_damaged_vector_file_is_named(tmp_path: Path) -> None:
    store = planted.write_store(tmp_path / "s.zarr", planted.planted_clips(30))
    update_indices(store)
    victim = next((tmp_path / "s.zarr.similar" / "face" / "vectors").iterdir())
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(StoreError, match=victim.name):
        open_neighbourhood(store)


def test_a_clip_without_a_modality_is_compared_by_what_it_has(tmp_path: Path) -> None:
    store = planted.write_store(
        tmp_path / "s.zarr", planted.planted_clips(40), like={"c009": ("c002", 0.1)}, silent=("c009",)
    )
    update_indices(store)
    neighbourhood = open_neighbourhood(store)
    row = neighbourhood.row_of("c009")
    assert neighbourhood.has[row].tolist() == [name != "voice" for name in neighbourhood.names]
    assert np.isclose(np.linalg.norm(neighbourhood.vectors[row]), 1)
    _, places = neighbourhood.search(neighbourhood.vectors[[row]], 2)
    assert [neighbourhood.ids[place] for place in places[0]] == ["c009", "c002"]
    with pytest.raises(MissingFeatureError, match="nowhere"):
        neighbourhood.row_of("nowhere")


def test_weights_decide_whose_likeness_counts(tmp_path: Path) -> None:
    store = planted.write_store(tmp_path / "s.zarr", planted.planted_clips(40))
    update_indices(store)
    heavy = open_neighbourhood(store, {"face": 99.0, "voice": 1.0})
    alone = open_neighbourhood(store, {"face": 1.0})
    row = heavy.row_of("c005")
    assert (heavy.search(heavy.vectors[[row]], 5)[1] == alone.search(alone.vectors[[row]], 5)[1]).all()
    with pytest.raises(StoreError, match="above 0"):
        open_neighbourhood(store, {"face": 0.0})


def test_an_approximate_index_measures_its_recall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    clips = Neighbourhood({"face": ([f"c{n}" for n in range(3000)], vectors)}, {"face": 1.0})
    index, measured = build_approximate(clips)
    assert measured["recall_at_10"] >= search.WANTED_RECALL
    assert measured["lists_read"] < measured["lists"]
    rows = index.search(vectors[:50], 10)[1]
    assert search.recall_at(clips.search(vectors[:50], 10)[1], rows) > 0.9


def test_a_large_store_keeps_its_approximate_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_EXACT", 50)
    store = planted.write_store(tmp_path / "s.zarr", planted.planted_clips(90))
    update_indices(store)
    clips = open_neighbourhood(store)
    first = search.approximate_index(store, clips)
    index_paths = sorted((tmp_path / "s.zarr.similar" / "approximate").iterdir())
    assert [path.suffix for path in index_paths] == [".faiss", ".stated"]
    again = search.approximate_index(store, clips)
    assert again.nprobe == first.nprobe
    assert sorted((tmp_path / "s.zarr.similar" / "approximate").iterdir()) == index_paths


def test_clips_that_are_all_equal_have_no_projection(tmp_path: Path) -> None:
    clips = planted.planted_clips(6)
    store = planted.write_store(tmp_path / "s.zarr", clips, like={clip.id: ("c000", 0.0) for clip in clips})
    with pytest.raises(StoreError, match="differ"):
        update_indices(store)
