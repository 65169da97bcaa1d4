"""A run goes on by the rule that drew its first samples, or not at all; nothing of another rule is mixed with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_probe import make_probe

from featurecache.interrupt import Interrupted
from fusion_train.cli import main
from fusion_train.data.samples import DRAW_RULE
from fusion_train.documents import read_document, write_document
from fusion_train.errors import CheckpointError, DataError
from fusion_train.run import Run
from fusion_train.sweeps.running import run_sweep
from fusion_train.sweeps.sweep_file import load_sweep
from fusion_train.training.non_finite_steps import WEIGHTS, replay
from fusion_train.training.trainer import train


def of_earlier_release(run: Run) -> None:
    """As a release wrote it that recorded no rule."""
    record = read_document(run.folder / "run.json", CheckpointError, "the record of a run")
    assert record.pop("draw_rule") == DRAW_RULE
    write_document(run.folder / "run.json", record)


def test_a_stopped_run_of_an_earlier_rule_is_refused_and_a_finished_one_is_kept(llama, material, tmp_path):
    config, run = make_probe(llama, "optim.steps=3", "log.peak_tflops=1"), Run(tmp_path / "run")
    places = {"store": str(material / "features.zarr"), "clips": str(material / "clips.jsonl"), "run": run}
    said: list[str] = []
    with pytest.raises(Interrupted):
        train(config, **places, say=said.append, stop=lambda: True)
    of_earlier_release(run)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, ["resume", str(run.folder)])
    assert result.exit_code == 2
    assert "a run that drew them by rule 1" in result.output
    assert "--init" in result.output
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    run.diverged.mkdir()
    (run.diverged / WEIGHTS).write_bytes(b"")
    write_document(run.diverged / "batch.json", {"step": 1, "clips": []})
    with pytest.raises(CheckpointError, match="drew them by rule 1"):
        replay(run)
    run.finish({"step": 3, "scores": {}, "seconds": 1.0})
    assert train(config, **places, say=said.append)["step"] == 3


def test_a_sweep_refuses_trials_of_an_earlier_rule_beside_others(llama, material, tmp_path):
    sweep = load_sweep("pre_fusion", None, [f"model.llm={llama}"], {})
    out, trial = tmp_path / "sweep", sweep.trials[0]
    folder = trial.folder(out, 0)
    folder.mkdir(parents=True)
    record = {
        "store": "s",
        "clips": "c",
        "fingerprints": {},
        "label_sets": {},
        "shapes": {"audio": [1, 1], "image": None, "video": None},
    }
    write_document(folder / "run.json", record)
    before = sorted(path for path in out.rglob("*"))
    with pytest.raises(DataError, match="1 that an earlier release began") as caught:
        run_sweep(
            sweep,
            store=str(material / "features.zarr"),
            clips=str(material / "clips.jsonl"),
            out=out,
            say=lambda text: None,
        )
    assert caught.value.problems == [folder.name]
    assert sorted(path for path in out.rglob("*")) == before


def test_the_rule_is_written_into_the_run(llama, material, tmp_path):
    config, run = make_probe(llama, "optim.steps=2", "log.peak_tflops=1"), Run(tmp_path / "run")
    train(
        config,
        store=str(material / "features.zarr"),
        clips=str(material / "clips.jsonl"),
        run=run,
        say=lambda text: None,
    )
    assert json.loads(Path(run.folder / "run.json").read_text())["draw_rule"] == DRAW_RULE
