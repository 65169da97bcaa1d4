"""`fusion-train floor`: a run beside classifiers of scikit-learn on the tokens that it reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from test_numbers import TASKS, rated  # noqa: F401  # a fixture
from test_probe import make_probe
from test_train import run_training

import featurecache
from featurecache.clips.clip_list import load_clips
from fusion_train.cli import main
from fusion_train.errors import DataError
from fusion_train.evaluation.floor import FloorInputs, boosted_labels, floor_rows, linear_svm, ridge_regression
from fusion_train.evaluation.linear_baseline import linear_baseline
from fusion_train.metrics import classification_scores, regression_scores
from fusion_train.run_context import load_context


@pytest.fixture(scope="module")
def probe(llama, rated, tmp_path_factory):  # noqa: F811
    config = make_probe(llama, "optim.steps=20", "optim.lr=1e-2", "checkpoint.every=20", TASKS)
    return run_training(config, rated, tmp_path_factory.mktemp("floor") / "probe")


def averages(store, feature: str, ids: list[str], has: np.ndarray) -> np.ndarray:
    tokens = np.asarray(store[feature].read([ids[row] for row in np.flatnonzero(has)]), dtype=np.float32)  # [n, 4, d]
    means = np.full((len(ids), 2, tokens.shape[2]), np.nan)
    means[has] = tokens.reshape(len(tokens), 2, -1, tokens.shape[2]).mean(axis=2).astype(np.float16)
    return means


def test_logistic_regression_is_that_of_the_shared_baseline_on_the_tokens_of_the_store(probe, rated):  # noqa: F811
    rows = floor_rows(load_context(probe), "val", "emotion")["logistic regression"]
    clips, store = load_clips(rated / "clips.jsonl"), featurecache.open_store(rated / "features.zarr")
    chosen = [*clips.in_split("train"), *clips.in_split("val")]
    ids = [clip.id for clip in chosen]
    everywhere = np.ones(len(ids), dtype=bool)
    heard = np.array([clip_id != "v03" for clip_id in ids])
    tokens = {
        "audio": averages(store, "whisper", ids, heard),
        "image": np.asarray(store["eva-global"].read(ids), dtype=np.float32)[:, :1],
        "video": averages(store, "eva-temporal", ids, everywhere),
    }
    train = np.arange(len(clips.in_split("train")))
    expected = linear_baseline(
        tokens,
        [clip.labels["emotion"] for clip in chosen],
        train,
        np.arange(len(train), len(ids)),
        groups=[clip.dialogue or clip.speaker or clip.id for clip in chosen],
        present={"audio": heard, "image": everywhere, "video": everywhere},
    )
    assert {row["id"]: row["prediction"] for row in rows} == dict(zip(ids[len(train) :], expected.labels, strict=True))


def test_the_command_prints_the_run_and_every_method_and_keeps_the_predictions(probe):
    result = CliRunner().invoke(main, ["floor", "--run", str(probe.folder), "--split", "val"])
    assert result.exit_code == 0, result.output
    for name in ("this run", "logistic regression", "linear SVM", "gradient boosting"):
        assert name in result.output
    lines = (probe.folder / "floor-val-emotion-linear-svm.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    scores = classification_scores(*({row["id"]: row[key] for row in rows} for key in ("reference", "prediction")))
    answer = CliRunner().invoke(main, ["floor", "--run", str(probe.folder), "--split", "val", "--json"])
    document = json.loads(answer.stdout)
    assert document["linear SVM"]["figures"]["UAR"] == pytest.approx(scores.uar)
    assert document["this run"]["main"] == "UAR"


def test_numbers_have_a_floor_too(probe):
    rows = floor_rows(load_context(probe), "val", "valence_score")
    assert list(rows) == ["ridge regression", "gradient boosting"]
    for of_method in rows.values():
        scores = regression_scores(*({row["id"]: row[key] for row in of_method} for key in ("reference", "prediction")))
        assert scores.ccc > 0.5


def planted(count: int = 80) -> FloorInputs:
    rng = np.random.default_rng(0)
    numbers = np.arange(count) % 2
    tokens = rng.normal(size=(count, 2, 5)).astype(np.float32) + numbers[:, None, None]
    return FloorInputs(
        {"audio": tokens},
        {"audio": np.ones(count, dtype=bool)},
        [str(float(number)) for number in numbers],
        [f"s{row // 2 % 5}" for row in range(count)],
        np.arange(count // 2),
        np.arange(count // 2, count),
    )


def test_every_method_finds_a_planted_difference_on_clips_it_has_not_seen():
    inputs = planted()
    truth = [inputs.answers[row] for row in inputs.test]
    for method in (linear_svm, boosted_labels):
        hits = np.mean([one == other for one, other in zip(method(inputs, 0), truth, strict=True)])
        assert hits > 0.7, method
    numbers = np.array([float(number) for number in ridge_regression(inputs, 0)])
    assert np.corrcoef(numbers, [float(number) for number in truth])[0, 1] > 0.7


def test_the_split_that_was_trained_on_and_open_tasks_are_refused(probe):
    context = load_context(probe)
    with pytest.raises(DataError, match="a split of held-out clips"):
        floor_rows(context, "train", "emotion")
    with pytest.raises(DataError, match="one label or one number"):
        floor_rows(context, "val", "reason")
