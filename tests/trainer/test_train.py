"""Training as a user runs it: learning, resuming, refusing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from toy import make_config, write_features
from transformers.models.llama.modeling_llama import LlamaMLP

from featurecache.errors import FingerprintError, MissingFeatureError
from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.config import Config
from fusion_train.documents import write_document
from fusion_train.errors import CheckpointError, ConfigError, DivergedError
from fusion_train.run import Run, latest_finished
from fusion_train.training.optimizer import learning_rate
from fusion_train.training.trainer import train


def run_training(config: Config, material: Path, folder: Path, say=lambda text: None, **rest) -> Run:
    run = Run(folder)
    train(
        config,
        store=str(material / "features.zarr"),
        clips=str(material / "clips.jsonl"),
        run=run,
        say=say,
        **rest,
    )
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.choose(run.checkpoints, "last") / "model.safetensors")


def equal(first: Run, second: Run) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_training_learns_the_labels(llama, material, tmp_path):
    config = make_config(llama, "optim.steps=80", "log.eval_every=40", "optim.lr=1e-2", "checkpoint.every=40")
    run = run_training(config, material, tmp_path / "run")
    assert run.result["scores"]["accuracy/emotion"] >= 0.9
    losses = [row["loss"] for row in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in row]
    assert losses[-1] < losses[0] / 2


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(config, material, tmp_path, monkeypatch):
    whole = run_training(config, material, tmp_path / "whole")
    real_save = checkpoint.save

    def killed_after_step_4(checkpoints, model, optimizer, state, **rest):
        saved = real_save(checkpoints, model, optimizer, state, **rest)
        if state.step == 4:
            raise KeyboardInterrupt
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed_after_step_4)
        with pytest.raises(KeyboardInterrupt):
            run_training(config, material, tmp_path / "parts")
    parts = run_training(config, material, tmp_path / "parts")
    assert equal(whole, parts)
    steps = [json.loads(line)["step"] for line in parts.metrics.read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in whole.metrics.read_text().splitlines()]


def test_activations_are_computed_twice_from_the_first_step_on(llama, material, tmp_path, monkeypatch):
    passes = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda layer, hidden: passes.append(layer.training) or forward(layer, hidden)
    )
    for checkpointing in ("false", "true"):
        settings = ["optim.steps=1", "data.eval_split=null", f"optim.activation_checkpointing={checkpointing}"]
        run_training(make_config(llama, *settings), material, tmp_path / checkpointing)
    assert all(passes)  # previously in evaluation mode until the first scoring, which turns checkpointing off
    once = len(passes) // 3
    assert len(passes) == 3 * once


def test_micro_batches_do_not_change_what_is_learnt(llama, material, tmp_path):
    quiet = ["model.fusion.dropout=0", "model.lora.dropout=0"]
    whole = run_training(make_config(llama, "optim.micro_batch_size=4", *quiet), material, tmp_path / "whole")
    parts = run_training(make_config(llama, "optim.micro_batch_size=1", *quiet), material, tmp_path / "parts")
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_holds_trained_parts_only(config, material, tmp_path):
    run = run_training(config, material, tmp_path / "run")
    names = set(weights(run))
    assert names
    assert all(name.startswith(("fusion.", "projectors.")) or ".lora_" in name for name in names)
    assert [folder.name for folder in checkpoint.published(run.checkpoints)] == ["step-00000004", "step-00000006"]


def test_a_finished_run_is_not_trained_again(config, material, tmp_path):
    run = run_training(config, material, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    run_training(config, material, tmp_path / "run")
    assert before == {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}


def test_another_configuration_in_the_same_folder_is_refused(config, llama, material, tmp_path):
    run_training(config, material, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"optim\.lr: 0\.1 != 0\.003"):
        run_training(make_config(llama, "optim.lr=0.1"), material, tmp_path / "run")


def test_a_damaged_checkpoint_is_refused(config, llama, material, tmp_path):
    run = run_training(config, material, tmp_path / "run")
    (run.folder / "finished.json").unlink()
    file = checkpoint.choose(run.checkpoints, "last") / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="Delete step-00000006"):
        run_training(config, material, tmp_path / "run")


def test_a_checkpoint_that_was_trained_on_other_features_is_not_resumed(config, llama, material, tmp_path, monkeypatch):
    run_training(config, material, tmp_path / "run")
    (tmp_path / "run/finished.json").unlink()
    read_state = checkpoint.read_state

    def of_another_run(folder: Path):
        state = read_state(folder)
        return replace(state, fingerprints=dict(state.fingerprints) | {"audio": "f" * 64})

    monkeypatch.setattr(checkpoint, "read_state", of_another_run)
    with pytest.raises(CheckpointError, match="trained on other features"):
        run_training(config, material, tmp_path / "run")


def test_a_checkpoint_of_another_shape_names_every_difference(config, llama, material, tmp_path):
    run_training(config, material, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"lora_A.*expected \(2, 32\), got \(4, 32\)"):
        run_training(make_config(llama, "model.lora.r=2"), material, tmp_path / "other", initial=Run(tmp_path / "run"))


def test_cognition_starts_from_perception_with_a_fresh_optimizer(config, llama, material, tmp_path):
    first = run_training(config, material, tmp_path / "perception")
    assert latest_finished(tmp_path, "perception").name == "perception"
    second = run_training(
        make_config(llama, "optim.steps=1", stage="cognition"), material, tmp_path / "cognition", initial=first
    )
    state = checkpoint.read_state(checkpoint.choose(first.checkpoints, "best"))
    assert second.record().initial == {
        "run": "../perception",
        "step": state.step,
        "sha256": state.sha256["model.safetensors"],
    }
    moved = [(weights(second)[name] - tensor).abs().max().item() for name, tensor in weights(first).items()]
    assert 0 < max(moved) < 1e-4, "one step at the warm-up rate moves the weights a little"


def test_cognition_without_perception_says_what_to_run(material, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["--stage", "cognition"])
    assert result.exit_code == 2
    assert "fusion-train --stage perception" in result.output


def test_features_of_another_fingerprint_are_refused(config, material, tmp_path):
    run = run_training(config, material, tmp_path / "run")
    (run.folder / "finished.json").unlink()
    record = json.loads((run.folder / "run.json").read_text())
    record["fingerprints"]["audio"] = "f" * 64
    write_document(run.folder / "run.json", record)
    with pytest.raises(FingerprintError, match="ffffffffffff"):
        run_training(config, material, tmp_path / "run")


def test_an_incomplete_store_is_refused_with_the_clips(config, material, tmp_path):
    store = write_features(tmp_path / "features.zarr", {"t00": "angry"})
    with pytest.raises(MissingFeatureError, match="t01: not extracted for whisper"):
        train(config, store=str(store), clips=str(material / "clips.jsonl"), run=Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_refused(llama, material, tmp_path):
    with pytest.raises(ConfigError, match=r"optim\.batch_size: expected a multiple of micro_batch_size 3"):
        run_training(make_config(llama, "optim.micro_batch_size=3"), material, tmp_path / "run")


def test_divergence_names_the_clips(llama, material, tmp_path):
    config = make_config(llama, "optim.lr=1e30", "optim.warmup_steps=0", "optim.steps=20")
    with pytest.raises(DivergedError, match=r"expected a finite loss.*\n  t\d\d"):
        run_training(config, material, tmp_path / "run")


def test_the_schedule_is_the_published_one(llama):
    optim = make_config(llama, "optim.steps=50000", "optim.warmup_steps=1000", "optim.lr=1e-4").optim
    assert learning_rate(0, optim) == pytest.approx(1e-6)
    assert learning_rate(500, optim) == pytest.approx((1e-6 + 1e-4) / 2)
    assert learning_rate(1000, optim) == pytest.approx(1e-4)
    assert learning_rate(25_500, optim) == pytest.approx((1e-6 + 1e-4) / 2)
    assert learning_rate(49_999, optim) == pytest.approx(1e-6, rel=1e-3)


def started_training(config: Config, material: Path, folder: Path, **streams) -> subprocess.Popen:
    """A process that trains without end in `folder`/run, and has kept a checkpoint."""
    endless = config.model_copy(update={"optim": config.optim.model_copy(update={"steps": 100_000})})
    (folder / "mine.yaml").write_text(endless.to_yaml())
    command = [
        "-m",
        "fusion_train.cli",
        "--stage",
        "perception",
        "--config",
        str(folder / "mine.yaml"),
        "--store",
        str(material / "features.zarr"),
        "--clips",
        str(material / "clips.jsonl"),
        "--out",
        str(folder / "run"),
    ]
    process = subprocess.Popen([sys.executable, *streams.pop("before", ()), *command], **streams)
    deadline = time.monotonic() + 60
    while not checkpoint.published(folder / "run" / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.1)
        assert process.poll() is None
    return process


def test_sigterm_saves_and_says_how_to_go_on(llama, material, tmp_path):
    """A real process, stopped by a real signal, resumed by the command it names."""
    config = make_config(llama, "checkpoint.every=3")
    process = started_training(config, material, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"fusion-train resume {tmp_path / 'run'}" in errors
    assert not Run(tmp_path / "run").finished
    state = checkpoint.read_state(checkpoint.choose(tmp_path / "run" / "checkpoints", "last"))
    assert f"stopped after step {state.step}." in errors


TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def test_a_closed_terminal_loses_no_step(llama, material, tmp_path):
    config = make_config(llama, "checkpoint.every=3", "log.eval_every=1")  # a line on the terminal after every step
    master, slave = os.openpty()
    process = started_training(
        config,
        material,
        tmp_path,
        before=("-c", TAKE_TERMINAL),
        start_new_session=True,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    os.close(master)
    assert process.wait(60) == 1
    steps = [checkpoint.read_state(folder).step for folder in checkpoint.published(tmp_path / "run" / "checkpoints")]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == max(row["step"] for row in rows)
