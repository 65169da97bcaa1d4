"""Cross-fitting: each half of the held-out clips is scored with the weights that the other half chose."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_train import run_training
from toy import make_config

from featurecache.clips.clip_list import Clip, ClipList, load_clips
from featurecache.interrupt import Interrupted
from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.data.halves import num_clusters, split_halves
from fusion_train.errors import CheckpointError, ConfigError
from fusion_train.evaluation.append_only import read_lines
from fusion_train.evaluation.evaluate import evaluate
from fusion_train.models.model_group import OneModel
from fusion_train.run import Run
from fusion_train.run_context import load_context
from fusion_train.sweeps import running
from fusion_train.sweeps.results import read_results
from fusion_train.sweeps.scored_weights import resolve_scoring
from fusion_train.sweeps.sweep_file import load_sweep
from fusion_train.training.validation import Validation

VARIANTS = "variants:\n  conv: {model: {fusion: {name: conv}}}\n  attention: {model: {fusion: {name: attention}}}\n"
SETTINGS = "seeds: [0]\nsettings: {log: {eval_every: 1}, optim: {steps: 6, lr: 0.01}}\n" + VARIANTS


def clips_of(sizes: list[int], key: str = "speaker") -> list[Clip]:
    """Clips of as many clusters as there are sizes."""
    return [
        Clip(id=f"c{cluster:02d}-{number}", video=Path("a.mp4"), dataset="toy", **{key: f"s{cluster}"})
        for cluster, size in enumerate(sizes)
        for number in range(size)
    ]


def test_halves_follow_from_the_clips_and_keep_clusters_whole():
    clips = clips_of([7, 5, 5, 3, 3, 2, 1, 1, 1])
    halves = split_halves(clips)
    assert split_halves(clips[::-1]) == halves
    assert sorted(halves[0] + halves[1]) == sorted(clip.id for clip in clips)
    clusters = [{clip_id[:3] for clip_id in half} for half in halves]
    assert not clusters[0] & clusters[1]
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    assert num_clusters(clips, halves) == ([len(each) for each in clusters], "speakers")


def test_clips_without_a_cluster_are_halved_one_by_one():
    clips = [Clip(id=f"{number}", video=Path("a.mp4")) for number in range(37)]
    assert sorted(map(len, split_halves(clips))) == [18, 19]


def test_a_clip_stays_in_its_half_when_the_list_changes():
    clips = clips_of([4] * 8)
    before = split_halves(clips)
    after = split_halves([*clips[:-6], *clips_of([4] * 8 + [6])[-6:], *clips_of([5] + [4] * 7)[4:5]], before)
    assert all(set(old) <= set(new) for old, new in zip(before, after, strict=True))
    half = next(number for number in (0, 1) if "c00-0" in before[number])
    assert "c00-4" in after[half], "the rest of a cluster goes with it"


def config_of(llama, *more: str):
    return make_config(
        llama, "log.eval_every=1", "optim.steps=8", "optim.lr=1e-2", "checkpoint.every=100", "checkpoint.keep=1", *more
    )


def half_scores(run: Run) -> dict[int, list[float]]:
    """Step -> score of each half, as logged."""
    return {row["step"]: [row["score/half-1"], row["score/half-2"]] for row in run.metric_rows() if "eval_loss" in row}


@pytest.fixture(scope="module")
def halved(llama, material, tmp_path_factory) -> Run:
    return run_training(config_of(llama), material, tmp_path_factory.mktemp("halved") / "run", per_half=True)


def test_a_run_keeps_the_weights_that_each_half_chooses(halved):
    scores = half_scores(halved)
    assert len(scores) == 8
    for half in (0, 1):
        best = max(scores, key=lambda step: (scores[step][half], -step))
        assert checkpoint.read_state(checkpoint.best(halved.checkpoints, half)).step == best
    kept = {checkpoint.best(halved.checkpoints, half) for half in (None, 0, 1)}
    assert set(checkpoint.published(halved.checkpoints)) == {*kept, checkpoint.choose(halved.checkpoints, "last")}


def test_the_score_of_a_half_is_the_accuracy_on_its_clips(halved):
    state = checkpoint.read_state(checkpoint.best(halved.checkpoints, 1))
    context = load_context(halved, which=str(state.step))
    rows = evaluate(context, context.clips.in_split("val"), "emotion").predictions
    halves = halved.record().halves
    assert sorted(halves[0] + halves[1]) == [row["id"] for row in rows]
    for half, score in zip(halves, state.half_scores, strict=True):
        assert score == pytest.approx(
            np.mean([row["prediction"] == row["reference"] for row in rows if row["id"] in half])
        )


def test_without_a_closed_task_a_half_is_scored_by_its_loss(llama, material, tmp_path):
    config = config_of(llama, "data.tasks=[reason]", "optim.steps=2")
    run = run_training(config, material, tmp_path / "run", per_half=True)
    row = [row for row in run.metric_rows() if "eval_loss" in row][-1]
    context = load_context(run, which="last")
    for number, half in enumerate(run.record().halves, start=1):
        only = Validation(context)
        only.clips = ClipList([clip for clip in only.clips if clip.id in half])
        (losses,) = Validation(context)._losses(OneModel(context.model.eval()), [context.model])
        total = sum(losses.of_clip[clip.id][0] for clip in only.clips)
        tokens = sum(losses.of_clip[clip.id][1] for clip in only.clips)
        assert row[f"score/half-{number}"] == pytest.approx(-total / tokens, rel=1e-5)
    assert losses.mean() == pytest.approx(row["eval_loss"], rel=1e-5)


def test_a_stopped_run_goes_on_with_its_halves_as_if_it_had_not_been_stopped(halved, llama, material, tmp_path):
    run = Run(tmp_path / "run")
    steps = iter([False, False, True])
    with pytest.raises(Interrupted):
        run_training(config_of(llama), material, run.folder, per_half=True, stop=lambda: next(steps, True))
    run_training(config_of(llama), material, run.folder)  # as `fusion-train resume` does: the run remembers
    assert run.record().halves == halved.record().halves
    assert half_scores(run) == half_scores(halved)
    folders = checkpoint.published(halved.checkpoints)
    assert [folder.name for folder in checkpoint.published(run.checkpoints)] == [folder.name for folder in folders]
    for folder in folders:
        one, other = (checkpoint.read_state(each / folder.name) for each in (run.checkpoints, halved.checkpoints))
        assert (one.sha256, one.half_scores) == (other.sha256, other.half_scores)


def test_a_run_begun_without_halves_is_refused(llama, material, tmp_path):
    config = config_of(llama, "optim.steps=2")
    stops = iter([True])
    with pytest.raises(Interrupted):
        run_training(config, material, tmp_path / "run", stop=lambda: next(stops, True))
    with pytest.raises(CheckpointError, match="begun without"):
        run_training(config, material, tmp_path / "run", per_half=True)


def invoke(command: list[str]):
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return result


def refuse_other_answers(folder: Path, clips: Path) -> None:
    """Compare the answers of every trial with those of the weights that the other half chose."""
    halves = split_halves(load_clips(clips).in_split("val"))
    for each in read_results(folder).outcomes:
        run = Run(folder / each.name)
        rows = {row["id"]: row for row in read_lines(run.folder / "predictions.jsonl")}
        assert sorted(rows) == sorted(halves[0] + halves[1])
        scores = half_scores(run)
        for half in (0, 1):
            best = max(scores, key=lambda step: (scores[step][1 - half], -step))
            context = load_context(run, which=str(best))
            answers = {
                row["id"]: row for row in evaluate(context, context.clips.in_split("val"), "emotion").predictions
            }
            for clip_id in halves[half]:
                assert rows[clip_id] == answers[clip_id] | {"half": half + 1, "weights_step": best}


@pytest.mark.parametrize("stage", ["perception", "probe"])
def test_a_sweep_scores_each_half_with_the_weights_of_the_other(sweep, material, tmp_path, stage):
    probe = "" if stage == "perception" else "stage: probe\n"
    command = sweep(probe + SETTINGS.replace("6, lr: 0.01", "6, lr: 0.01, batch_size: 4, micro_batch_size: 4"))
    result = invoke(command)
    folder = tmp_path / "sweep"
    assert "scored on val, with the cross-fitted weights, since val also chooses them" in result.output
    refuse_other_answers(folder, material / "clips.jsonl")
    for file in ("results.tex", "report.html", "results.csv"):
        assert "cross-fitted" in (folder / file).read_text(), file
    with (folder / "results.csv").open() as file:
        assert {row["weights"] for row in csv.DictReader(file)} == {"cross-fitted, by halves of val"}
    said = "Weights scored: cross-fitted, by halves of val: each half is scored with the weights that the other half"
    assert said in " ".join(result.output.split())
    before = {path: path.read_bytes() for path in folder.glob("*/predictions.jsonl")}
    assert len(before) == 2
    for path in before:
        path.unlink()
    again = invoke(command)  # asked anew by what was kept, not trained anew
    assert not re.search("together from step|(training|resuming at) step", again.output)
    assert {path: path.read_bytes() for path in before} == before


def test_an_interrupted_sweep_gives_the_answers_of_an_undisturbed_one(sweep, tmp_path, monkeypatch):
    command = sweep(SETTINGS + "halving: {at: [0.5], keep: 0.9}\n")
    invoke(command)
    whole = {path.parent.name: path.read_bytes() for path in (tmp_path / "sweep").glob("*/predictions.jsonl")}
    other = [*command[:-1], "here", "--out", str(tmp_path / "other")]
    kept = running._keep

    def killed(*arguments):
        kept(*arguments)
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(running, "_keep", killed)
        assert "killed" in str(CliRunner().invoke(main, other).exception)
    invoke(other)
    found = {path.parent.name: path.read_bytes() for path in (tmp_path / "other").glob("*/predictions.jsonl")}
    assert found == whole
    assert len(found) == 2


def test_trials_that_kept_no_halves_are_refused_before_anything_starts(sweep, tmp_path):
    settings = SETTINGS.replace("steps: 6", "steps: 2").replace(
        "  attention: {model: {fusion: {name: attention}}}\n", ""
    )
    invoke(sweep("weights: last\n" + settings))
    result = CliRunner().invoke(main, sweep(settings))
    assert result.exit_code != 0
    assert "1 begun without" in result.output
    assert "Set weights: last in the sweep file" in result.output
    (tmp_path / "sweep" / "conv-seed0").rename(tmp_path / "conv-seed0")
    invoke(sweep(settings))
    invoke(sweep("weights: last\n" + settings))  # what kept halves serves any weights
    assert read_results(tmp_path / "sweep").weights == "last"


@pytest.mark.parametrize(
    ("sizes", "keys", "expected", "why"),
    [
        ([1] * 10, "", "cross-fitted", "val also chooses them"),
        ([1] * 9, "", "last", "cross-fitting takes 5 speakers in each half of it (there are 5 and 4)"),
        ([20, *[1] * 9], "", "last", "(there are 1 and 9)"),
        ([1] * 9, "weights: cross-fitted\n", "cross-fitted", "as the sweep file asks"),
        ([1] * 10, "settings: {data: {eval_clips: 8}}\n", "last", "(there are 4 and 4)"),
    ],
)
def test_cross_fitting_is_the_default_where_each_half_has_enough_clusters(tmp_path, sizes, keys, expected, why):
    rows = [
        {"id": clip.id, "video": "a.mp4", "split": "val", "speaker": clip.speaker, "labels": {"emotion": "sad"}}
        for clip in clips_of(sizes)
    ]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(keys + VARIANTS)
    found = resolve_scoring(load_sweep(str(tmp_path / "mine.yaml"), None, ()), str(tmp_path / "clips.jsonl"))
    assert found.weights == expected
    assert why in found.why_weights


@pytest.mark.parametrize(("split", "lacking"), [("test", "test chooses no weights"), ("val", "val has one cluster")])
def test_cross_fitting_is_refused_where_there_is_nothing_to_cross_fit(tmp_path, split, lacking):
    rows = [{"id": name, "video": "a.mp4", "split": name, "labels": {"emotion": "sad"}} for name in ("val", "test")]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(f"split: {split}\nweights: cross-fitted\n{VARIANTS}")
    with pytest.raises(ConfigError, match=lacking):
        resolve_scoring(load_sweep(str(tmp_path / "mine.yaml"), None, ()), str(tmp_path / "clips.jsonl"))
