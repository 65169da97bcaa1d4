"""Which clips a sweep scores and with which weights: never silently with those that the scored clips chose."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.sweeps.results import read_results
from fusion_train.sweeps.scored_weights import resolve_scoring
from fusion_train.sweeps.sweep_file import load_sweep

VARIANTS = "variants:\n  conv: {model: {fusion: {name: conv}}}\n  attention: {model: {fusion: {name: attention}}}\n"
NOTICE = "cored on the clips that chose the weights (val): scores are too high"


def clip_list(folder: Path, labelled: tuple[str, ...]) -> str:
    """One clip per split; those of `labelled` have an emotion."""
    rows = [
        {
            "id": split,
            "video": f"{split}.mp4",
            "split": split,
            "labels": {"emotion": "sad"} if split in labelled else {},
        }
        for split in ("train", "val", "test")
    ]
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("keys", "settings", "test_answers", "expected"),
    [
        ("", "data: {eval_split: val}", True, ("test", "best")),
        ("", "data: {eval_split: val}", False, ("val", "last")),
        ("", "data: {eval_split: test}", True, ("test", "last")),
        ("split: val\n", "data: {eval_split: val}", True, ("val", "last")),
        ("split: val\nweights: best\n", "data: {eval_split: val}", True, ("val", "best")),
        ("weights: last\n", "data: {eval_split: val}", True, ("test", "last")),
        ("", "optim: {steps: 8}, log: {eval_every: 8}", False, ("val", "best")),  # one scoring is no choice
    ],
)
def test_the_scored_clips_do_not_choose_the_weights(tmp_path, keys, settings, test_answers, expected):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{keys}settings: {{{settings}}}\n{VARIANTS}")
    clips = clip_list(tmp_path, ("train", "val", "test") if test_answers else ("train", "val"))
    found = resolve_scoring(load_sweep(str(file), None, ()), clips)
    assert (found.split, found.weights) == expected


def test_the_last_weights_are_scored_and_the_best_with_a_notice_on_every_table(sweep, tmp_path):
    settings = "seeds: [0]\nsettings: {log: {eval_every: 1}, optim: {steps: 4}}\n" + VARIANTS
    result = CliRunner().invoke(main, sweep("weights: last\n" + settings))
    assert result.exit_code == 0, result.output
    folder = tmp_path / "sweep"
    assert "scored on val, with the last weights" in result.output
    assert NOTICE not in result.output + (folder / "results.tex").read_text() + (folder / "report.html").read_text()
    assert accuracies(folder) == logged(folder, last=True)

    result = CliRunner().invoke(main, sweep("weights: best\n" + settings))
    assert result.exit_code == 0, result.output
    assert not re.search("together from step|(training|resuming at) step", result.output), "scored anew, not trained"
    assert NOTICE in " ".join(result.output.split())
    assert NOTICE in (folder / "results.tex").read_text()
    assert NOTICE in (folder / "report.html").read_text()
    with (folder / "results.csv").open() as file:
        assert all(NOTICE in row["weights"] for row in csv.DictReader(file))
    assert accuracies(folder) == logged(folder, last=False)


def accuracies(folder: Path) -> dict[str, float]:
    return {name: round(each.figures["accuracy"], 6) for name, each in read_results(folder).scored.items()}


def logged(folder: Path, *, last: bool) -> dict[str, float]:
    """Trial -> accuracy that its last or best weights had while it trained."""
    found = {}
    for each in read_results(folder).outcomes:
        scores = {
            row["step"]: row["accuracy/emotion"]
            for line in (folder / each.name / "metrics.jsonl").read_text().splitlines()
            if "accuracy/emotion" in (row := json.loads(line))
        }
        best = checkpoint.read_state(checkpoint.best(folder / each.name / "checkpoints")).step
        found[each.name] = round(scores[max(scores) if last else best], 6)
    return found
