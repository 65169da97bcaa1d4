"""A user's own code in the training loop: one file, named on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from test_train import run_training
from test_trial_groups import tensors
from toy import make_config

from featurecache.interrupt import Interrupted
from fusion_train.cli import main
from fusion_train.errors import CheckpointError, ConfigError
from fusion_train.run import Run
from fusion_train.training.callbacks import Callback, load_callbacks

EXAMPLES = Path(__file__).parents[2] / "examples" / "callbacks.py"


class Recorder(Callback):
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.values: dict[int, dict[str, float]] = {}

    def on_start(self, run) -> None:
        self.calls.append(("start", run.done))

    def on_step(self, run, step) -> None:
        self.calls.append(("step", step))

    def on_log(self, run, step, values) -> None:
        self.values[step] = dict(values)

    def on_score(self, run, step, scores) -> None:
        self.calls.append(("score", step))

    def on_end(self, run, result) -> None:
        self.calls.append(("end", result["step"]))


def test_a_logger_sees_every_step_line_and_score_in_order(llama, material, tmp_path):
    recorder = Recorder()
    config = make_config(llama, "optim.steps=3", "log.every=1", "log.eval_every=2")
    run = run_training(config, material, tmp_path / "run", callbacks=[recorder])
    assert recorder.calls == [
        ("start", 0), ("step", 1), ("step", 2), ("score", 2), ("step", 3), ("score", 3), ("end", 3)
    ]  # fmt: skip
    lines = {row["step"]: row["loss"] for row in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in row}
    assert {step: values["loss"] for step, values in recorder.values.items()} == pytest.approx(lines, rel=1e-6)


def test_label_smoothing_in_a_file_of_its_own_changes_the_weights_and_is_recorded(llama, material, tmp_path):
    callbacks = load_callbacks([f"{EXAMPLES}:LabelSmoothing"])
    plain = run_training(make_config(llama, "optim.steps=2"), material, tmp_path / "plain")
    smooth = run_training(make_config(llama, "optim.steps=2"), material, tmp_path / "smooth", callbacks=callbacks)
    losses = [[row["loss"] for row in run.metric_rows() if "loss" in row] for run in (plain, smooth)]
    assert any(not (tensors(plain)[name] == tensor).all() for name, tensor in tensors(smooth).items()), losses
    assert list(smooth.record().callbacks) == ["LabelSmoothing"]
    assert plain.record().callbacks == {}


def test_a_loss_that_is_reduced_is_refused_with_the_shape_that_is_expected(llama, material, tmp_path):
    class Reduced(Callback):
        def on_start(self, run) -> None:
            run.context.model.token_loss = torch.nn.functional.cross_entropy

    with pytest.raises(ValueError, match=r"expected one loss per target, \(\d+,\), got \(\)\. Do not reduce"):
        run_training(make_config(llama), material, tmp_path / "run", callbacks=[Reduced()])


def test_a_custom_stop_ends_the_run_scored_and_finished(llama, material, tmp_path):
    class AfterTwo(Callback):
        def should_stop(self, run, step) -> bool:
            return step == 2

    run = run_training(make_config(llama, "log.eval_every=5"), material, tmp_path / "run", callbacks=[AfterTwo()])
    assert run.result["step"] == 2
    assert "accuracy/emotion" in run.result["scores"]
    assert run.finished


def test_the_other_examples_log_and_stop(llama, material, tmp_path):
    callbacks = load_callbacks([f"{EXAMPLES}:CsvLog", f"{EXAMPLES}:StopAtLoss"])
    config = make_config(llama, "log.every=1", "optim.steps=2")
    run = run_training(config, material, tmp_path / "run", callbacks=callbacks)
    losses = [row["loss"] for row in run.metric_rows() if "loss" in row]
    logged = [line.split(",") for line in (run.folder / "loss.csv").read_text().split()]
    assert [int(step) for step, _ in logged] == [1, 2]
    assert [float(loss) for _, loss in logged] == pytest.approx(losses, rel=1e-6)
    low = type("Low", (), {"loss": 0.01})
    assert callbacks[1].should_stop(type("Run", (), {"learner": low}), 1)


def test_a_run_is_not_resumed_with_other_callbacks(llama, material, tmp_path):
    file = shutil.copy(EXAMPLES, tmp_path / "mine.py")
    steps = iter([True])
    config = make_config(llama)
    with pytest.raises(Interrupted):
        run_training(
            config,
            material,
            tmp_path / "run",
            callbacks=load_callbacks([f"{file}:LabelSmoothing"]),
            stop=lambda: next(steps, False),
        )
    with pytest.raises(CheckpointError, match=r"began with: LabelSmoothing, got none.*--callback"):
        run_training(config, material, tmp_path / "run")
    Path(file).write_text(Path(file).read_text().replace("label_smoothing=0.1", "label_smoothing=0.2"))
    with pytest.raises(CheckpointError, match="LabelSmoothing, whose file changed"):
        run_training(config, material, tmp_path / "run", callbacks=load_callbacks([f"{file}:LabelSmoothing"]))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nothing.py:A", "no such file"),
        ("mine.py", "FILE.py:CLASS"),
        ("mine.py:Other", "class Other that inherits from fusion_train.training.callbacks.Callback"),
        ("mine.py:partial", "class partial that inherits"),
    ],
)
def test_a_callback_that_cannot_be_loaded_is_named(tmp_path, monkeypatch, reference, message):
    shutil.copy(EXAMPLES, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_callbacks([reference])


def test_the_command_line_takes_callbacks(llama, material, tmp_path):
    config = make_config(llama, "optim.steps=1")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    done = CliRunner().invoke(
        main,
        [
            "--stage", config.stage, "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run"),
            "--store", str(material / "features.zarr"), "--clips", str(material / "clips.jsonl"),
            "--set", f"model.llm={llama}", "--callback", f"{EXAMPLES}:LabelSmoothing",
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert list(Run(tmp_path / "run").record().callbacks) == ["LabelSmoothing"]
