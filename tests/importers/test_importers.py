"""What every registered importer promises, tested on synthetic datasets in the real layouts."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
from dataset_fixture import DatasetFixture, rows_of, run

from featurecache.clips.clip_list import load_clips
from featurecache.errors import DatasetError
from featurecache.importers import Request, find_importer, registered
from featurecache.importers.importing import Target, import_dataset

DATASETS = {
    name.lower().replace("_", "-"): value
    for path in sorted(Path(__file__).parent.glob("*_fixtures.py"))
    for name, value in vars(importlib.import_module(path.stem)).items()
    if isinstance(value, DatasetFixture)
}
"""Every synthetic dataset of the modules `*_fixtures.py` beside this one."""


@pytest.mark.parametrize("name", registered())
def test_a_registered_importer_has_a_synthetic_dataset(name: str) -> None:
    assert name in {dataset.importer for dataset in DATASETS.values()}, "add one to a module *_fixtures.py"


def test_every_synthetic_dataset_is_of_a_registered_importer() -> None:
    assert {dataset.importer for dataset in DATASETS.values()} <= set(registered())


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
class TestEveryImporter:
    @pytest.fixture
    def source(self, dataset: DatasetFixture, tmp_path: Path) -> Path:
        return dataset.build(tmp_path / "data")

    def test_the_list_can_be_read_and_holds_what_the_tables_say(
        self, dataset: DatasetFixture, source: Path, tmp_path: Path
    ) -> None:
        summary = run(dataset, source, tmp_path / "clips.jsonl")
        clips = load_clips(tmp_path / "clips.jsonl")
        assert len(clips) == dataset.num_clips == sum(summary.by_split.values())
        assert not summary.missing
        assert {reason: len(rows) for reason, rows in summary.left_out.items()} == dataset.left_out
        for clip in clips:
            assert any(path and path.is_file() for path in (clip.video, clip.audio, clip.image)), clip.id
        rows = rows_of(tmp_path / "clips.jsonl")
        for clip_id, expected in dataset.expected.items():
            row = rows[clip_id]
            for kind in {"video", "audio", "image"} & expected.keys():
                if expected[kind] is not None:
                    expected = {**expected, kind: f"data/{expected[kind]}"}
            assert {key: row.get(key) for key in expected} == expected

    def test_importing_again_gives_the_same_bytes_and_leaves_the_dataset_as_it_was(
        self, dataset: DatasetFixture, source: Path, tmp_path: Path
    ) -> None:
        before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
        run(dataset, source, tmp_path / "one.jsonl")
        run(dataset, source, tmp_path / "two.jsonl")
        assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
        assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()} == before

    def test_a_list_elsewhere_names_the_folder_that_its_paths_are_relative_to(
        self, dataset: DatasetFixture, source: Path, tmp_path: Path
    ) -> None:
        summary = run(dataset, source, tmp_path / "lists" / "clips.jsonl")
        assert summary.media_root == tmp_path / "data"
        text = (tmp_path / "lists" / "clips.jsonl").read_text("utf-8")
        assert str(tmp_path) not in text
        clips = load_clips(tmp_path / "lists" / "clips.jsonl", summary.media_root)
        assert all(path.is_file() for clip in clips for path in (clip.video, clip.audio, clip.image) if path)

    def test_another_folder_is_an_error_that_says_what_was_expected_and_found(
        self, dataset: DatasetFixture, tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "holiday.txt").write_text("sun")
        source = tmp_path / "other" / ("holiday.txt" if dataset.importer == "csv" else "")
        with pytest.raises(DatasetError, match=r"expected .+, got ") as caught:
            run(dataset, source, tmp_path / "clips.jsonl")
        assert str(tmp_path) in str(caught.value) or "holiday" in str(caught.value) or "sun" in str(caught.value)
        with pytest.raises(DatasetError, match="nothing; there is"):
            run(dataset, tmp_path / "nowhere", tmp_path / "clips.jsonl")
        assert not (tmp_path / "clips.jsonl").exists()

    def test_media_that_are_not_there_are_named_and_their_clips_left_out_or_kept(
        self, dataset: DatasetFixture, source: Path, tmp_path: Path
    ) -> None:
        if dataset.clips_are_files:
            pytest.skip("its clips are the media files themselves")
        (tmp_path / "data" / dataset.media[0]).unlink()
        total = dataset.num_clips
        if total > dataset.lost_with_first:
            summary = run(dataset, source, tmp_path / "clips.jsonl")
            assert len(summary.missing) == dataset.lost_with_first
            assert dataset.media[0].rsplit("/", 1)[-1].rsplit(".", 1)[0].lstrip("0") in summary.missing[0]
            assert len(load_clips(tmp_path / "clips.jsonl")) == total - dataset.lost_with_first
        for name in dataset.media[1:]:
            (tmp_path / "data" / name).unlink()
        with pytest.raises(DatasetError, match=rf"media of {total} clips, got none of them.*--keep-missing"):
            run(dataset, source, tmp_path / "none.jsonl")
        summary_of_all = run(dataset, source, tmp_path / "kept.jsonl", keep_missing=True)
        assert len(summary_of_all.missing) == len(load_clips(tmp_path / "kept.jsonl")) == total

    def test_a_table_that_is_not_there_is_an_error(self, dataset: DatasetFixture, source: Path, tmp_path: Path) -> None:
        needed = tmp_path / "data" / dataset.needed
        shutil.rmtree(needed) if needed.is_dir() else needed.unlink()
        if dataset.without_needed is not None:
            summary = run(dataset, source, tmp_path / "clips.jsonl")
            assert sum(summary.by_split.values()) == dataset.without_needed
            return
        with pytest.raises(DatasetError, match=r"expected .+, got"):
            run(dataset, source, tmp_path / "clips.jsonl")

    def test_a_label_outside_the_vocabulary_is_named_and_left_out_only_when_asked(
        self, dataset: DatasetFixture, tmp_path: Path
    ) -> None:
        if dataset.bad_label is None:
            pytest.skip("labels are free text")
        source = dataset.build(tmp_path / "data", dataset.edited(*dataset.bad_label))
        with pytest.raises(DatasetError, match="vocabulary") as caught:
            run(dataset, source, tmp_path / "clips.jsonl")
        assert any(char.isdigit() for char in caught.value.problems[0])
        assert "--lenient" in str(caught.value)
        assert not (tmp_path / "clips.jsonl").exists()
        summary = run(dataset, source, tmp_path / "clips.jsonl", lenient=True)
        assert sum(summary.by_split.values()) < dataset.num_clips
        assert any("outside" in reason for reason in summary.left_out)

    def test_a_clip_named_twice_is_an_error(self, dataset: DatasetFixture, tmp_path: Path) -> None:
        if not dataset.twice:
            pytest.skip("its tables are objects with unique keys, or are joined by name")
        source = dataset.build(tmp_path / "data", dataset.doubled())
        with pytest.raises(DatasetError, match="every clip once"):
            run(dataset, source, tmp_path / "clips.jsonl")
        summary = run(dataset, source, tmp_path / "clips.jsonl", lenient=True)
        assert sum(summary.by_split.values()) == dataset.num_clips
        assert len(summary.left_out["the clip came before"]) == 1

    def test_one_split_holds_only_its_clips_and_an_unknown_one_is_refused(
        self, dataset: DatasetFixture, source: Path, tmp_path: Path
    ) -> None:
        everything = run(dataset, source, tmp_path / "all.jsonl")
        split = sorted(everything.by_split)[0]
        if split:
            summary = run(dataset, source, tmp_path / "one.jsonl", (split,))
            assert summary.by_split == {split: everything.by_split[split]}
        with pytest.raises(DatasetError):
            run(dataset, source, tmp_path / "no.jsonl", ("nosuchsplit",))

    def test_it_says_what_it_reads_who_holds_the_rights_and_refuses_unknown_options(
        self, dataset: DatasetFixture, source: Path, tmp_path: Path
    ) -> None:
        importer = find_importer(dataset.importer)
        assert importer.name == dataset.importer
        assert importer.layout
        assert importer.licence.endswith(".")
        request = Request(source, (), dataset.fold, {**dataset.options, "labelz": "x"})
        with pytest.raises(DatasetError, match="--option labelz"):
            import_dataset(importer, request, Target(tmp_path / "clips.jsonl"))
        if not importer.folds:
            with pytest.raises(DatasetError, match="no folds"):
                import_dataset(importer, Request(source, (), 1, dict(dataset.options)), Target(tmp_path / "c.jsonl"))
