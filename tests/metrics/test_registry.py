"""Every metric by name: the figure that intervals resample is the figure itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusion_train.errors import ConfigError, DataError
from fusion_train.metrics.registry import METRICS, score
from fusion_train.metrics.scored import Settings

LABELS = ["anger", "happy", "worried", "sad"]
REFERENCES = {
    "hit": [LABELS[k % 4] for k in range(23)],
    "open-vocabulary": [[LABELS[k % 4], LABELS[(k + k // 4) % 4]] for k in range(23)],
    "waf": [k % 5 - 2 for k in range(23)],
    "sentiment-three-way": [["negative", "neutral", "positive"][k % 3] for k in range(23)],
    "classification": [LABELS[k % 4] for k in range(23)],
    "multi-label": [LABELS[k % 4 :] for k in range(23)],
    "overlap": [f"A {LABELS[k % 4]} voice and a low brow" for k in range(23)],
}
REFERENCES |= {f"{name}-released": REFERENCES[name] for name in ("waf", "sentiment-three-way")}
ANSWERS = {
    "waf": ["positive", "negative", "neutral", "what?"],
    "sentiment-three-way": ["positive", "negative", "neutral", "what?"],
    "overlap": ["A sad voice", "low brow", "nothing"],
}
ANSWERS |= {f"{name}-released": ANSWERS[name] for name in ("waf", "sentiment-three-way")}


def by_clip(values) -> dict:
    return {f"c{number:02d}": value for number, value in enumerate(values)}


@pytest.mark.parametrize(("metric", "main"), [(name, main) for name, m in METRICS.items() for main in m.figures])
def test_counting_every_clip_once_gives_the_figure_itself(metric, main):
    said = ANSWERS.get(metric, ["angry, happy", "sad", "joy, worried", "anger", "unheard"])
    references, predictions = by_clip(REFERENCES[metric]), by_clip(said[k % len(said)] for k in range(23))
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
    settings = Settings(vocabulary=("Shy", "Happy"))
    assert score("classification", {"a": "Shy", "b": "happy"}, {"a": "shy.", "b": "Joy"}, settings).value == 1


def test_references_of_another_kind_are_named():
    with pytest.raises(DataError, match="one label a clip"):
        score("classification", {"a": ["sad"]}, {"a": "sad"})
    with pytest.raises(DataError, match="a: nan"):
        score("waf", {"a": math.nan, "b": 1}, {"a": "positive", "b": "positive"})
