"""What every registered metric promises: figures, resampling, order, complete predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusion_train.errors import ConfigError, DataError
from fusion_train.metrics.metric_result import MetricSettings
from fusion_train.metrics.registry import METRICS, score

LABELS = ["anger", "happy", "worried", "sad"]
REFERENCES = {
    "hit": [LABELS[k % 4] for k in range(23)],
    "open-vocabulary": [[LABELS[k % 4], LABELS[(k + k // 4) % 4]] for k in range(23)],
    "waf": [k % 5 - 2 for k in range(23)],
    "sentiment-three-way": [["negative", "neutral", "positive"][k % 3] for k in range(23)],
    "classification": [LABELS[k % 4] for k in range(23)],
    "multi-label": [LABELS[k % 4 :] for k in range(23)],
    "regression": [(k * 7 % 23) / 4 - 2 for k in range(23)],
    "overlap": [f"A {LABELS[k % 4]} voice and a low brow" for k in range(23)],
}
REFERENCES |= {f"{name}-released": REFERENCES[name] for name in ("waf", "sentiment-three-way")}
ANSWERS = {
    "waf": ["positive", "negative", "neutral", "what?"],
    "sentiment-three-way": ["positive", "negative", "neutral", "what?"],
    "regression": ["0.5", "-1", "1.25e0", "2"],
    "overlap": ["A sad voice", "low brow", "nothing"],
}
ANSWERS |= {f"{name}-released": ANSWERS[name] for name in ("waf", "sentiment-three-way")}


def by_clip(values) -> dict:
    return {f"c{number:02d}": value for number, value in enumerate(values)}


def example_of(metric: str) -> tuple[dict, dict]:
    """References and predictions of 23 clips."""
    assert metric in REFERENCES, f"add references for the new metric {metric!r} to this module"
    answers = ANSWERS.get(metric, ["angry, happy", "sad", "joy, worried", "anger", "unheard"])
    return by_clip(REFERENCES[metric]), by_clip(answers[k % len(answers)] for k in range(23))


@pytest.mark.parametrize("metric", METRICS)
def test_figures_are_finite_and_do_not_depend_on_the_order_of_clips(metric):
    references, predictions = example_of(metric)
    scored = score(metric, references, predictions)
    assert scored.main == METRICS[metric].figures[0]
    assert scored.lowest <= scored.value <= scored.highest
    assert all(math.isfinite(figure) for figure in scored.figures.values())
    assert set(scored.clip_ids) <= set(references)
    backwards = score(metric, dict(reversed(references.items())), dict(reversed(predictions.items())))
    assert backwards.figures == scored.figures
    assert backwards.clip_ids == scored.clip_ids


@pytest.mark.parametrize("metric", METRICS)
def test_a_missing_or_surplus_prediction_is_an_error(metric):
    references, predictions = example_of(metric)
    with pytest.raises(DataError, match="1 missing"):
        score(metric, references, dict(list(predictions.items())[1:]))
    with pytest.raises(DataError, match="1 for other clips"):
        score(metric, references, predictions | {"unknown": "happy"})


@pytest.mark.parametrize(("metric", "main"), [(name, main) for name, m in METRICS.items() for main in m.figures])
def test_counting_every_clip_once_gives_the_figure_itself(metric, main):
    references, predictions = example_of(metric)
    scored = score(metric, references, predictions, main=main)
    assert scored.main == main
    assert set(scored.figures) == set(METRICS[metric].figures)
    assert scored.resample(np.ones(len(scored.clip_ids))) == pytest.approx(scored.value)
    twice = np.arange(len(scored.clip_ids)) % 3
    assert math.isfinite(scored.resample(twice))
    if scored.per_clip is not None:
        assert np.average(scored.per_clip, weights=twice) == pytest.approx(scored.resample(twice))
    doubled = {**references, **{f"{clip}again": value for clip, value in references.items()}}
    again = {**predictions, **{f"{clip}again": value for clip, value in predictions.items()}}
    assert score(metric, doubled, again, main=main).value == pytest.approx(scored.value)


def test_an_unknown_metric_or_figure_names_the_near_one():
    with pytest.raises(ConfigError, match='Did you mean "hit"'):
        score("hitt", {}, {})
    with pytest.raises(ConfigError, match='Did you mean "weighted F1"'):
        score("classification", {"a": "x"}, {"a": "x"}, main="weighted F")


def test_words_stand_for_sentiment_scores_of_their_sign():
    numbers = score("waf", {"a": -0.4, "b": 2, "c": 0}, {"a": "negative", "b": "neutral", "c": "positive"})
    words = score(
        "waf", {"a": "negative", "b": "positive", "c": "neutral"}, {"a": "negative", "b": "neutral", "c": "x"}
    )
    assert numbers.value == words.value
    with pytest.raises(DataError, match="a: 'happy'"):
        score("waf", {"a": "happy"}, {"a": "positive"})


def test_capitals_do_not_matter():
    settings = MetricSettings(vocabulary=("Shy", "Happy"))
    assert score("classification", {"a": "Shy", "b": "happy"}, {"a": "shy.", "b": "Joy"}, settings).value == 1


def test_references_of_another_kind_are_named():
    with pytest.raises(DataError, match="one label per clip"):
        score("classification", {"a": ["sad"]}, {"a": "sad"})
    with pytest.raises(DataError, match="a: nan"):
        score("waf", {"a": math.nan, "b": 1}, {"a": "positive", "b": "positive"})
