"""Every field of every score, by hand: what stands beside the main figure is read by people too."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_train.errors import DataError
from fusion_train.metrics import (
    LexicalJudge,
    classification_scores,
    hit_rate,
    multi_label_scores,
    open_vocabulary_scores,
    overlap_scores,
    sentiment_scores,
    three_way_sentiment_scores,
)
from fusion_train.metrics.classification import ClassScores, LabelScores
from fusion_train.metrics.metric_result import MetricSettings
from fusion_train.metrics.registry import main_figure, score
from fusion_train.metrics.wheel_metrics import harmonic


def test_a_class_that_is_never_answered_scores_0():
    references = {"2": "a", "1": "a", "3": "a", "4": "b"}
    scores = classification_scores(references, dict.fromkeys(references, "a"))
    assert scores.classes == (ClassScores("a", 0.75, 1.0, pytest.approx(6 / 7), 3), ClassScores("b", 0.0, 0.0, 0.0, 1))
    assert scores.macro_f1 == pytest.approx(3 / 7)
    assert scores.weighted_f1 == pytest.approx(6 / 7 * 3 / 4)
    assert (scores.num_clips, scores.num_outside, scores.labels) == (4, 0, ("a", "b"))
    assert scores.clip_ids == ("1", "2", "3", "4")
    assert scores.outcomes.tolist() == [[0, 0], [0, 0], [0, 0], [1, 0]]
    assert scores.confusion.tolist() == [[3, 0, 0], [1, 0, 0]]


def test_an_answer_that_is_none_of_the_classes_has_a_place_of_its_own_even_beside_a_label_of_that_name():
    references = {"1": "(other)", "2": "b"}
    scores = classification_scores(references, {"1": "x", "2": "(other)"})
    assert scores.labels == ("(other)", "b")
    assert scores.confusion.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert scores.outcomes.tolist() == [[0, 2], [1, 0]]
    assert (scores.num_outside, scores.accuracy) == (1, 0.0)


def test_references_outside_the_vocabulary_suggest_the_near_label():
    with pytest.raises(DataError, match=r'expected labels of sad, angry, got 2 outside them. Did you mean "sad"'):
        classification_scores({"1": "sadd", "2": "bored", "3": "sad"}, dict.fromkeys("123", "sad"), ("sad", "angry"))


def test_several_labels_a_clip():
    references = {"2": ["b"], "1": ["a", "b"], "3": ["c"], "4": []}
    scores = multi_label_scores(references, {"1": "a", "2": "b, d, e", "3": "", "4": ""})
    # a: 1 of 1 chosen; b: 1 of 2 found, none wrong; c: never chosen
    assert scores.classes == (
        LabelScores("a", 1.0, 1.0, 1),
        LabelScores("b", pytest.approx(1 / 2 + 2 / 4 * 1 / 2), pytest.approx(2 / 3), 2),
        LabelScores("c", 0.25, 0.0, 1),
    )
    assert scores.map_macro == pytest.approx((1 + 3 / 4 + 1 / 4) / 3)
    assert scores.f1_micro == pytest.approx(2 * 2 / (2 * 2 + 2))
    assert scores.f1_samples == pytest.approx((2 / 3 + 1 + 0 + 0) / 4)
    assert scores.jaccard == pytest.approx((1 / 2 + 1 + 0 + 0) / 4)
    assert (scores.num_clips, scores.num_outside, scores.mean_num_labels) == (4, 2, 1.0)
    assert scores.truth.tolist() == [[True, True, False], [False, True, False], [False, False, True], [False] * 3]
    assert scores.predicted.tolist() == [[True, False, False], [False, True, False], [False] * 3, [False] * 3]


def test_labels_of_the_vocabulary_that_no_reference_has_are_no_class_and_not_outside():
    scores = multi_label_scores({"1": "Angry"}, {"1": "anger, joy, tired"}, ("angry", "Happy", "sad"))
    assert [part.label for part in scores.classes] == ["angry"]
    assert (scores.num_outside, scores.f1_micro, scores.mean_num_labels) == (1, 1.0, 3.0)
    with pytest.raises(DataError, match="labels for some clip, got none for 1 clips"):
        multi_label_scores({"1": ""}, {"1": "a"})
    with pytest.raises(DataError, match='1: "bored"'):
        multi_label_scores({"1": "bored"}, {"1": "sad"}, ("angry", "sad"))


def test_clues_count_repeated_words_and_labels_do_not():
    judge = LexicalJudge()
    # wanted: low low voice; given: low voice voice -> 2 of 3 either way; distinct words: 2 of 2
    assert judge.rate("clue", "1", "low low voice", "low voice, voice 7_") == pytest.approx(2 / 3)
    assert judge.rate("label", "1", "low low voice", "low voice, voice") == 1.0
    assert judge.rate("label", "1", "brow", "voice") == judge.rate("clue", "1", "", "voice") == 0.0
    assert judge.rate("clue", "1", "the", "is") == 0.0
    assert judge.highest == 1.0
    scores = overlap_scores({"b": "low low voice", "a": "brow"}, {"a": "brow", "b": "low voice, voice"}, judge)
    assert (scores.clue, scores.label) == (pytest.approx((1 + 2 / 3) / 2), 1.0)
    assert (scores.clip_ids, scores.num_clips, scores.num_unrated, scores.highest) == (("a", "b"), 2, 0, 1.0)
    assert scores.ratings == pytest.approx(np.array([[1, 1], [2 / 3, 1]]))


def test_clips_of_one_side_alone_are_counted_named_and_suggested():
    with pytest.raises(DataError) as caught:
        classification_scores({"clip1": "a", "clip2": "a"}, {"clip1": "a", "clip3": "a", "x": "a"})
    message = str(caught.value)
    assert 'one for each of 2 clips, got 1 missing, 2 for other clips. Did you mean "clip2"' in message
    assert "missing: clip2" in message
    assert "unknown: clip3" in message
    with pytest.raises(DataError, match="got no references"):
        classification_scores({}, {})
    with pytest.raises(DataError, match="1 missing, 0 for other clips"):
        classification_scores({"a": "x"}, {})


def test_sentiment_counts_and_accuracy():
    scores = sentiment_scores(
        {"1": 0.1, "2": -0.1, "3": -3, "4": 0}, {"1": "good", "2": "neutral", "3": "positive", "4": "?"}
    )
    assert (scores.num_scored, scores.num_neutral, scores.num_unreadable) == (3, 1, 1)
    assert scores.accuracy == pytest.approx(1 / 3)
    assert scores.classes.labels == ("not positive", "positive")
    assert scores.classes.confusion.tolist() == [[1, 1, 0], [1, 0, 0]]
    with pytest.raises(DataError, match=r"finite scores, got 2 others"):
        sentiment_scores({"1": float("nan"), "2": float("inf"), "3": 1}, dict.fromkeys("123", "positive"))
    with pytest.raises(DataError, match="clips that are not neutral, got 2 neutral clips only"):
        sentiment_scores({"1": 0, "2": 0}, dict.fromkeys("12", "positive"))
    three_way = three_way_sentiment_scores({"1": " Positive", "2": "neutral"}, {"1": "?", "2": "?"})
    assert (three_way.num_scored, three_way.num_neutral, three_way.num_unreadable, three_way.mean) == (1, 1, 1, 0.0)
    assert three_way.classes.num_outside == 1


def test_hits_of_every_clip_and_wheel(wheels):
    scores = hit_rate({"b": "dread", "a": "blue", "c": "neutral"}, {"a": "glad, blue", "b": "blue", "c": ""}, wheels)
    nan = np.nan
    np.testing.assert_array_equal(scores.hits, [[1] * 5, [0, nan, 0, 0, 0], [nan] * 5])
    assert scores.per_wheel == (0.5, 1.0, 0.5, 0.5, 0.5)
    assert (scores.num_scored, scores.num_clips, scores.clip_ids) == ((2, 1, 2, 2, 2), 3, ("a", "b", "c"))
    assert (scores.mean, scores.mean_num_labels, scores.comparable) == (0.6, 1.0, False)
    assert hit_rate({"a": "dread"}, {"a": "dread"}, wheels).per_wheel == (1.0, None, 1.0, 1.0, 1.0)
    for several in (["blue", "glad"], []):
        with pytest.raises(DataError, match="one label per clip for HIT, got another number for 1 clips"):
            hit_rate({"a": several, "b": "blue"}, {"a": "blue", "b": "blue"}, wheels)
    with pytest.raises(DataError, match="on some emotion wheel, got none among 1 clips"):
        hit_rate({"a": "neutral"}, {"a": "blue"}, wheels)


def test_precision_and_recall_of_every_clip_and_wheel(wheels):
    references = {"b": "dread", "a": ["blue", "glad"], "c": "neutral"}
    scores = open_vocabulary_scores(references, {"a": "proud, dread", "b": "unheard", "c": "blue"}, wheels)
    nan = np.nan
    with_fear = [[1 / 2, 1 / 2], [1, 1 / 2], *[[1 / 2, 1 / 2]] * 3]  # the second wheel does not know `dread`
    np.testing.assert_array_equal(scores.parts, [with_fear, [[0, 0], [nan, nan], *[[0, 0]] * 3], [[nan, nan]] * 5])
    assert scores.num_scored == (2, 1, 2, 2, 2)
    assert (scores.precision, scores.recall) == pytest.approx(((4 * 1 / 4 + 1) / 5, (4 * 1 / 4 + 1 / 2) / 5))
    assert scores.mean == pytest.approx((4 * 1 / 4 + 2 / 3) / 5)
    assert scores.per_wheel[1].f == pytest.approx(2 / 3)
    assert (scores.mean_num_labels, scores.num_clips, scores.clip_ids) == (pytest.approx(4 / 3), 3, ("a", "b", "c"))
    assert (harmonic(0.0, 0.0), harmonic(1.0, 0.0), harmonic(0.5, 1.0)) == (0.0, 0.0, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("metric", "main", "counts", "value"),
    [
        ("classification", "accuracy", [2, 1, 1, 0], 3 / 4),
        ("classification", "UAR", [2, 1, 1, 0], (2 / 3 + 1) / 2),
        ("classification", "macro F1", [2, 1, 1, 0], (4 / 5 + 2 / 3) / 2),
        ("classification", "weighted F1", [2, 1, 1, 0], (3 * 4 / 5 + 2 / 3) / 4),
        ("classification", "UAR", [3, 1, 0, 0], 3 / 4),  # a class that is not drawn enters no mean
        ("classification", "macro F1", [3, 0, 0, 0], 1.0),
        ("classification", "weighted F1", [3, 0, 0, 0], 1.0),
        ("multi-label", "mAP", [2, 1, 1, 0], ((1 * 2 / 3 + 3 / 4 * 1 / 3) + (1 / 2 * 1 + 1 / 4 * 0)) / 2),
        ("multi-label", "F1 micro", [2, 1, 1, 0], 2 * 3 / 8),
    ],
)
def test_figures_of_a_resampled_set_are_those_of_the_clips_it_draws(metric, main, counts, value):
    references = {"1": "a", "2": "a", "3": "b", "4": "b"}
    predictions = {"1": "a", "2": "b", "3": "b", "4": "x"}
    scored = score(metric, references, predictions, main=main)
    assert scored.resample(np.array(counts, float)) == pytest.approx(value)


@pytest.mark.parametrize("main", ["F", "precision", "recall"])
def test_a_resampled_set_without_a_clip_that_a_wheel_knows_scores_0(main):
    scored = score("open-vocabulary", {"1": "anger", "2": "neutral"}, {"1": "anger, happy", "2": "anger"}, main=main)
    assert scored.value == pytest.approx({"F": 2 / 3, "precision": 1 / 2, "recall": 1}[main])
    assert scored.resample(np.array([0.0, 2.0])) == 0.0
    assert scored.resample(np.array([3.0, 2.0])) == pytest.approx(scored.value)


def test_what_the_registry_says_of_a_set():
    references, predictions = {"1": "a", "2": "a", "3": "b"}, {"1": "A.", "2": "b", "3": "?"}
    scored = score("classification", references, predictions, MetricSettings(vocabulary=["a", "b"]))
    assert (scored.main, scored.value, scored.highest, scored.comparable) == (
        "accuracy",
        pytest.approx(1 / 3),
        1.0,
        True,
    )
    assert scored.counts == {"clips": 3, "answers that are no label": 1}
    assert scored.per_class["b"] == {"precision": 0.0, "recall": 0.0, "F1": 0.0, "clips": 1}
    assert scored.per_clip.tolist() == [1.0, 0.0, 0.0]
    wheels = score("hit", {"1": "anger", "2": "sad"}, {"1": "anger, happy", "2": "happy"})
    assert wheels.counts == {
        "clips": 2,
        "scored by wheel": [2],
        "labels predicted a clip": 1.5,
        "HIT by wheel": [50.0],
    }
    waf = score("waf", {"1": 1, "2": -2, "3": 0}, {"1": "positive", "2": "hm", "3": "positive"})
    assert waf.counts == {"clips": 3, "neutral, not scored": 1, "unreadable answers": 1}
    overlap = score("overlap", {"1": "low brow"}, {"1": "low"}, main="label")
    assert (overlap.value, overlap.comparable, overlap.per_clip.tolist()) == (
        pytest.approx(2 / 3),
        False,
        [overlap.value],
    )
    labels = score("multi-label", {"1": "a, b", "2": "a"}, {"1": "a, x", "2": "a"})
    assert labels.counts == {"clips": 2, "labels predicted a clip": 1.5, "predicted labels outside the classes": 1}
    assert labels.per_class["a"] == {"AP": 1.0, "F1": 1.0, "clips": 2}
    assert main_figure("overlap", "label") == "label"


@pytest.mark.parametrize("value", [True, float("inf"), -float("inf"), float("nan"), "glad", None])
def test_what_is_no_sentiment_score_is_named(value):
    with pytest.raises(DataError, match="sentiment scores, got 1 others"):
        score("waf", {"1": value, "2": -1}, {"1": "positive", "2": "negative"})


class SilentOnSome(LexicalJudge):
    def rate(self, kind, clip_id, reference, prediction):
        return None if clip_id in ("a", "c", "d") and kind == "label" else 1.0


def test_clips_after_one_without_a_rating_are_rated_too():
    texts = dict.fromkeys("abcde", "x")
    scores = overlap_scores(texts, texts, SilentOnSome())
    assert (scores.clip_ids, scores.num_clips, scores.num_unrated) == (("b", "e"), 5, 3)
    assert scores.ratings.tolist() == [[1.0, 1.0], [1.0, 1.0]]
