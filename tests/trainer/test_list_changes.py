"""A run goes on with the clips that it began with, or says which differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_probe import make_probe
from test_train import equal
from toy import make_config

from featurecache.interrupt import Interrupted
from fusion_train.cli import main
from fusion_train.config import Config
from fusion_train.documents import write_document
from fusion_train.errors import CheckpointError, DataError
from fusion_train.run import Run
from fusion_train.training.trainer import train


def begin(config: Config, material: Path, run: Run, stop: bool = True) -> list[str]:
    """Train to the end, or stop after the first step."""
    said: list[str] = []
    places = {"store": str(material / "features.zarr"), "clips": str(material / "clips.jsonl")}
    if stop:
        with pytest.raises(Interrupted):
            train(config, **places, run=run, say=said.append, stop=lambda: True)
    else:
        train(config, **places, run=run, say=said.append)
    return said


@pytest.fixture
def place(material, tmp_path) -> Path:
    """A clip list of one's own beside the store."""
    (tmp_path / "features.zarr").symlink_to(material / "features.zarr")
    shutil.copy(material / "clips.jsonl", tmp_path / "clips.jsonl")
    return tmp_path


def edit(place: Path, change: Callable[[list[dict[str, Any]]], Any], name: str = "clips.jsonl") -> None:
    rows = [json.loads(line) for line in (place / name).read_text().splitlines()]
    changed = change(rows)
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in (changed if changed is not None else rows)))


def resume(run: Run, *more: str):
    return CliRunner().invoke(main, ["resume", str(run.folder), *more])


def relabel(rows):
    rows[1]["labels"]["emotion"] = "angry"  # t01 was happy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (relabel, "train: t01: labels.emotion is 'angry', was 'happy'"),
        (lambda rows: rows[2].update(text="other words"), "train: t02: text is 'other words', was 'number 2'"),
        (lambda rows: rows[:35] + rows[36:], "train: t35 is gone"),
        (lambda rows: rows[0].update(split="val"), "val: t00 is new"),
        (lambda rows: rows[-1]["labels"].update(emotion="angry"), "val: v11: labels.emotion is 'angry', was 'sad'"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "train: the clips stand in another order"),
    ],
)
def test_another_list_is_refused_and_the_clips_are_named(llama, place, change, said):
    run = Run(place / "run")
    begin(make_probe(llama, "optim.steps=4", "log.peak_tflops=1"), place, run)
    edit(place, change)
    result = resume(run)
    assert result.exit_code == 2
    assert said in result.output
    assert "--clips-changed" in result.output
    assert not run.finished


def test_an_accepted_change_is_trained_on_and_recorded(llama, place):
    config = make_config(llama, "optim.steps=3", "log.peak_tflops=1")
    kept, changed = Run(place / "kept"), Run(place / "changed")
    begin(config, place, kept)
    shutil.copytree(kept.folder, changed.folder)
    begin(config, place, kept, stop=False)
    before = kept.record().lists
    edit(place, lambda rows: [row["labels"].update(emotion="angry") for row in rows] and rows)
    result = resume(changed, "--clips-changed")
    assert result.exit_code == 0, result.output
    assert "accepted from step 1 on" in result.output
    record = changed.record()
    assert [change["step"] for change in record.list_changes] == [1]
    assert record.list_changes[0]["before"] == before != record.lists
    assert not equal(kept, changed), "the new labels were trained on"
    assert "train, emotion: angry 36" in result.output
    (changed.folder / "finished.json").unlink()
    assert resume(changed).exit_code == 0, "accepted once, the list is that of the run"


def test_a_list_that_changed_elsewhere_goes_on_with_a_notice(llama, place):
    config = make_probe(llama, "optim.steps=4", "log.peak_tflops=1")
    whole, parts = Run(place / "whole"), Run(place / "parts")
    begin(config, place, whole, stop=False)
    begin(config, place, parts)
    edit(place, lambda rows: [*rows, {"id": "x", "video": "x.mp4", "split": "test"}])
    result = resume(parts)
    assert result.exit_code == 0, result.output
    assert "but not in the clips that it trains on and is scored by" in result.output
    assert equal(whole, parts)


def test_files_laid_over_the_list_count_like_the_list(llama, place):
    (place / "out.jsonl").write_text('{"id": "t05", "text": "x"}\n')
    run = Run(place / "run")
    begin(make_probe(llama, "optim.steps=4", "data.exclude=[out.jsonl]", "log.peak_tflops=1"), place, run)
    assert set(run.record().lists) == {"clips", "out.jsonl"}
    (place / "out.jsonl").write_text('{"id": "t06", "text": "x"}\n')
    result = resume(run)
    assert result.exit_code == 2
    assert "out.jsonl: expected the clips" in result.output
    assert "train: t05 is new" in result.output
    assert "train: t06 is gone" in result.output


def test_a_pool_of_other_clips_is_refused(llama, place):
    run, other = Run(place / "run"), Run(place / "other")
    config = make_probe(llama, "optim.steps=4", "log.peak_tflops=1")
    begin(config, place, run)
    edit(place, relabel)
    begin(config, place, other)
    shutil.rmtree(run.pool)
    shutil.copytree(other.pool, run.pool)
    record = json.loads((run.folder / "run.json").read_text())
    write_document(
        run.folder / "run.json", record | {"lists": json.loads((other.folder / "run.json").read_text())["lists"]}
    )
    with pytest.raises(CheckpointError, match="expected the clips that the run began with"):
        begin(config, place, run, stop=False)


def test_a_pool_that_is_gone_is_made_again_of_the_same_list(llama, place):
    config = make_probe(llama, "optim.steps=4", "log.peak_tflops=1")
    whole, parts = Run(place / "whole"), Run(place / "parts")
    begin(config, place, whole, stop=False)
    begin(config, place, parts)
    shutil.rmtree(parts.pool)
    begin(config, place, parts, stop=False)
    assert equal(whole, parts)


def test_a_run_of_an_earlier_release_is_held_to_the_list_of_its_pool(llama, place):
    run = Run(place / "run")
    begin(make_probe(llama, "optim.steps=4", "log.peak_tflops=1"), place, run)
    record = json.loads((run.folder / "run.json").read_text())
    digest = record["lists"]["clips"]
    for name in ("checksum", "lists", "pool_sha256", "list_changes", "config_sha256"):
        del record[name]
    (run.folder / "run.json").write_text(json.dumps(record))
    (run.pool / "pool.json").write_text(json.dumps({"key": {"files": [digest]}, "tasks": {"toy": ["emotion"]}}))
    assert resume(Run(shutil.copytree(run.folder, place / "copy"))).exit_code == 0
    edit(place, relabel)
    result = resume(run)
    assert result.exit_code == 2
    assert "cannot be compared clip by clip" in result.output


@pytest.mark.parametrize("stage", ["probe", "perception"])
def test_clips_whose_label_training_lacks_are_left_out_of_scoring_with_a_notice(llama, place, stage):
    edit(place, lambda rows: [rows[36 + n]["labels"].update(emotion="calm") for n in (0, 4)] and rows)
    make = make_probe if stage == "probe" else make_config
    config = make(llama, "optim.steps=3", "log.eval_every=1", "optim.lr=1e-2", "log.peak_tflops=1")
    whole, parts = Run(place / "whole"), Run(place / "parts")
    said = begin(config, place, whole, stop=False)
    notice = 'split "val": 2 of 12 clips are not scored, since no training clip has their label: emotion calm (2)'
    first = next(number for number, line in enumerate(said) if "training step 0" in line)
    assert said.index(notice) < first
    assert said.index("train, emotion: angry 12, happy 12, sad 12") < first
    assert said.index("val, emotion: sad 4, angry 3, happy 3, calm 2") < first
    begin(config, place, parts)
    assert notice in begin(config, place, parts, stop=False), "a resumed run says it too"
    assert equal(whole, parts)
    assert whole.result["scores"] == parts.result["scores"]
    assert whole.result["scores"]["accuracy/emotion"] * 10 == pytest.approx(
        round(whole.result["scores"]["accuracy/emotion"] * 10)
    )


def test_a_held_out_split_of_foreign_labels_alone_is_refused_before_anything_is_written(llama, place):
    edit(place, lambda rows: [row["labels"].update(emotion="calm") for row in rows[36:]] and rows)
    run = Run(place / "run")
    with pytest.raises(DataError, match=r"got only emotion calm \(12\)"):
        begin(make_probe(llama), place, run, stop=False)
    assert not run.folder.exists()


def test_a_probe_leaves_out_a_dataset_that_training_lacks(llama, place):
    edit(place, lambda rows: [row.update(dataset="other") for row in rows[40:]] and rows)
    said = begin(make_probe(llama, "optim.steps=2", "log.eval_every=1"), place, Run(place / "run"), stop=False)
    assert any("8 of 12 clips are not scored" in line and "emotion sad of other" in line for line in said)
