"""Resuming, replaying, dividing: what must come out the same."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_train import equal, run_training, weights
from toy import make_config

from featurecache.clips.clip_list import Clip, Question
from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.config import LogConfig
from fusion_train.data.loader import fixed_rows, rows_under_budget
from fusion_train.data.pool import Pool
from fusion_train.errors import CheckpointError, DeviceMemoryError, DivergedError
from fusion_train.run import Run
from fusion_train.training.metrics_logger import MetricsLogger
from fusion_train.training.validation import Scored, Validation
from fusion_train.training.verify_resume import draw_kills, verify_resume


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_rows_hold_every_unit_once_and_as_many_on_every_process(processes):
    weights = [100, 90, 30.5, 40, 200, 20, 10, 15, 60, 70, 35, 45]
    rows = [rows_under_budget(weights, 150, processes, rank) for rank in range(processes)]
    assert len({len(rows_of_process) for rows_of_process in rows}) == 1
    assert sorted(unit for rows_of_process in rows for row in rows_of_process for unit in row) == list(range(12))
    for row in (row for rows_of_process in rows for row in rows_of_process):
        assert row
        assert sum(weights[unit] for unit in row) <= 150 or row == [4]


def test_a_fixed_micro_batch_deals_samples_out_in_runs():
    assert fixed_rows(8, 2, 2, 0) == [[0, 1], [4, 5]]
    assert fixed_rows(8, 2, 2, 1) == [[2, 3], [6, 7]]


def test_an_automatic_micro_batch_learns_the_same(llama, material, tmp_path):
    quiet = ["model.fusion.dropout=0", "model.lora.dropout=0", "data.tasks=[emotion, reason, think]", "optim.steps=4"]
    one = run_training(make_config(llama, *quiet), material, tmp_path / "one")
    for name, budget in (("all in one row", 4096), ("a row a sample", 1)):
        settings = make_config(llama, *quiet, "optim.micro_batch_size=auto", f"optim.micro_batch_tokens={budget}")
        auto = run_training(settings, material, tmp_path / name.replace(" ", "-"))
        for key, tensor in weights(one).items():
            torch.testing.assert_close(weights(auto)[key], tensor, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")


def test_questions_that_share_a_prefix_learn_what_separate_ones_do(llama, material, tmp_path):
    settings = [
        "model.fusion.dropout=0",
        "model.lora.dropout=0",
        "data.tasks=[emotion, reason, think]",
        "data.questions_per_clip=2",
        "optim.micro_batch_size=4",
        "optim.steps=4",
    ]
    shared = run_training(make_config(llama, *settings), material, tmp_path / "shared")
    apart = run_training(make_config(llama, *settings, "data.share_prefix=false"), material, tmp_path / "apart")
    for name, tensor in weights(apart).items():
        torch.testing.assert_close(weights(shared)[name], tensor, rtol=1e-3, atol=1e-5)
    tokens = [json.loads(run.metrics.read_text().splitlines()[0])["tokens_per_s"] for run in (shared, apart)]
    assert all(value > 0 for value in tokens)


def test_activation_checkpointing_learns_the_same_to_the_bit(llama, material, tmp_path):
    runs = [
        run_training(make_config(llama, f"optim.activation_checkpointing={value}"), material, tmp_path / value)
        for value in ("true", "false")
    ]
    assert equal(*runs)


def test_every_nth_checkpoint_is_kept_beside_the_newest(llama, material, tmp_path):
    config = make_config(
        llama,
        "optim.steps=8",
        "checkpoint.every=1",
        "checkpoint.keep=1",
        "checkpoint.keep_every=3",
        "data.eval_split=null",
    )
    run = run_training(config, material, tmp_path / "run")
    assert [folder.name[-1] for folder in checkpoint.published(run.checkpoints)] == ["3", "6", "8"]


def test_a_diverged_step_is_kept_and_replayed_clip_by_clip(llama, material, tmp_path):
    run = Run(tmp_path / "run")
    config = make_config(llama, "optim.lr=1e30", "optim.warmup_steps=0", "optim.steps=20")
    with pytest.raises(DivergedError) as caught:
        run_training(config, material, run.folder)
    kept = json.loads((run.diverged / "batch.json").read_text())
    assert kept["clips"] == list(caught.value.problems)
    result = CliRunner().invoke(main, ["replay", str(run.folder)])
    assert result.exit_code == 0, result.output
    assert f"step {kept['step']}" in result.output
    assert all(clip in result.output for clip in kept["clips"])
    assert "nan" in result.output


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "precision"), [(0, "fp32"), (1, "bf16")])
def test_a_run_killed_at_random_ten_times_ends_with_the_same_weights(llama, material, tmp_path, seed, precision):
    config = make_config(
        llama,
        f"optim.precision={precision}",
        "optim.micro_batch_size=1",
        "optim.ema_decay=0.9",
        "data.tasks=[emotion, reason, think]",
        "data.hide_modality_p=0.3",
    )
    found = verify_resume(
        config,
        store=str(material / "features.zarr"),
        clips=str(material / "clips.jsonl"),
        folder=tmp_path,
        steps=400,
        kills=10,
        seed=seed,
    )
    assert len(found.kills) == 10
    assert max(found.kills[:5]) < 350  # over the whole run, not all at its end
    assert found.tensors > 100
    assert not found.differing


def test_kills_are_spread_over_the_run_and_over_what_a_process_does():
    drawn = draw_kills(400, 20, 57, seed=0)
    steps = [kill.step for kill in drawn]
    assert min(steps) < 80
    assert 280 < max(steps) < 400
    assert all(kill.step % 57 == 0 for kill in drawn if kill.where == "at a checkpoint")
    assert {kill.where for kill in drawn} == {"in a step", "at a checkpoint", "at the start"}
    assert draw_kills(400, 20, 57, seed=0) == drawn != draw_kills(400, 20, 57, seed=1)
    assert [kill.step for kill in draw_kills(2, 2, 1, seed=0)] == [0, 1]


def test_a_kill_while_the_metrics_log_drops_lines_costs_no_earlier_one(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "accuracy/emotion": step / 10}) for step in (1, 2, 3)]
    path.write_text("\n".join([*lines, '{"step": 4, "acc']))
    log = LogConfig(tensorboard=False)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr("os.rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), MetricsLogger(tmp_path, 2, log, enabled=True, peak_flops=1.0, about={}):
        pass
    monkeypatch.undo()
    with MetricsLogger(tmp_path, 2, log, enabled=True, peak_flops=1.0, about={}) as logger:
        assert logger.scores_at(1) == {"accuracy/emotion": 0.1}
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_run_that_goes_on_reads_no_clip_list_and_draws_the_same(llama, material, tmp_path, monkeypatch):
    (tmp_path / "clips.jsonl").write_text((material / "clips.jsonl").read_text())
    (tmp_path / "features.zarr").symlink_to(material / "features.zarr")
    config = make_config(llama, "data.eval_split=null", "data.tasks=[emotion, reason]", "checkpoint.every=3")
    whole = run_training(config, tmp_path, tmp_path / "whole")
    with monkeypatch.context() as patch:
        real = checkpoint.save

        def stop_at_3(*given, **rest):
            real(*given, **rest)
            raise KeyboardInterrupt

        patch.setattr(checkpoint, "save", stop_at_3)
        with pytest.raises(KeyboardInterrupt):
            run_training(config, tmp_path, tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr("fusion_train.run_context.load_clips", lambda path: pytest.fail("the clip list was read"))
        parts = run_training(config, tmp_path, tmp_path / "parts")
    assert equal(whole, parts)


def test_a_pool_gives_back_its_clips_and_a_damaged_one_is_refused(tmp_path):
    clips = [
        Clip(id="a", text="zwei\nLinien", dataset="x", labels={"emotion": "sad"}, responses={"reason": "weil ü"}),
        Clip(id="b", dataset="y", labels={"multi-label": ["a", "b"]}, questions=(Question("vqa", "two", "How many?"),)),
        Clip(id="c", text="t", split="train", labels={"emotion": "sad"}),
    ]
    pool = Pool(
        clips,
        {"x": np.array([0]), "y": np.array([1]), "": np.array([2])},
        {"x": ["emotion"], "y": ["vqa"], "": ["emotion"]},
    )
    pool.save(tmp_path, [clips[2]], ["train, emotion: sad 2"])
    again = Pool.load(tmp_path)
    assert list(again.clips) == clips
    assert again.clips[1:] == clips[1:]
    assert {name: places.tolist() for name, places in again.places.items()} == {"x": [0], "y": [1], "": [2]}
    assert list(again.places) == list(pool.places)
    assert again.tasks == pool.tasks
    assert again.sha256 == pool.sha256
    assert again.summary == ["train, emotion: sad 2"]
    (tmp_path / "clips.jsonl").write_bytes((tmp_path / "clips.jsonl").read_bytes().replace(b"sad", b"bad"))
    with pytest.raises(CheckpointError, match=r"clips\.jsonl: expected sha256 .*, got other bytes"):
        Pool.load(tmp_path)


def test_the_best_weights_are_kept_though_no_checkpoint_was_due(llama, material, tmp_path, monkeypatch):
    scores = iter([0.2, 0.6, 0.5, 0.6])
    monkeypatch.setattr(Validation, "score", lambda *_: [Scored({"accuracy/emotion": next(scores)})])
    config = make_config(llama, "optim.steps=8", "log.eval_every=2", "checkpoint.every=100", "checkpoint.keep=1")
    run = run_training(config, material, tmp_path / "run")
    assert [folder.name[-1] for folder in checkpoint.published(run.checkpoints)] == ["4", "8"]
    assert checkpoint.choose(run.checkpoints, "best").name[-1] == "4"


def test_deterministic_kernels_are_chosen_before_anything_is_opened(llama, material, tmp_path, monkeypatch):
    chosen = []

    def opened(*_, **__):
        chosen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        raise KeyError("no further")

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr("fusion_train.training.trainer.open_contexts", opened)
    try:
        for setting in ("false", "true"):
            with pytest.raises(KeyError, match="no further"):
                run_training(make_config(llama, f"optim.deterministic={setting}"), material, tmp_path / setting)
    finally:
        torch.use_deterministic_algorithms(False)
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert chosen == [(False, None), (True, ":4096:8")]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("fusion_train.training.trainer.Validation.score", r"scoring after step 6: .*data\.eval_split=null"),
        ("fusion_train.models.emotion_llama.EmotionLlama.to", r"the model: .*model\.quantised=nf4"),
    ],
)
def test_a_model_or_a_scoring_that_does_not_fit_is_no_traceback(llama, material, tmp_path, monkeypatch, where, said):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(where, full)
    with pytest.raises(DeviceMemoryError, match=said):
        run_training(make_config(llama), material, tmp_path / "run")


def test_a_row_that_does_not_fit_says_what_takes_the_memory_and_what_to_set(llama, material, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("fusion_train.training.trainer.train_step", full)
    with pytest.raises(DeviceMemoryError, match=r"GiB by the memory model.*set optim\.micro_batch_size=2\..*--out"):
        run_training(make_config(llama, "optim.micro_batch_size=4"), material, tmp_path / "run")
