"""Labels that are numbers, in the probe: valence and arousal, trained by CCC or squared error."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from test_probe import make_probe, stop_after_step_4
from test_train import equal, run_training
from toy import make_config

from featurecache.clips.clip_list import Clip, ClipList, load_clips
from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.config import validate
from fusion_train.data.probe_batches import NumberOutputs
from fusion_train.errors import ConfigError, DataError, ExportError
from fusion_train.export.export_run import ExportSources, export_run
from fusion_train.metrics import regression_scores
from fusion_train.metrics.regression import concordance as numpy_concordance
from fusion_train.models.probe import NumberTargets, Probe, concordance
from fusion_train.prompts.prompt import find_task

VALENCE = {"angry": -1.5, "happy": 2.0, "neutral": 0.25, "sad": -2.5}


@pytest.fixture(scope="module")
def rated(material, tmp_path_factory):
    """The toy material with a valence and an arousal that follow the emotion, each with noise of its own."""
    folder = tmp_path_factory.mktemp("rated")
    rng, lines = np.random.default_rng(0), []
    for line in (material / "clips.jsonl").read_text().splitlines():
        row = json.loads(line)
        valence = sorted(VALENCE.values())[hash_of(row["labels"]["emotion"]) % 4]
        row["labels"] |= {"valence_score": valence + 0.1 * rng.normal(), "arousal_score": 5 - abs(valence)}
        lines.append(json.dumps(row) + "\n")
    (folder / "clips.jsonl").write_text("".join(lines))
    (folder / "features.zarr").symlink_to(material / "features.zarr")
    return folder


def hash_of(label: str) -> int:
    return sum(map(ord, label))


TASKS = "data.tasks=[valence_score,arousal_score,emotion]"


@pytest.fixture(scope="module")
def probe(llama, rated, tmp_path_factory):
    config = make_probe(llama, "optim.steps=80", "optim.lr=1e-2", "checkpoint.every=80", TASKS)
    return run_training(config, rated, tmp_path_factory.mktemp("probe") / "probe")


def test_a_probe_learns_numbers_and_labels_with_one_head(probe):
    scores = probe.result["scores"]
    assert scores["ccc/valence_score"] > 0.8
    assert scores["ccc/arousal_score"] > 0.8
    assert scores["accuracy/emotion"] > 0.6


def test_the_statistics_of_the_training_clips_are_in_the_checkpoint(probe, rated):
    saved = load_file(checkpoint.choose(probe.checkpoints, "last") / "model.safetensors")
    train = [clip for clip in load_clips(rated / "clips.jsonl") if clip.split == "train"]
    for row, key in zip(saved["head.number_scales"].tolist(), ("arousal_score", "valence_score"), strict=True):
        values = [clip.labels[key] for clip in train]
        assert row == pytest.approx([np.mean(values), np.std(values)], rel=1e-5)


def test_numbers_are_predicted_and_scored_by_the_same_command(probe, rated):
    result = CliRunner().invoke(main, ["eval", "--run", str(probe.folder), "--split", "val", "--task", "valence_score"])
    assert result.exit_code == 0, result.output
    rows = [
        json.loads(line) for line in (probe.folder / "predictions-val-valence_score.jsonl").read_text().splitlines()
    ]
    clips = load_clips(rated / "clips.jsonl")
    truth = {row["id"]: clips.by_id(row["id"]).labels["valence_score"] for row in rows}
    expected = regression_scores(truth, {row["id"]: row["prediction"] for row in rows})
    assert expected.ccc == pytest.approx(probe.result["scores"]["ccc/valence_score"], abs=1e-4)
    assert f"{expected.ccc:.2f}" in result.output
    assert all(isinstance(row["prediction"], str) for row in rows)


def test_a_stopped_run_with_numbers_resumes_bit_for_bit(llama, rated, tmp_path, monkeypatch):
    config = make_probe(llama, "optim.steps=6", "checkpoint.every=2", "optim.ema_decay=0.9", TASKS)
    whole = run_training(config, rated, tmp_path / "whole")
    stop_after_step_4(config, rated, tmp_path / "parts", monkeypatch)
    assert equal(whole, run_training(config, rated, tmp_path / "parts"))


class Average(torch.nn.Module):
    """A fusion without parameters: the mean of the modalities."""

    def forward(self, features, present=None):
        return torch.stack(list(features)).mean(dim=0)


def probe_and_batch(loss: str):
    torch.manual_seed(0)
    scales = ((1.0, 2.0), (-3.0, 0.5))
    probe = Probe(Average(), fusion_width=4, fusion_tokens=1, num_classes=3, number_scales=scales, number_loss=loss)
    features = {"audio": torch.randn(7, 1, 4)}
    numbers = NumberTargets(
        torch.tensor([0, 3]),
        torch.tensor([1, 2, 4, 5, 6]),
        torch.tensor([0, 1, 0, 0, 1]),
        torch.tensor([1.0, -3.5, 4.0, -2.0, -2.0]),
    )
    allowed = torch.ones(7, 3, dtype=torch.bool)
    targets = torch.tensor([2, -1, -1, 1, -1, -1, -1])
    batch = {"features": features, "present": torch.ones(7, 1, dtype=torch.bool), "allowed": allowed}
    return probe, batch | {"targets": targets, "numbers": numbers}


@pytest.mark.parametrize("loss", ["ccc", "mse"])
def test_the_losses_are_those_of_their_formulas(loss):
    probe, batch = probe_and_batch(loss)
    scores = (batch["features"]["audio"][:, 0] @ probe.head.weight.T + probe.head.bias).detach()
    output = probe.train()(**batch)
    labels = torch.nn.functional.cross_entropy(scores[[0, 3], :3], torch.tensor([2, 1]), reduction="none")
    torch.testing.assert_close(output.sample_losses[[0, 3]], labels)
    first, second = scores[[1, 4, 5], 3], scores[[2, 6], 4]  # in deviations of each number
    true = (torch.tensor([1.0, 4.0, -2.0]) - 1) / 2, (torch.tensor([-3.5, -2.0]) + 3) / 0.5
    for rows, predicted, target in (([1, 4, 5], first, true[0]), ([2, 6], second, true[1])):
        squared = (predicted - target).square()
        expected = torch.full((len(rows),), 1 - numpy_concordance(predicted.numpy(), target.numpy()))
        torch.testing.assert_close(
            output.sample_losses[rows], expected.float() if loss == "ccc" else squared, atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(output.loss_sum, output.sample_losses.sum())
    evaluated = probe.eval()(**batch)
    torch.testing.assert_close(evaluated.sample_losses[[1, 4, 5]], (first - true[0]).square())
    torch.testing.assert_close(
        probe.numbers(batch["features"], batch["present"], torch.tensor([0, 0, 1, 0, 0, 0, 1]))[[1, 2]],
        torch.stack([1 + 2 * scores[1, 3], -3 + 0.5 * scores[2, 4]]),
    )


def test_concordance_has_a_gradient_towards_agreement():
    x = torch.randn(20, requires_grad=True)
    y = torch.randn(20)
    before = concordance(x, y, torch.ones(20))
    before.backward()
    after = concordance(x.detach() + 0.01 * x.grad, y, torch.ones(20))
    assert after > before
    assert concordance(x, y, torch.zeros(20)).item() == 0


def test_datasets_have_outputs_of_their_own_and_another_dataset_is_named():
    outputs = NumberOutputs({"b": {"valence_score": (), "emotion": ["sad"]}, "a": {"valence_score": ()}})
    task = find_task("valence_score")
    assert len(outputs) == 2
    assert outputs.number(Clip("1", dataset="b"), task) == 1
    clips = ClipList(
        [
            Clip("a1", dataset="a", split="train", labels={"valence_score": 1.0}),
            Clip("a3", dataset="a", split="train", labels={"valence_score": 3.0}),
            Clip("a9", dataset="a", split="val", labels={"valence_score": 99.0}),
            Clip("b1", dataset="b", split="train", labels={"valence_score": 10.0}),
        ]
    )
    assert outputs.scales(clips, "train") == ((2.0, 1.0), (10.0, 1.0))
    with pytest.raises(DataError, match="valence_score was trained on: a, b, got 'c'"):
        outputs.number(Clip("1", dataset="c"), task)


def test_tasks_of_numbers_have_the_names_of_the_clip_list():
    assert find_task("valence_score").answer == "number"
    with pytest.raises(ConfigError, match="NAME_score for a label that is a number"):
        validate({"data": {"tasks": ["valence"]}}, "mine")
    with pytest.raises(ConfigError):
        find_task("_score")


def test_a_language_model_is_not_asked_for_numbers(llama, rated, tmp_path):
    with pytest.raises(ConfigError, match="--stage probe"):
        run_training(make_config(llama, "data.tasks=[valence_score]"), rated, tmp_path / "run")


def test_a_probe_with_numbers_is_not_exported(probe, tmp_path):
    with pytest.raises(ExportError, match="got valence_score, arousal_score"):
        export_run(probe, tmp_path / "model", {}, ExportSources())
    assert not (tmp_path / "model").exists()


def test_validation_clips_without_the_number_or_of_another_dataset_are_left_out(llama, rated, tmp_path):
    rows = [json.loads(line) for line in (rated / "clips.jsonl").read_text().splitlines()]
    held = [row for row in rows if row["split"] == "val"]
    held[0]["dataset"] = "elsewhere"
    del held[1]["labels"]["valence_score"]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "features.zarr").symlink_to((rated / "features.zarr").resolve())
    said: list[str] = []
    config = make_probe(llama, "optim.steps=2", "data.tasks=[valence_score]")
    run = run_training(config, tmp_path, tmp_path / "run", say=said.append)
    assert "ccc/valence_score" in run.result["scores"]
    assert any("valence_score of elsewhere (1)" in line for line in said)
