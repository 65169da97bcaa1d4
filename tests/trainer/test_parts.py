"""Learning rates by part, frozen parts, the moving average."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from test_train import run_training, weights
from toy import make_config

from fusion_train import checkpoint
from fusion_train.errors import ConfigError
from fusion_train.models.parts import part_of
from fusion_train.presets import load_config
from fusion_train.run_context import load_context
from fusion_train.training.optimizer import make_optimizer, set_learning_rates


def moved_parts(before, after) -> set[str]:
    return {part_of(name) for name, tensor in weights(after).items() if not torch.equal(tensor, weights(before)[name])}


def step_rows(run) -> list[dict[str, float]]:
    rows = [row for row in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in row]
    assert rows
    return rows


def test_each_part_has_the_rate_of_the_schedule_times_its_factor(llama, material, tmp_path):
    config = make_config(llama, "optim.steps=3", "optim.lr_factors.lora=0.1", "optim.lr_factors.fusion=2")
    run = run_training(config, material, tmp_path / "run")
    for row in step_rows(run):
        assert row["lr/lora"] == pytest.approx(0.1 * row["lr/projectors"], rel=1e-4)
        assert row["lr/fusion"] == pytest.approx(2 * row["lr/projectors"], rel=1e-4)


def test_gradient_norms_by_part_add_up(config, material, tmp_path):
    run = run_training(config, material, tmp_path / "run")
    for row in step_rows(run):
        parts = [row[f"grad_norm/{part}"] for part in ("fusion", "projectors", "lora")]
        assert row["grad_norm"] == pytest.approx(sum(norm**2 for norm in parts) ** 0.5, rel=1e-4)


def test_biases_do_not_decay_in_any_part(llama, material, tmp_path):
    run = run_training(make_config(llama, "optim.steps=1"), material, tmp_path / "run")
    optimizer = make_optimizer(load_context(run).model, run.config().optim)
    for group in optimizer.param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
    assert {group["part"] for group in optimizer.param_groups} == {"fusion", "projectors", "lora"}
    assert set(set_learning_rates(optimizer, 0, run.config().optim)) == {"fusion", "projectors", "lora"}


def test_a_frozen_part_keeps_its_weights_and_stays_in_the_checkpoint(llama, material, tmp_path):
    first = run_training(make_config(llama), material, tmp_path / "first")
    config = make_config(llama, "model.frozen=[fusion, lora]", "optim.steps=3")
    second = run_training(config, material, tmp_path / "second", initial=first)
    assert weights(second).keys() == weights(first).keys()
    assert moved_parts(first, second) == {"projectors"}


def test_a_stage_may_freeze(tmp_path):
    (tmp_path / "mine.yaml").write_text("stages: {cognition: {model: {frozen: [fusion]}}}\n")
    assert load_config(tmp_path / "mine.yaml", "cognition").model.frozen == ("fusion",)
    assert load_config(tmp_path / "mine.yaml", "perception").model.frozen == ()


def test_freezing_everything_is_refused(llama, material, tmp_path):
    config = make_config(llama, "model.frozen=[fusion, lora, projectors]")
    with pytest.raises(ConfigError, match="every part frozen"):
        run_training(config, material, tmp_path / "run")


def test_the_average_is_kept_beside_the_weights_and_is_what_is_used(llama, material, tmp_path):
    run = run_training(make_config(llama, "optim.ema_decay=0.9", "log.eval_every=2"), material, tmp_path / "run")
    plain = run_training(make_config(llama), material, tmp_path / "plain")
    folder = checkpoint.choose(run.checkpoints, "last")
    averaged = load_file(folder / checkpoint.AVERAGED)
    assert all(torch.equal(weights(run)[name], tensor) for name, tensor in weights(plain).items()), "it changes nothing"
    moved = [name for name, tensor in averaged.items() if not torch.equal(tensor, weights(run)[name])]
    assert len(moved) > len(averaged) / 2
    used = dict(load_context(run, which="last").model.named_parameters())
    assert all(torch.equal(used[name], tensor) for name, tensor in averaged.items())
    later = run_training(make_config(llama, "optim.steps=1"), material, tmp_path / "later", initial=run)
    best = checkpoint.read_state(checkpoint.choose(run.checkpoints, "best"))
    assert later.record().initial["sha256"] == best.sha256[checkpoint.AVERAGED]


def test_the_average_resumes_bit_for_bit(llama, material, tmp_path, monkeypatch):
    config = make_config(llama, "optim.ema_decay=0.9")
    whole = run_training(config, material, tmp_path / "whole")
    real_save = checkpoint.save

    def killed_after_step_2(*arguments, **rest):
        saved = real_save(*arguments, **rest)
        if saved.name.endswith("2"):
            raise KeyboardInterrupt
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed_after_step_2)
        with pytest.raises(KeyboardInterrupt):
            run_training(config, material, tmp_path / "parts")
    parts = run_training(config, material, tmp_path / "parts")
    one, two = (load_file(checkpoint.choose(run.checkpoints, "last") / checkpoint.AVERAGED) for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
