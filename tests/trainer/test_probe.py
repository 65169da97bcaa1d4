"""The probe: fusion and a linear head, trained by the loop that trains everything, without a language model."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from test_parts import moved_parts
from test_train import equal, run_training, weights
from toy import LABELS, make_config, write_features

import featurecache
from featurecache.clips.clip_list import Clip
from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.data import pooled_features
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.data.pooled_features import PooledFeatures, average
from fusion_train.data.probe_batches import Classes
from fusion_train.errors import ConfigError, DataError
from fusion_train.models.fusion_inputs import resample
from fusion_train.models.parts import part_of
from fusion_train.prompts.prompt import find_task

QUICK = ("model.llm=null", "model.fusion.num_tokens=2", "optim.batch_size=12", "optim.micro_batch_size=12")


def make_probe(llama, *overrides: str):
    return make_config(llama, *QUICK, "checkpoint.every=20", *overrides, stage="probe")


@pytest.fixture(scope="module")
def probe(llama, material, tmp_path_factory):
    config = make_probe(llama, "optim.steps=60", "optim.lr=1e-2", "checkpoint.every=60")
    return run_training(config, material, tmp_path_factory.mktemp("probe") / "probe")


def test_a_probe_learns_the_labels_without_a_language_model(probe):
    assert probe.result["scores"]["accuracy/emotion"] >= 0.9
    assert {part_of(name) for name in weights(probe)} == {"fusion", "head"}


def test_a_probe_is_scored_by_the_same_command(probe):
    result = CliRunner().invoke(main, ["eval", "--run", str(probe.folder), "--split", "val"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (probe.folder / "predictions-val-emotion.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert all(row["prediction"] == max(row["probabilities"], key=row["probabilities"].get) for row in rows)
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_a_probe_answers_no_open_question(probe):
    result = CliRunner().invoke(main, ["eval", "--run", str(probe.folder), "--split", "val", "--task", "reason"])
    assert result.exit_code == 2
    assert "no language model" in result.output


def stop_after_step_4(config, material, folder, monkeypatch) -> None:
    """Train until the checkpoint of step 4 is saved, as a killed run does."""
    real_save = checkpoint.save

    def killed_after_step_4(*arguments, **rest):
        saved = real_save(*arguments, **rest)
        if saved.name.endswith("4"):
            raise KeyboardInterrupt
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed_after_step_4)
        with pytest.raises(KeyboardInterrupt):
            run_training(config, material, folder)


def test_a_stopped_probe_resumes_bit_for_bit(llama, material, tmp_path, monkeypatch):
    config = make_probe(llama, "optim.steps=6", "checkpoint.every=2", "optim.ema_decay=0.9")
    whole = run_training(config, material, tmp_path / "whole")
    stop_after_step_4(config, material, tmp_path / "parts", monkeypatch)
    assert equal(whole, run_training(config, material, tmp_path / "parts"))


def test_its_fusion_starts_a_stage_with_a_language_model(probe, llama, material, tmp_path):
    config = make_config(llama, "optim.steps=1", "model.frozen=[fusion]")
    run = run_training(config, material, tmp_path / "run", initial=probe)
    kept = load_file(checkpoint.choose(probe.checkpoints, "best") / "model.safetensors")
    fusion = {name: tensor for name, tensor in weights(run).items() if part_of(name) == "fusion"}
    assert fusion
    assert all(torch.equal(kept[name], tensor) for name, tensor in fusion.items())
    assert run.record().initial["run"].endswith("probe")


def test_a_probe_may_start_from_a_trained_model(probe, llama, material, tmp_path):
    trained = run_training(make_config(llama, "optim.steps=2"), material, tmp_path / "trained")
    run = run_training(
        make_probe(llama, "optim.steps=1", "optim.lr_factors.fusion=1e-9"), material, tmp_path / "run", initial=trained
    )
    fusion = {name for name in weights(run) if part_of(name) == "fusion"}
    start = load_file(checkpoint.choose(trained.checkpoints, "best") / "model.safetensors")
    for name in fusion:
        torch.testing.assert_close(weights(run)[name], start[name], atol=1e-6, rtol=1e-3)
    assert moved_parts(probe, run) >= {"fusion"}


@pytest.mark.parametrize(
    ("override", "said"),
    [("data.tasks=[reason]", "one label a clip"), ("model.fusion.name=none", "trains nothing else")],
)
def test_what_a_probe_cannot_train_is_refused(llama, material, tmp_path, override, said):
    with pytest.raises(ConfigError, match=said):
        run_training(make_probe(llama, override), material, tmp_path / "run")


def test_a_label_outside_the_closed_sets_is_named():
    classes = Classes({"toy": {"emotion": ["angry", "sad"]}})
    clip = Clip(id="c7", dataset="toy")
    assert classes.numbers(clip, find_task("emotion"), ["sad", "angry"]) == [1, 0]
    with pytest.raises(DataError, match="surprised"):
        classes.numbers(clip, find_task("emotion"), ["sad", "surprised"])


@pytest.mark.parametrize("read_bytes", [pooled_features.READ_BYTES, 700])  # all clips at once, or a few per read
def test_pooling_reads_each_clip_once_and_averages_over_time(tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(pooled_features, "READ_BYTES", read_bytes)
    ids = [f"c{number}" for number in range(20)]
    store = write_features(tmp_path / "features.zarr", dict.fromkeys(ids, LABELS[0]), absent={"c3": "whisper"})
    reader = FeatureReader.open(str(store), {"audio": "whisper", "image": "eva-global", "video": "eva-temporal"})
    pooled = PooledFeatures(reader, 2)
    pooled.load(ids[:7])
    pooled.load(ids)
    whole = featurecache.open_store(store)
    present = torch.tensor([[clip_id != "c3", True, True] for clip_id in ids])
    taken = pooled.take(ids, present)
    for row, clip_id in enumerate(ids):
        video = torch.tensor(whole["eva-temporal"][clip_id]).float().unflatten(0, (2, 2)).mean(1)
        torch.testing.assert_close(taken["video"][row].float(), video, atol=2e-3, rtol=2e-3)
        cls = torch.tensor(whole["eva-global"][clip_id])[:1]
        assert torch.equal(taken["image"][row], cls)
    assert not taken["audio"][3].any()
    assert taken["audio"][4].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_tokens", [8, 7, 24, 64])
def test_every_way_of_averaging_rounds_the_mean_in_float32_once(dtype, num_tokens):
    tokens = (torch.randn(3, num_tokens, 40) * 3e4).clamp(-6e4, 6e4).to(dtype)  # sums leave the range of float16
    averaged = torch.empty(3, 8, 40, dtype=torch.float16)
    average(tokens, averaged)
    assert torch.equal(averaged, resample(tokens.float(), 8).half())
