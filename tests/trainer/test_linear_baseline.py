"""The linear baseline beside a probe: fitted on training rows only, with a penalty chosen on grouped inner folds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fusion_train.errors import DataError
from fusion_train.evaluation import linear_baseline as module
from fusion_train.evaluation.linear_baseline import linear_baseline, rotated, standardised_columns

LABELS = ("angry", "happy", "sad")


def clips(
    count: int = 90, width: int = 6, noise: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, list[str], list[str]]:
    """Tokens (N, D) with a class mean each, labels, and six speakers."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(count) % len(LABELS)
    means = rng.normal(size=(len(LABELS), width)) * 2
    tokens = means[numbers] + noise * rng.normal(size=(count, width))
    return tokens, [LABELS[n] for n in numbers], [f"s{row // 3 % 6}" for row in range(count)]


def test_probabilities_are_those_of_scikit_learn_on_standardised_training_rows():
    tokens, labels, speakers = clips()
    train, test = np.arange(60), np.arange(60, 90)
    result = linear_baseline({"audio": tokens}, labels, train, test, groups=speakers)
    scaler = StandardScaler().fit(tokens[train])
    expected = LogisticRegression(C=result.penalty, max_iter=1000).fit(
        scaler.transform(tokens[train]), np.array(labels)[train]
    )
    assert result.classes == LABELS
    np.testing.assert_allclose(result.probabilities, expected.predict_proba(scaler.transform(tokens[test])), atol=1e-6)
    assert result.labels == tuple(expected.predict(scaler.transform(tokens[test])))


def test_wide_rows_give_the_same_answers_after_the_rotation_into_their_span():
    tokens, labels, speakers = clips(count=40, width=200, noise=3)
    train, test = np.arange(30), np.arange(30, 40)
    columns = standardised_columns({"audio": tokens}, train, test)
    small = rotated(*columns)
    assert columns[0].shape == (30, 200)
    assert small[0].shape[1] <= 30
    np.testing.assert_allclose(small[0] @ small[1].T, columns[0] @ columns[1].T, atol=1e-9)
    result = linear_baseline({"audio": tokens}, labels, train, test, groups=speakers)
    wide = LogisticRegression(C=result.penalty, max_iter=5000, tol=1e-8).fit(columns[0], np.array(labels)[train])
    np.testing.assert_allclose(result.probabilities, wide.predict_proba(columns[1]), atol=1e-3)


def test_test_rows_change_nothing_that_is_fitted():
    tokens, labels, speakers = clips()
    train = np.arange(60)
    alone = linear_baseline({"audio": tokens}, labels, train, [60], groups=speakers)
    others = tokens.copy()
    others[61:] = 1e6
    labels = [*labels[:60], *["another"] * 30]
    beside = linear_baseline({"audio": others}, labels, train, np.arange(60, 90), groups=speakers)
    assert beside.penalty == alone.penalty
    np.testing.assert_array_equal(beside.probabilities[0], alone.probabilities[0])
    assert linear_baseline({"audio": tokens}, labels, train, [], groups=speakers).probabilities.shape == (0, 3)


def test_the_penalty_is_chosen_for_new_speakers_and_not_for_known_ones():
    """Each speaker has one label here; a marker of the speaker tells it for known speakers only."""
    rng = np.random.default_rng(3)
    speakers = np.arange(120) // 10
    numbers = speakers % 2
    marker = np.eye(12)[speakers] * 6
    cue = (numbers[:, None] * 2 - 1) * 1.0 + rng.normal(size=(120, 4))
    tokens, labels = np.hstack([marker, cue]), ["ab"[n] for n in numbers]
    folds = module.inner_folds(np.array(labels), speakers, 0)
    assert len(folds) == 5
    assert all(not set(speakers[fit]) & set(speakers[held]) for fit, held in folds)
    grouped = linear_baseline({"audio": tokens}, labels, np.arange(120), [0], groups=list(speakers))
    alone = linear_baseline({"audio": tokens}, labels, np.arange(120), [0])
    assert alone.penalty != grouped.penalty


def test_a_clip_without_a_modality_is_answered_from_the_others_whatever_its_rows_hold():
    tokens, labels, speakers = clips()
    other = np.random.default_rng(1).normal(size=(90, 4))
    has = np.arange(90) % 5 != 0
    answers = []
    for filler in (0.0, np.nan, 1e9):
        filled = np.where(has[:, None], other, filler)
        result = linear_baseline(
            {"audio": tokens, "video": filled},
            labels,
            np.arange(60),
            np.arange(60, 90),
            groups=speakers,
            present={"audio": np.ones(90, bool), "video": has},
        )
        answers.append(result.probabilities)
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


def test_constant_columns_and_one_group_are_no_obstacle():
    tokens, labels, _ = clips()
    tokens[:, 0] = 7
    result = linear_baseline({"audio": tokens}, labels, np.arange(60), np.arange(60, 90), groups=["one"] * 90)
    assert result.penalty == module.DEFAULT_PENALTY
    assert np.isfinite(result.probabilities).all()


def test_one_class_and_broken_tokens_are_refused():
    tokens, labels, _ = clips()
    with pytest.raises(DataError, match="at least two classes, got angry"):
        linear_baseline({"audio": tokens}, labels, [0, 3, 6], [1])
    tokens[4, 2] = np.inf
    with pytest.raises(DataError, match=r"audio: expected finite tokens, got NaN or infinity in 1 clips"):
        linear_baseline({"audio": tokens}, labels, np.arange(60), [61])


def test_a_penalty_is_chosen_on_as_many_folds_as_the_largest_class_has_clips():
    labels = np.array([0, 1, 0, 1, 0, 1])
    folds = module.inner_folds(labels, np.arange(6), 0)
    assert len(folds) == 3
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(6))
    assert module.inner_folds(np.arange(4), np.arange(4), 0) == []
