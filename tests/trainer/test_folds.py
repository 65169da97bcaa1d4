"""Folds: each is an ordinary run that did not see the clips it answers; pooled scores are those of scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, recall_score
from toy import LABELS, make_config, write_features

from featurecache.clips.clip_list import Clip, load_clips
from fusion_train.cli import main
from fusion_train.data import pooled_features
from fusion_train.errors import ConfigError, DataError
from fusion_train.folds import running
from fusion_train.folds.checks import refuse_unlearnable
from fusion_train.folds.division import divide, fold_clips
from fusion_train.folds.results import Answers, averaged, corrected, paired_difference, read_results
from fusion_train.folds.running import FoldRequest, pooled_file, run_folder, run_folds
from fusion_train.prompts.prompt import find_task
from fusion_train.run import Run
from fusion_train.training import trainer

EMOTION = find_task("emotion")
SPEAKERS = ("03", "08", "ü b/c", "15", "16", "09")
SETTINGS = (
    "model.llm=null",
    "model.fusion.num_tokens=2",
    "optim.steps=6",
    "optim.batch_size=12",
    "optim.micro_batch_size=12",
    "log.eval_every=3",
    "log.peak_tflops=1",
    "data.tasks=[emotion]",
    "features.normalise=training",
)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """A folder with 54 clips of 6 speakers, 3 of each label and speaker, and their features; no splits."""
    folder = tmp_path_factory.mktemp("spoken")
    labels, lines = {}, []
    for number in range(54):
        clip_id, label = f"c{number:02d}", LABELS[number % 3]
        labels[clip_id] = label
        speaker = SPEAKERS[number // 9]
        row = {"id": clip_id, "video": f"{clip_id}.mp4", "speaker": speaker, "dataset": "toy"}
        lines.append(json.dumps(row | {"labels": {"emotion": label}}))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")
    write_features(folder / "features.zarr", labels)
    return folder


def request(folder: Path, out: Path, by: str = "speaker", num_seeds: int = 1, *overrides: str) -> FoldRequest:
    config = make_config(Path("unused"), *SETTINGS, *overrides, stage="probe")
    return FoldRequest(config, str(folder / "features.zarr"), str(folder / "clips.jsonl"), out, by, num_seeds)


@pytest.fixture(scope="module")
def by_speaker(spoken, tmp_path_factory) -> Path:
    """The folds of two seeds per speaker."""
    out = tmp_path_factory.mktemp("folds") / "by-speaker"
    run_folds(request(spoken, out, num_seeds=2), say=lambda _: None)
    return out


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_clip_is_answered_by_a_run_that_did_not_train_on_its_speaker(by_speaker, spoken):
    speaker_of = {clip.id: clip.speaker for clip in load_clips(spoken / "clips.jsonl")}
    for seed in (0, 1):
        rows = rows_of(pooled_file(by_speaker, f"seed-{seed}"))
        assert sorted(row["id"] for row in rows) == sorted(speaker_of)
        for row in rows:
            assert row["fold"] == speaker_of[row["id"]]
            of_fold = load_clips(run_folder(by_speaker, row["fold"], seed) / "clips.jsonl")
            trained = {clip.speaker for clip in of_fold.in_split("train")}
            chosen_by = {clip.speaker for clip in of_fold.in_split("val")}
            assert {clip.speaker for clip in of_fold.in_split("test")} == {row["fold"]}
            assert not trained & chosen_by
            assert trained | chosen_by | {row["fold"]} == set(SPEAKERS)


def test_seeds_set_other_speakers_aside(by_speaker):
    lists = [load_clips(run_folder(by_speaker, "03", seed) / "clips.jsonl") for seed in (0, 1)]
    assert {c.speaker for c in lists[0].in_split("val")} != {c.speaker for c in lists[1].in_split("val")}


def test_a_fold_is_an_ordinary_run(by_speaker):
    folder = run_folder(by_speaker, "ü b/c", 0)
    assert "/" not in folder.parent.name
    result = CliRunner().invoke(main, ["eval", "--run", str(folder), "--split", "test"])
    assert result.exit_code == 0, result.output
    own = {row["id"]: row["probabilities"] for row in rows_of(folder / "predictions.jsonl")}
    asked = rows_of(folder / "predictions-test-emotion.jsonl")
    assert {row["id"]: row["probabilities"] for row in asked} == own


def test_figures_are_those_of_scikit_learn_and_pooled_over_all_clips(by_speaker):
    results = read_results(by_speaker)
    assert [answers.name for answers in results.shown] == [
        "seed 0", "seed 1", "probe, 2 seeds averaged", "linear baseline"
    ]  # fmt: skip
    for answers in results.shown:
        truth, predicted = ([row[key] for row in answers.rows] for key in ("reference", "prediction"))
        assert answers.pooled["UAR"].value == pytest.approx(recall_score(truth, predicted, average="macro"))
        assert answers.pooled["WAR"].value == pytest.approx(accuracy_score(truth, predicted))
        assert answers.pooled["weighted F1"].value == pytest.approx(f1_score(truth, predicted, average="weighted"))
        per_fold = []
        for speaker in SPEAKERS:
            rows = [row for row in answers.rows if row["fold"] == speaker]
            per_fold.append(recall_score(*([row[key] for row in rows] for key in ("reference", "prediction")),
                                         average="macro"))  # fmt: skip
        assert answers.mean_and_sd("UAR") == pytest.approx((fmean(per_fold), stdev(per_fold)))
        interval = answers.interval("UAR", results.clusters)
        assert interval is not None
        assert interval.num_clusters == 6


def test_the_average_of_seeds_takes_the_label_with_the_highest_mean_probability():
    def row(prediction: str, happy: float) -> dict:
        probabilities = {"happy": happy, "sad": 1 - happy}
        return {"id": "a", "prediction": prediction, "probabilities": probabilities, "reference": "sad"}

    (mean,) = averaged([[row("happy", 0.6)], [row("happy", 0.55)], [row("sad", 0.1)]])
    assert mean["prediction"] == "sad"
    assert mean["probabilities"]["sad"] == pytest.approx(1.75 / 3)
    with pytest.raises(DataError, match="without probabilities"):
        averaged([[{"id": "a", "prediction": "sad", "reference": "sad"}]])


def test_a_killed_command_goes_on_and_gives_the_same_answers(spoken, by_speaker, tmp_path, monkeypatch):
    out, trained = tmp_path / "killed", []
    real_train = trainer.train

    def train(config, **rest):
        trained.append(rest["run"].folder.parent.name)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return real_train(config, **rest)

    monkeypatch.setattr(running, "train", train)
    with pytest.raises(KeyboardInterrupt):
        run_folds(request(spoken, out), say=lambda _: None)
    assert not pooled_file(out, "seed-0").exists()
    with pytest.raises(DataError, match="all trained and asked"):
        read_results(out)
    began = [*trained]
    trained.append("not the third again")
    run_folds(request(spoken, out), say=lambda _: None)
    assert trained[4:] == [f"fold-{name}" for name in ("09", "15", "16", "%C3%BC b%2Fc")]
    assert began == ["fold-03", "fold-08", "fold-09"]
    for name in ("seed-0", "linear"):
        assert pooled_file(out, name).read_bytes() == pooled_file(by_speaker, name).read_bytes()
    monkeypatch.setattr(running, "train", None)  # nothing is left to train
    run_folds(request(spoken, out), say=lambda _: None)


def test_a_folder_of_other_folds_is_refused(spoken, by_speaker):
    with pytest.raises(DataError, match="others") as caught:
        run_folds(request(spoken, by_speaker, "3", 1, "optim.lr=1e-4"))
    assert any("optim.lr" in problem for problem in caught.value.problems)
    assert "--folds" in caught.value.problems


def test_one_command_trains_scores_and_reports(spoken, tmp_path):
    runner, out = CliRunner(), tmp_path / "k"
    settings = [part for setting in (*SETTINGS[1:], "model.fusion.hidden=[16, 8]") for part in ("--set", setting)]
    places = ["--store", str(spoken / "features.zarr"), "--clips", str(spoken / "clips.jsonl")]
    words = ["--stage", "probe", *places, "--folds", "3", *settings]
    result = runner.invoke(main, [*words, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "3 folds by 3, 54 clips, 1 run each" in result.output
    assert "probe against the linear baseline" in result.output
    scores = json.loads((out / "scores.json").read_text())
    assert set(scores["scores"]["probe"]["folds"]) == {"1", "2", "3"}
    assert (out / "report.html").is_file()
    again = runner.invoke(main, ["report", str(out)])
    assert again.exit_code == 0, again.output
    other = tmp_path / "other"
    result = runner.invoke(main, [*words, "--set", "optim.lr=1e-5", "--out", str(other)])
    assert result.exit_code == 0, result.output
    contrast = ["contrast", str(out), str(other), "--out", str(tmp_path / "contrast")]
    result = runner.invoke(main, contrast)
    assert result.exit_code == 0, result.output
    assert "other: " in result.output
    assert (tmp_path / "contrast" / "contrast.csv").read_text().startswith("figure,folds,score,difference")


def test_a_stage_that_starts_from_another_asks_for_its_folds(spoken, tmp_path):
    places = ["--store", str(spoken / "features.zarr"), "--clips", str(spoken / "clips.jsonl")]
    result = CliRunner().invoke(
        main, ["--stage", "cognition", *places, "--folds", "speaker", "--out", str(tmp_path / "runs" / "x")]
    )
    assert result.exit_code == 2
    assert "whose runs did not train on the held-out clips" in result.output


# --- what is refused before the first fold trains -------------------------------------------------------------------


def clips(*rows: tuple[str, str]) -> list[Clip]:
    return [
        Clip(f"{number:03d}", speaker=speaker, labels={"emotion": label})
        for number, (speaker, label) in enumerate(rows)
    ]


def test_a_label_of_one_fold_only_is_refused():
    division = divide(clips(("a", "happy"), ("a", "sad"), ("b", "happy"), ("a", "sad")), "speaker", EMOTION, 0)
    with pytest.raises(DataError) as caught:
        refuse_unlearnable(division)
    assert list(caught.value.problems) == ["sad: only in fold a, 2 clips"]


def test_a_fold_without_a_label_is_said():
    pairs = clips(("a", "happy"), ("a", "sad"), ("b", "happy"), ("c", "sad"), ("c", "happy"))
    assert refuse_unlearnable(divide(pairs, "speaker", EMOTION, 0)) == [
        "fold b has no sad: its UAR is a mean over 1 of 2 labels"
    ]


def test_a_label_with_fewer_clips_than_folds_is_refused():
    rows = clips(*((f"s{number}", "happy") for number in range(6)), ("s1", "sad"), ("s2", "sad"))
    with pytest.raises(DataError, match=r"fewer of sad \(2\)"):
        divide(rows, "3", EMOTION, 0)


def test_fewer_groups_than_folds_are_refused():
    rows = clips(*((f"s{number % 2}", "happy") for number in range(20)))
    with pytest.raises(DataError, match=r"at least 4 values of speaker.*got 2.*--folds 2"):
        divide(rows, "4", EMOTION, 0)
    with pytest.raises(DataError, match="at least two values of speaker"):
        divide(clips(("a", "happy"), ("a", "sad")), "speaker", EMOTION, 0)


def test_an_unknown_column_and_clips_without_a_value_are_refused():
    with pytest.raises(DataError, match=r"a column that the clips have \(speaker\)"):
        divide(clips(("a", "happy")), "sesion", EMOTION, 0)
    incomplete = [*clips(("a", "happy"), ("b", "happy")), Clip("x", labels={"emotion": "happy"})]
    with pytest.raises(DataError, match="none for 1 of 3") as caught:
        divide(incomplete, "speaker", EMOTION, 0)
    assert list(caught.value.problems) == ["x"]


def test_features_that_are_not_numbers_are_named_before_anything_is_written(spoken, tmp_path, monkeypatch):
    real_average = pooled_features.average

    def average(tokens: torch.Tensor, out: torch.Tensor) -> None:
        real_average(tokens, out)
        out[0, 0, 0] = float("nan")

    monkeypatch.setattr(pooled_features, "average", average)
    out = tmp_path / "nan"
    with pytest.raises(DataError, match="features: expected finite numbers") as caught:
        run_folds(request(spoken, out))
    assert any("audio (whisper)" in problem and "c00" in problem for problem in caught.value.problems)
    assert not out.exists()


def test_folds_are_scored_by_a_task_with_labels(spoken, tmp_path):
    asked = request(spoken, tmp_path / "x", "speaker", 1, "data.tasks=[reason]")
    with pytest.raises(ConfigError, match="by which folds are scored"):
        run_folds(asked)


def test_numbered_folds_keep_speakers_together_and_follow_from_the_clips_alone():
    rows = clips(*((f"s{number % 7}", LABELS[number % 3]) for number in range(63)))
    division = divide(rows, "3", EMOTION, 0)
    assert division.folds == ["1", "2", "3"]
    by_speaker: dict[str, set[str]] = {}
    for clip in rows:
        by_speaker.setdefault(clip.speaker or "", set()).add(division.fold_of[clip.id])
    assert all(len(folds) == 1 for folds in by_speaker.values())
    assert divide(rows[::-1], "3", EMOTION, 0).fold_of == division.fold_of


def test_without_enough_groups_single_clips_score_the_run_and_that_is_said():
    rows = clips(*(("a" if number < 20 else "b", LABELS[number % 3]) for number in range(40)))
    listed, notes = fold_clips(divide(rows, "speaker", EMOTION, 0), "a", 0, inner=True)
    assert notes == ["fold a: no speaker can be set aside to score its run; single clips are"]
    assert {clip.speaker for clip in listed if clip.split == "val"} == {"b"}
    assert {clip.labels["emotion"] for clip in listed if clip.split == "train"} == set(LABELS)


# --- comparisons ----------------------------------------------------------------------------------------------------


def answers(name: str, right: np.ndarray) -> Answers:
    rows = [
        {"id": f"{place:03d}", "fold": str(place // 20), "reference": "ab"[place % 2],
         "prediction": "ab"[place % 2] if hit else "ba"[place % 2]}
        for place, hit in enumerate(right)
    ]  # fmt: skip
    return Answers(name, rows)


def test_a_paired_difference_is_that_of_group_means_and_its_t_test():
    """Groups of equal size and labels: the jackknife of WAR is the paired t test over the means of the groups."""
    random = np.random.default_rng(3)
    one, two = random.random(200) < 0.9, random.random(200) < 0.6
    clusters = {f"{place:03d}": str(place // 20) for place in range(200)}
    gap = paired_difference(answers("one", one), answers("two", two), "WAR", clusters)
    means = [hits.reshape(10, 20).mean(axis=1) for hits in (one, two)]
    test = stats.ttest_rel(*means)
    assert gap.value == pytest.approx(means[0].mean() - means[1].mean())
    assert gap.p == pytest.approx(test.pvalue, rel=1e-6)
    interval = test.confidence_interval()
    assert gap.interval is not None
    assert (gap.interval.low, gap.interval.high) == pytest.approx((interval.low, interval.high))
    assert "better" in gap.verdict
    same = paired_difference(answers("one", one), answers("two", one), "UAR", clusters)
    assert (same.value, same.p) == (0, 1)
    assert "not distinguishable" in same.verdict


def test_several_differences_are_corrected_together():
    random = np.random.default_rng(5)
    first = answers("first", random.random(200) < 0.7)
    clusters = {row["id"]: row["fold"] for row in first.rows}
    gaps = [paired_difference(answers(str(n), random.random(200) < 0.7), first, "UAR", clusters) for n in range(4)]
    smallest = min(gap.p or 0 for gap in gaps)
    assert min(gap.p_holm or 0 for gap in corrected(gaps)) == pytest.approx(min(1, 4 * smallest))


def test_run_folders_of_folds_hold_no_absolute_path(by_speaker):
    for path in [by_speaker / "folds.json", *by_speaker.glob("*/*/run.json")]:
        assert "/tmp" not in path.read_text()
    assert Run(run_folder(by_speaker, "03", 0)).finished
