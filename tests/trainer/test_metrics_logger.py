"""What a run says of itself while it trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from test_train import run_training
from toy import make_config

from featurecache.errors import MissingExtraError
from fusion_train.data.samples import SampleStats
from fusion_train.errors import ConfigError
from fusion_train.training.metrics_logger import MetricsLogger
from fusion_train.training.step_metrics import Counts, MetricsAccumulator


def rows(run) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert all(row.pop("crc32c") for row in rows)
    return rows


def logger(config, folder, **log) -> MetricsLogger:
    settings = config.log.model_copy(update=log)
    return MetricsLogger(folder, 10**6, settings, enabled=True, peak_flops=1e9, about={})


@pytest.fixture(scope="module")
def run(llama, material, tmp_path_factory):
    config = make_config(
        llama,
        "data.tasks=[emotion, reason]",
        "log.every=3",
        "optim.steps=6",
        "log.eval_every=3",
        "log.tensorboard=true",
        "data.hide_modality_p=0.5",
    )
    return run_training(config, material, tmp_path_factory.mktemp("metrics") / "run")


def test_a_line_has_the_loss_by_dataset_and_task(run):
    for row in (row for row in rows(run) if "loss" in row):
        assert row["loss/dataset/toy"] == pytest.approx(row["loss"], rel=1e-5)
        assert min(row["loss/task/emotion"], row["loss/task/reason"]) <= row["loss"]
        assert row["loss"] <= max(row["loss/task/emotion"], row["loss/task/reason"])


def test_a_line_tells_speed_waiting_and_hidden_modalities(run):
    for row in (row for row in rows(run) if "loss" in row):
        assert row["tokens_per_s"] > row["supervised_tokens_per_s"] > row["samples_per_s"] > 0
        assert 0 < row["utilisation"] < 1
        assert 0 <= row["data_wait_share"] < 1
        assert sum(row.get(f"hidden/{name}", 0) for name in ("audio", "image", "video")) > 0


def test_scores_on_the_held_out_split_include_the_loss(run):
    scored = [row for row in rows(run) if "eval_loss" in row]
    assert [row["step"] for row in scored] == [3, 6]
    assert all(0 <= row["accuracy/emotion"] <= 1 for row in scored)
    assert run.result["scores"] == {key: value for key, value in scored[-1].items() if key != "step"}


def test_tensorboard_holds_the_same_names(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.folder / "tensorboard"))
    board.Reload()
    written = set().union(*rows(run)) - {"step"}
    assert written <= set(board.Tags()["scalars"])


def test_a_clip_without_sound_is_counted_as_missing(llama, material, tmp_path):
    config = make_config(llama, "data.train_split=val", "optim.steps=3", "log.every=3")
    row = rows(run_training(config, material, tmp_path / "run"))[0]
    assert row["missing/audio"] == 1, "v03, once an epoch of 12 clips"


def test_a_tally_is_counted_once():
    tally = MetricsAccumulator(lambda asked: 10.0 * asked.num_tokens)
    tally.count(
        [SampleStats("a", "emotion", 20, 2, (), ()), SampleStats("b", "reason", 30, 6, ("audio",), ("video",))],
        torch.tensor([1.0, 3.0]),
    )
    counts = tally.take()
    assert (counts.samples, counts.tokens, counts.supervised) == (2, 50, 8)
    assert counts.losses == {"dataset/a": 1.0, "task/emotion": 1.0, "dataset/b": 3.0, "task/reason": 3.0}
    assert counts.absent == {"missing/audio": 1, "hidden/video": 1}
    assert counts.flops == 500
    assert tally.take() == Counts()


def test_early_stopping_ends_the_run_where_scores_no_longer_rise(llama, material, tmp_path):
    config = make_config(
        llama,
        "optim.steps=40",
        "optim.lr=1e-9",
        "optim.warmup_lr=1e-9",
        "log.eval_every=2",
        "log.patience=2",
        "optim.min_lr=1e-9",
    )
    said: list[str] = []
    run = run_training(config, material, tmp_path / "run", say=said.append)
    assert run.result["step"] == 6, "the first scoring, and two that are no better"
    assert [text for text in said if "training ends" in text] == [
        "step 6: no better accuracy (or loss, without one) in 2 scorings; training ends, and the best weights are kept"
    ]
    assert run_training(config, material, tmp_path / "run").result == run.result


def test_a_run_that_reaches_its_last_step_is_not_said_to_have_stopped_early(llama, material, tmp_path):
    """Its last scoring is no better than the one before."""
    said: list[str] = []
    rates = ("optim.lr=1e-9", "optim.warmup_lr=1e-9", "optim.min_lr=1e-9")
    config = make_config(llama, "optim.steps=2", "log.eval_every=1", "log.patience=1", *rates)
    run = run_training(config, material, tmp_path / "run", say=said.append)
    assert run.result["step"] == 2
    assert said
    assert not any("training ends" in text for text in said)


def test_scores_before_a_resume_count_for_early_stopping(config, tmp_path):
    lines = [{"step": step, "accuracy/emotion": value} for step, value in ((2, 0.5), (4, 0.4), (6, 0.5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with logger(config, tmp_path, patience=2) as opened:
        assert opened.stalled()
        assert opened.score_at(4) == 0.4
    with logger(config, tmp_path, patience=3) as opened:
        assert not opened.stalled()


def test_lines_after_the_checkpoint_are_dropped_on_resume(config, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 9999999, "loss": 2}\n{"step": 2, "lo')
    with logger(config, tmp_path):
        pass
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1]


def test_scoring_on_some_clips_asks_the_same_ones_every_time(llama, material, tmp_path):
    config = make_config(llama, "data.eval_clips=5", "log.eval_every=3")
    scored = [row for row in rows(run_training(config, material, tmp_path / "run")) if "eval_loss" in row]
    assert all(row["accuracy/emotion"] * 5 == pytest.approx(round(row["accuracy/emotion"] * 5)) for row in scored)


def test_a_tracker_that_is_not_installed_is_missed_before_anything_is_written(llama, material, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featurecache\[wandb\]'"):
        run_training(make_config(llama, "log.tracker=wandb"), material, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_nobody_is_logged_in_to_says_what_to_do(config, tmp_path, monkeypatch):
    class RefusedError(Exception):
        pass

    def start(self):
        raise RefusedError("No API key configured.")

    tracker = type("Fake", (), {"__init__": lambda self, *args, **options: None, "start": start})
    package = ModuleType("wandb")
    package.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setitem(sys.modules, "wandb.errors", SimpleNamespace(Error=RefusedError))
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", tracker)
    with (
        pytest.raises(ConfigError, match=r"No API key configured\. Log in, or .* WANDB_MODE=offline"),
        logger(config, tmp_path, tracker="wandb", tensorboard=False),
    ):
        pass


@pytest.mark.slow
@pytest.mark.extra
def test_trackio_keeps_the_run_on_this_machine(llama, material, tmp_path):
    pytest.importorskip("trackio")
    (tmp_path / "mine.yaml").write_text(make_config(llama, "log.tracker=trackio", "log.project=toy").to_yaml())
    command = [
        sys.executable,
        "-m",
        "fusion_train.cli",
        "--stage",
        "perception",
        "--config",
        "mine.yaml",
        "--store",
        str(material / "features.zarr"),
        "--clips",
        str(material / "clips.jsonl"),
    ]
    place = tmp_path / "trackio"
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "TRACKIO_DIR": str(place)}, check=True, timeout=120)
    assert list(place.rglob("toy*"))
