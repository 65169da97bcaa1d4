"""NaN is never an answer, never a score, never the best checkpoint, and never stands in a JSON file."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from click.testing import CliRunner
from test_probe import make_probe
from test_train import run_training
from toy import make_config

from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.documents import document_bytes
from fusion_train.errors import DivergedError
from fusion_train.evaluation import evaluate as asking
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.probe import Probe
from fusion_train.predict.opening import open_model
from fusion_train.run import Run
from fusion_train.training.trainer import train
from fusion_train.training.validation import overall


@pytest.fixture(scope="module")
def run(llama, material, tmp_path_factory) -> Run:
    return run_training(make_config(llama, "optim.steps=2"), material, tmp_path_factory.mktemp("sound") / "run")


@pytest.fixture
def poisoned(monkeypatch):
    """NaN in what the model sees of the clip v03, the one without sound; and of no other."""
    soft_tokens = EmotionLlama.soft_tokens

    def wrong(self, features, present):
        soft, mask = soft_tokens(self, features, present)
        return soft.masked_fill(~present[:, :1, None], float("nan")), mask

    monkeypatch.setattr(EmotionLlama, "soft_tokens", wrong)


def evaluate(run: Run, *more: str):
    return CliRunner().invoke(main, ["eval", "--run", str(run.folder), "--split", "val", *more])


@pytest.mark.parametrize("task", ["emotion", "reason"])
def test_evaluation_names_the_clip_and_keeps_the_answers_of_the_others(run, poisoned, tmp_path, task):
    out = tmp_path / "answers.jsonl"
    said = evaluate(run, "--task", task, "--out", str(out))
    assert said.exit_code == 1
    assert "NaN or infinity for 1 of 12" in said.output
    assert "\n  v03" in said.output
    rows = [json.loads(line) for line in (tmp_path / "answers.part-0.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == [f"v{number:02d}" for number in range(12) if number != 3]


def test_answers_go_on_where_scores_are_finite_again(run, monkeypatch, tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert evaluate(run, "--out", str(whole)).exit_code == 0
    with monkeypatch.context() as patch:
        score = asking.label_log_probabilities
        patch.setattr(asking, "label_log_probabilities", lambda *arguments: score(*arguments) * float("nan"))
        assert evaluate(run, "--out", str(parts)).exit_code == 1
    assert evaluate(run, "--out", str(parts)).exit_code == 0
    assert parts.read_bytes() == whole.read_bytes()


def test_a_probe_that_gives_nan_is_refused_with_the_clips(llama, material, tmp_path, monkeypatch):
    logits = Probe.logits
    calls: list[int] = []

    def wrong(self, features, present, allowed):
        out = logits(self, features, present, allowed)
        if not self.training:
            calls.append(1)
            out = torch.where(present[:, :1], out, float("nan"))
        return out

    monkeypatch.setattr(Probe, "logits", wrong)
    run = Run(tmp_path / "run")
    config = make_probe(llama, "optim.steps=3", "log.eval_every=2", "checkpoint.every=100")
    places = {
        "store": str(material / "features.zarr"),
        "clips": str(material / "clips.jsonl"),
        "say": lambda text: None,
    }
    with pytest.raises(DivergedError, match=r"NaN or infinity for 1 of 12.*\n  v03"):
        train(config, run=run, **places)
    folders = checkpoint.published(run.checkpoints)
    assert [folder.name for folder in folders] == ["step-00000002"], "sound weights are kept"
    assert checkpoint.read_state(folders[0]).score is None
    assert not run.finished
    with pytest.raises(DivergedError):  # after the last step
        train(config, run=run, **places)
    with pytest.raises(DivergedError):  # nothing is left to train, and it is not finished all the same
        train(config, run=run, **places)
    assert not run.finished
    monkeypatch.undo()
    assert train(config, run=run, **places)["scores"].keys() == {"accuracy/emotion", "eval_loss"}


def test_weights_that_are_not_finite_are_not_kept(llama, material, tmp_path, monkeypatch):
    logits = Probe.logits

    def spoiled(self, features, present, allowed):
        if not self.training:
            next(self.parameters()).data.fill_(float("nan"))
        return logits(self, features, present, allowed)

    monkeypatch.setattr(Probe, "logits", spoiled)
    run = Run(tmp_path / "run")
    config = make_probe(llama, "optim.steps=3", "log.eval_every=2", "checkpoint.every=100")
    with pytest.raises(DivergedError, match="NaN or infinity for"):
        train(
            config,
            store=str(material / "features.zarr"),
            clips=str(material / "clips.jsonl"),
            run=run,
            say=lambda text: None,
        )
    assert not checkpoint.published(run.checkpoints)


def test_nan_is_no_score_and_never_the_best(run, tmp_path):
    assert overall({"accuracy/emotion": 0.5, "eval_loss": math.nan}) is None
    assert overall({"eval_loss": math.inf}) is None
    folder = tmp_path / "checkpoints"
    shutil.copytree(checkpoint.choose(run.checkpoints, "last"), folder / "step-00000002")
    for step, score in ((1, math.nan), (3, math.nan), (2, 0.25)):
        path = checkpoint.step_folder(folder, step) / "state.json"
        if not path.parent.is_dir():
            shutil.copytree(folder / "step-00000002", path.parent)
        state = json.loads(path.read_text()) | {"step": step, "score": score}
        del state["checksum"]
        path.write_text(json.dumps(state))  # as an earlier release wrote NaN
    assert checkpoint.choose(folder, "best").name == "step-00000002"


def test_no_document_holds_nan():
    assert json.loads(document_bytes({"scores": {"eval_loss": math.nan}}))["scores"] == {"eval_loss": None}


def test_a_gradient_norm_that_is_not_finite_is_null(llama, material, tmp_path, monkeypatch):
    from fusion_train.training import trainer as training

    real = training.train_step

    def step(models, learners, *rest):
        real(models, learners, *rest)
        learners[0].norms["all"] = math.inf

    monkeypatch.setattr(training, "train_step", step)
    run = run_training(make_config(llama, "optim.steps=1"), material, tmp_path / "run")

    def refused(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    rows = [json.loads(line, parse_constant=refused) for line in run.metrics.read_text().splitlines()]
    assert rows[0]["grad_norm"] is None
    assert CliRunner().invoke(main, ["report", str(run.folder)]).exit_code == 0


@pytest.mark.parametrize("task", ["emotion", "reason"])
def test_an_exported_model_answers_with_an_error(exported, trained, tmp_path, monkeypatch, task):
    embed = EmotionLlama.embed
    monkeypatch.setattr(EmotionLlama, "embed", lambda self, *given: embed(self, *given) * float("nan"))
    out = tmp_path / "answers.jsonl"
    said = CliRunner().invoke(
        main,
        [
            "predict",
            "--model",
            str(exported),
            trained.video("v0"),
            "--task",
            task,
            "--out",
            str(out),
            "--device",
            "cpu",
        ],
    )
    assert said.exit_code == 1
    assert 'clip "v0.mp4": expected finite scores, got NaN or infinity' in said.output
    (row,) = map(json.loads, out.read_text().splitlines())
    assert "answer" not in row
    assert "NaN" in row["error"]


def test_an_export_that_failed_its_check_says_so_when_it_is_opened(exported, tmp_path, caplog):
    from fusion_train.documents import write_document

    open_model(exported, "cpu")
    assert "did not pass" not in caplog.text
    copy = shutil.copytree(exported, tmp_path / "copy")
    certificate = json.loads((copy / "certificate.json").read_text())
    certificate["figures"][-1]["passed"] = certificate["passed"] = False
    write_document(copy / "certificate.json", certificate)
    open_model(copy, "cpu")
    assert (
        f"did not pass its parity check: it does not compute what was trained: {certificate['figures'][-1]['name']}"
        in (caplog.text)
    )
