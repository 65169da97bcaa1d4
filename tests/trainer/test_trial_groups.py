"""Trials trained in a group equal the runs that they would be alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from safetensors.torch import load_file
from toy import make_config

from fusion_train import checkpoint
from fusion_train.evaluation.append_only import read_lines
from fusion_train.evaluation.evaluate import evaluate
from fusion_train.models.model_group import ModelGroup
from fusion_train.run import Run
from fusion_train.run_context import load_context
from fusion_train.sweeps import worker
from fusion_train.sweeps.job import PREDICTIONS, SweepSettings
from fusion_train.training.shared_base import RunRequest, SharedBase
from fusion_train.training.trainer import train, train_runs

SETTINGS = {
    "plain": [],
    "conv": ["model.fusion.name=conv", "model.lora.r=8"],
    "fast": ["optim.lr=1e-2", "optim.max_grad_norm=0.5", "optim.ema_decay=0.9"],
    "short": ["optim.steps=4", "model.lora.r=0"],
}


def places(material: Path) -> dict[str, str]:
    return {"store": str(material / "features.zarr"), "clips": str(material / "clips.jsonl")}


def requests_in(folder: Path, llama: Path, names=tuple(SETTINGS), *more: str) -> list[RunRequest]:
    return [
        RunRequest(
            make_config(llama, "log.eval_every=3", "log.peak_tflops=1", *more, *SETTINGS[name]), Run(folder / name)
        )
        for name in names
    ]


def together(requests: list[RunRequest], material: Path, **rest):
    return train_runs(requests, **places(material), base=SharedBase(), say=lambda text: None, **rest)


def tensors(run: Run, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(checkpoint.choose(run.checkpoints, "last") / name)


def equal(one: Run, other: Run) -> bool:
    for file in ("model.safetensors", "optimizer.safetensors"):
        mine, theirs = tensors(one, file), tensors(other, file)
        if mine.keys() != theirs.keys() or not all(torch.equal(mine[name], theirs[name]) for name in mine):
            return False
    return True


@pytest.fixture(scope="module")
def alone(llama, material, tmp_path_factory) -> dict[str, Run]:
    """Every variant trained by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for request in requests_in(folder, llama):
        train(request.config, **places(material), run=request.run, say=lambda text: None)
    return {name: Run(folder / name) for name in SETTINGS}


@pytest.fixture(scope="module")
def group(llama, material, tmp_path_factory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("group")
    together(requests_in(folder, llama), material)
    return {name: Run(folder / name) for name in SETTINGS}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_trial_in_a_group_equals_the_run_alone_to_the_bit(name, alone, group):
    assert equal(alone[name], group[name])
    assert group[name].result["step"] == alone[name].result["step"]
    assert group[name].result["scores"] == pytest.approx(alone[name].result["scores"], abs=1e-6)


def test_it_logs_the_same_losses(alone, group):
    def losses(run: Run) -> list[float]:
        return [row["loss"] for row in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in row]

    assert losses(group["conv"]) == losses(alone["conv"])


def test_it_is_an_ordinary_run(material, group):
    context = load_context(group["fast"], **places(material))
    assert evaluate(context, context.clips.in_split("val"), "emotion").scores.num_clips == 12


@pytest.mark.parametrize("task", ["emotion", "reason"])
@pytest.mark.parametrize("stacked", [False, True], ids=["in turns", "stacked"])
def test_finished_trials_asked_together_answer_as_each_alone(stacked, task, llama, material, group, monkeypatch):
    monkeypatch.setattr(worker, "ModelGroup", partial(ModelGroup, stacked=stacked))
    monkeypatch.setattr("fusion_train.evaluation.evaluate.MAX_NEW_TOKENS", 6)
    folder = group["plain"].folder.parent
    work = SweepSettings(**places(material), out=folder, task=task, split="val")
    requests, base = requests_in(folder, llama), SharedBase()
    together = worker.evaluate_finished(requests, [None] * len(requests), work, base)
    for each, found in zip(requests, together, strict=True):
        context = load_context(each.run, **places(material))
        expected = evaluate(context, context.clips.in_split("val"), task)
        assert len(found.predictions) == len(expected.predictions) == 12
        for mine, theirs in zip(found.predictions, expected.predictions, strict=True):
            assert mine.pop("probabilities", {}) == pytest.approx(theirs.pop("probabilities", {}), abs=1e-5)
            assert mine == theirs
        assert read_lines(each.run.folder / PREDICTIONS) == [
            {**row, **({"probabilities": ANY} if task == "emotion" else {})} for row in expected.predictions
        ]


def test_finished_trials_are_not_asked_again_what_their_best_weights_answered(llama, material, tmp_path, monkeypatch):
    requests = requests_in(tmp_path, llama, ("conv", "fast"))
    members = together(requests, material)
    work = SweepSettings(**places(material), out=tmp_path, task="emotion", split="val")
    anew = worker.evaluate_finished(requests, [None, None], work, SharedBase())
    other = SweepSettings(**places(material), out=tmp_path, task="emotion", split="train")
    assert len(worker.evaluate_finished(requests, members, other, SharedBase())[0].predictions) == 36, "other clips"
    for name in ("evaluate", "evaluate_together"):
        monkeypatch.setattr(worker, name, None)
    kept = worker.evaluate_finished(requests, members, work, SharedBase())
    assert [each.predictions for each in kept] == [each.predictions for each in anew]


def test_stopped_at_a_rung_it_goes_on_alone_or_in_a_group(llama, material, tmp_path, alone):
    paused = together(requests_in(tmp_path, llama), material, until=3)
    assert [member.finished for member in paused] == [False] * 4
    assert all(member.logger.scores_at(3) for member in paused)
    for request in requests_in(tmp_path, llama, ("plain",)):
        train(request.config, **places(material), run=request.run, say=lambda text: None)
    together(requests_in(tmp_path, llama, ("conv", "fast", "short")), material)
    assert all(equal(alone[name], Run(tmp_path / name)) for name in SETTINGS)


@pytest.mark.slow
def test_members_resumed_at_different_steps_meet(llama, material, tmp_path, alone):
    together(requests_in(tmp_path, llama, ("plain",)), material, until=4)
    together(requests_in(tmp_path, llama, ("conv",)), material, until=2)
    together(requests_in(tmp_path, llama, ("plain", "conv")), material)
    assert all(equal(alone[name], Run(tmp_path / name)) for name in ("plain", "conv"))


def test_one_that_diverges_leaves_and_the_others_are_unchanged(llama, material, tmp_path, alone):
    requests = requests_in(tmp_path, llama, ("plain", "conv"))
    wild = make_config(llama, "log.eval_every=3", "log.peak_tflops=1", "optim.lr=1e30", "optim.warmup_steps=0")
    members = together([requests[0], RunRequest(wild, Run(tmp_path / "wild")), requests[1]], material)
    assert members[1].error is not None
    assert "finite loss" in str(members[1].error)
    assert not members[1].finished
    assert all(equal(alone[name], Run(tmp_path / name)) for name in ("plain", "conv"))


def test_killed_between_its_last_checkpoint_and_its_end_it_is_finished(llama, material, tmp_path):
    requests = requests_in(tmp_path, llama, ("short",))
    together(requests, material)
    result = requests[0].run.result
    (requests[0].run.folder / "finished.json").unlink()
    together(requests, material)
    assert requests[0].run.result["scores"] == result["scores"]


@pytest.mark.slow
def test_memory_is_flat_over_fifty_trials(llama, material, tmp_path):
    base, resident = SharedBase(), []
    for number in range(50):
        config = make_config(llama, "optim.steps=1", "log.peak_tflops=1", f"seed={number}")
        train_runs(
            [RunRequest(config, Run(tmp_path / str(number)))], **places(material), base=base, say=lambda text: None
        )
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert resident[-1] - resident[10] < 30 << 20, [each >> 20 for each in resident[::10]]
