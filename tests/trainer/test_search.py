"""`fusion-train search`: from a store and a search file to a leaderboard, a report and a submission."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import featurecache
from featurecache.importers.npy import import_npy
from fusion_train.cli import main
from fusion_train.errors import ConfigError, DataError
from fusion_train.search import rungs
from fusion_train.search.draws import RandomSampler, draw_trials
from fusion_train.search.parts import divide
from fusion_train.search.running import run_search
from fusion_train.search.search_file import Hyperparameters, SearchBudget, SearchFile, load_search
from fusion_train.search.trial_results import LINES, TrialResults
from fusion_train.search.utterance_vectors import read_data

EMOTIONS = ("angry", "happy", "sad")
CLIPS, CANDIDATES = 120, 9
WIDTHS = {"hubert": 10, "wavlm": 6, "clip": 8}
SEARCH = """
features: {audio: [hubert, wavlm], video: [clip]}
draws: 3
folds: 4
epochs: 8
halving: {first: 2, keep: 0.5}
hyperparameters: {hidden: {choice: [4, 8]}, lr: {log_uniform: [0.01, 0.05]}, batch_size: 16}
heads: [mer-attention, concatenation]
ensemble: 2
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """120 labelled clips of 12 speakers and 9 without a label; hubert shows the emotion, clip a little, wavlm not."""
    folder = tmp_path_factory.mktemp("search")
    random = np.random.default_rng(0)
    rows = []
    for number in range(CLIPS + CANDIDATES):
        emotion = number % 3
        labels = {"emotion": EMOTIONS[emotion]} if number < CLIPS else {}
        split = "train" if number < CLIPS else "test"
        rows.append(
            {"id": f"c{number:03}", "text": "words", "speaker": f"s{number % 12}", "split": split, "labels": labels}
        )
        for name, width in WIDTHS.items():
            vectors = random.normal(size=(2, width))
            vectors[:, emotion] += {"hubert": 4.0, "wavlm": 0.0, "clip": 1.0}[name]
            (folder / "npy" / name).mkdir(parents=True, exist_ok=True)
            np.save(folder / "npy" / name / f"c{number:03}.npy", vectors.astype(np.float16))
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_npy(folder / "npy", featurecache.open_store(folder / "features.zarr", mode="a"))
    (folder / "search.yaml").write_text(SEARCH)
    return folder


def read(material, **settings):
    search = load_search(str(material / "search.yaml")).model_copy(update=settings)
    return search, read_data(search, str(material / "features.zarr"), str(material / "clips.jsonl"))


def searched(material, out, **settings):
    search = load_search(str(material / "search.yaml")).model_copy(update=settings)
    said: list[str] = []
    searching, selected = run_search(
        search,
        store=str(material / "features.zarr"),
        clips=str(material / "clips.jsonl"),
        out=out,
        say=said.append,
        threads=1,
    )
    return searching, selected, said


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
    return searched(material, tmp_path_factory.mktemp("out") / "whole")


def test_the_planted_feature_wins_and_nothing_else_is_claimed(whole):
    _, selected, _ = whole
    assert "hubert" in selected.board[0].trial
    assert selected.board[0].outer > 0.9
    assert selected.nested.value == pytest.approx(selected.board[0].outer, abs=0.1)
    assert selected.num_trials == 3 * 2 * 4
    assert selected.nested.interval is not None
    assert selected.nested.interval.low < selected.nested.value < selected.nested.interval.high
    assert sum(standing.probability_best for standing in selected.board) == pytest.approx(1)


def test_a_search_that_was_killed_continues_to_the_same_results(material, whole, tmp_path, monkeypatch):
    trained = []
    real = rungs.train_stack

    def killed(*given):
        if len(trained) == 4:
            raise KeyboardInterrupt
        trained.append(len(given[1]))
        return real(*given)

    monkeypatch.setattr(rungs, "train_stack", killed)
    with pytest.raises(KeyboardInterrupt):
        searched(material, tmp_path / "killed")
    lines = (tmp_path / "killed" / LINES).read_bytes()
    assert len(lines.splitlines()) == sum(trained)
    (tmp_path / "killed" / LINES).write_bytes(lines + b'{"rung": 0, "tri')  # torn by the kill
    trained.clear()
    monkeypatch.setattr(rungs, "train_stack", lambda *given: (trained.append(len(given[1])), real(*given))[1])
    searching, selected, _ = searched(material, tmp_path / "killed")
    assert sum(trained) == len(whole[0].results.fits) - len(lines.splitlines())
    assert {key: fit.score for key, fit in searching.results.fits.items()} == pytest.approx(
        {key: fit.score for key, fit in whole[0].results.fits.items()}
    )
    assert [standing.trial for standing in selected.board] == [standing.trial for standing in whole[1].board]
    trained.clear()
    searched(material, tmp_path / "killed")
    assert trained == []


def test_another_search_in_the_folder_is_refused(material, whole):
    with pytest.raises(DataError, match=r"another one: draws changed.*--out"):
        searched(material, whole[0].results.folder, draws=4)


def test_halving_keeps_the_better_half_of_each_fold_and_over_all(whole):
    searching, _, _ = whole
    results = TrialResults(searching.results.folder)
    assert searching.search.rungs == [2, 4, 8]
    assert [len(results.survivors[rung]["all"]) for rung in range(3)] == [24, 12, 6]
    for fold in range(4):
        scores = {name: results.score(0, name, fold, (0,)) for name in searching.trials}
        kept = results.survivors[1][str(fold)]
        assert min(scores[name] for name in kept) >= max(scores[name] for name in scores if name not in kept)


def test_the_choice_for_a_fold_does_not_depend_on_the_labels_of_the_fold(whole, tmp_path):
    searching, _, _ = whole
    data = searching.data
    changed = data.targets.clone()
    rows = searching.parts[2].outer
    changed[rows] = (changed[rows] + 1) % 3
    other = replace(searching, data=replace(data, targets=changed), results=TrialResults(tmp_path / "flipped"))
    with other.results.begin({}) as lines:
        rungs.run_rungs(other, lines, lambda text: None)
    last = len(searching.search.rungs) - 1
    assert other.results.survivors[last]["2"] == searching.results.survivors[last]["2"]


def test_a_budget_leaves_out_draws_and_survivors(material, tmp_path):
    searching, selected, said = searched(material, tmp_path / "short", budget=SearchBudget(minutes=1e-6), draws=200)
    assert any("the budget has room for" in line for line in said), said
    assert 0 < selected.num_trials < len(searching.trials)
    assert len(selected.board) == rungs.MIN_SURVIVORS


def test_draws_are_paired_over_features_and_inside_their_ranges():
    search = SearchFile(features={"audio": ("a", "b"), "video": ("v",)}, draws=40)
    trials = draw_trials(search, RandomSampler(0))
    by_draw = {}
    for trial in trials:
        by_draw.setdefault(trial.draw, set()).add((trial.hidden, trial.dropout, trial.lr, trial.weight_decay))
        assert 0.2 <= trial.dropout < 0.5
        assert 1e-4 <= trial.lr < 1e-3
        assert trial.hidden in (64, 128, 256)
    assert all(len(values) == 1 for values in by_draw.values())
    assert len(by_draw) == 40
    assert len({trial.name for trial in trials}) == len(trials) == 40 * 2 * 4
    assert {trial.features for trial in trials if trial.combined == "together"} == {("a", "v"), ("b", "v")}
    logs = np.log10([RandomSampler(1).draw(number, Hyperparameters())["lr"] for number in range(400)])
    assert np.mean(logs) == pytest.approx(-3.5, abs=0.05)


def test_a_group_is_in_one_part_and_every_clip_once_in_each(material):
    _, data = read(material)
    parts, groups = divide(data, 4, "speaker", 0)
    for part in parts:
        places = [{groups[row] for row in rows} for rows in (part.train, part.inner, part.outer)]
        assert not places[0] & places[1]
        assert not places[0] & places[2]
        assert not places[1] & places[2]
    for name in ("inner", "outer"):
        np.testing.assert_array_equal(np.sort(np.concatenate([getattr(part, name) for part in parts])), np.arange(120))


def test_the_command_prints_the_board_and_writes_report_and_submission(material, tmp_path):
    arguments = [
        "search", str(material / "search.yaml"), "--store", str(material / "features.zarr"),
        "--clips", str(material / "clips.jsonl"), "--out", str(tmp_path / "out"), "--threads", "2",
        "--set", "submission=test", "--set", "columns=[name, discrete]", "--submission", str(tmp_path / "answers.csv"),
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "best of 24: UAR" in result.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Leaderboard" in page
    assert "Which feature matters" in page
    board = list(csv.DictReader((tmp_path / "out" / "leaderboard.csv").read_text().splitlines()))
    assert [float(row["inner"]) for row in board] == sorted((float(row["inner"]) for row in board), reverse=True)
    answers = list(csv.reader((tmp_path / "answers.csv").read_text().splitlines()))
    assert answers[0] == ["name", "discrete"]
    right = [EMOTIONS[int(name[1:]) % 3] == answer for name, answer in answers[1:]]
    assert len(right) == CANDIDATES
    assert sum(right) >= CANDIDATES - 1


def test_a_submission_without_its_split_is_refused_before_anything_is_read(material, tmp_path):
    result = CliRunner().invoke(
        main, ["search", str(material / "search.yaml"), "--store", "none", "--submission", str(tmp_path / "a.csv")]
    )
    assert result.exit_code == 2
    assert "Add submission: SPLIT to the file" in result.output


def rewritten(material, tmp_path, change):
    """A clip list with changed rows."""
    rows = [json.loads(line) for line in (material / "clips.jsonl").read_text().splitlines()]
    rows = [row for row in (change(row) for row in rows) if row]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "clips.jsonl")


def test_a_label_among_the_candidates_is_named(material, tmp_path):
    clips = rewritten(
        material, tmp_path, lambda row: row | {"labels": {"emotion": "sad"}} if row["id"] == "c125" else row
    )
    search = load_search(str(material / "search.yaml"), ("submission=test",))
    with pytest.raises(DataError, match=r"(?s)without a label.*1 of 9 with one.*c125"):
        read_data(search, str(material / "features.zarr"), clips)


def test_clips_without_a_feature_are_named(material, tmp_path):
    clips = rewritten(material, tmp_path, lambda row: row | {"id": "other"} if row["id"] == "c007" else row)
    search = load_search(str(material / "search.yaml"))
    with pytest.raises(DataError, match=r"(?s)3 of 3 features.*hubert: 1 not extracted of 120 clips, such as other"):
        read_data(search, str(material / "features.zarr"), clips)


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.full((2, 5), np.nan), "bad: values that are not finite in 1"), (None, "bad: the same vector for all 120")],
)
def test_features_that_are_not_finite_or_constant_are_named(material, tmp_path, values, message):
    store = featurecache.open_store(tmp_path / "features.zarr", mode="a")
    (tmp_path / "npy" / "bad").mkdir(parents=True)
    for number in range(CLIPS):
        vectors = np.ones((2, 5)) if values is None else np.random.default_rng(number).normal(size=(2, 5))
        np.save(tmp_path / "npy" / "bad" / f"c{number:03}.npy", vectors.astype(np.float32))
    import_npy(tmp_path / "npy", store)
    search = SearchFile(features={"audio": ("bad",)})
    if values is None:
        with pytest.raises(DataError, match=message):
            read_data(search, str(tmp_path / "features.zarr"), str(material / "clips.jsonl"))
        return
    from fusion_train.search import utterance_vectors

    vectors = {"bad": utterance_vectors.torch.tensor(np.concatenate([values[:1], np.ones((3, 5))]))}
    with pytest.raises(DataError, match=message):
        utterance_vectors._refuse_unusable(vectors, ["a", "b", "c", "d"])


def test_a_class_with_fewer_clips_than_folds_is_named(material, tmp_path):
    def change(row):
        return row | {"labels": {"emotion": "worried"}} if row["id"] in ("c000", "c003") else row

    search = load_search(str(material / "search.yaml"))
    data = read_data(search, str(material / "features.zarr"), rewritten(material, tmp_path, change))
    with pytest.raises(DataError, match=r"(?s)4 clips of every class.*worried: 2 clips"):
        divide(data, 4, None, 0)


def test_a_fold_without_a_class_is_named(material, tmp_path):
    def change(row):
        return row | {"labels": {"emotion": "worried"}} if row["speaker"] == "s1" and row["labels"] else row

    search = load_search(str(material / "search.yaml"))
    data = read_data(search, str(material / "features.zarr"), rewritten(material, tmp_path, change))
    with pytest.raises(DataError, match=r"(?s)clips of every class in every fold.*no clip of worried"):
        divide(data, 4, "speaker", 0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("hyperparameters.lrr=1", r"hyperparameters.lrr.*Did you mean .?lr"),
        ("main=F2", "one of UAR"),
        ("heads=[mer-attentio]", "one of"),
        ("task=reason", "one label per clip"),
        ("hyperparameters.dropout={uniform: [2, 1]}", "lower bound"),
        ("folds=2", "folds"),
    ],
)
def test_wrong_settings_are_named(material, setting, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_search(str(material / "search.yaml"), (setting,))
