"""What a sweep compares by: figures of answers, of clips and of whole sets; calibrated where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_train.comparison import OfSet, PerClip, compare
from fusion_train.errors import ConfigError
from fusion_train.statistics import bootstrap_interval
from fusion_train.sweeps.measure import Measure, choose_measure
from fusion_train.sweeps.sweep_file import load_sweep

LABELS = np.array(["angry", "happy", "sad"])
ACCURACY, UAR, WEIGHTED = (Measure("classification", main) for main in ("accuracy", "UAR", "weighted F1"))


def rows(references, answers) -> list[dict]:
    return [{"id": f"c{number:03d}", "reference": reference, "prediction": answer}
            for number, (reference, answer) in enumerate(zip(references, answers, strict=True))]  # fmt: skip


def as_set(difference: PerClip, measure: Measure, mine, theirs) -> OfSet:
    """The same comparison, formed anew from every draw."""
    scored = [measure.scored([{**row, "id": f"{side}/{row['id']}"} for side, each in enumerate(pair) for row in each])
              for pair in zip(mine.values(), theirs.values(), strict=True)]  # fmt: skip
    figures = [lambda counts, each=each: each.resample(counts.ravel()) for each in scored]
    return OfSet(difference.clips, figures, np.zeros(len(difference.clips), dtype=bool))


def test_the_difference_of_an_unweighted_recall_by_hand():
    references = ["angry", "angry", "angry", "sad"]
    mine = {0: rows(references, ["angry", "angry", "happy", "sad"])}
    theirs = {0: rows(references, ["angry", "happy", "angry", "happy"])}
    found = UAR.difference(mine, theirs)
    assert found.counted(np.ones(4)) == pytest.approx((2 / 3 + 1) / 2 - (2 / 3 + 0) / 2)
    assert found.counted(np.array([0, 1, 0, 1])) == pytest.approx(1.0)
    assert found.alike.tolist() == [True, False, False, False]
    # 8 exchanges of clips 1, 2, 3; only "sad" moves half a point, the other two move a sixth each, against each other
    assert found.p(range(4), 0) == pytest.approx(4 / 8 + 2 / 8)


def test_a_mean_over_clips_gives_the_same_as_a_set_and_as_its_clips():
    random = np.random.default_rng(4)
    references = LABELS[random.integers(3, size=12)]
    mine, theirs = ({seed: rows(references, LABELS[random.integers(3, size=12)]) for seed in range(2)} for _ in "ab")
    by_clip = ACCURACY.difference(mine, theirs)
    assert isinstance(by_clip, PerClip)
    whole = as_set(by_clip, ACCURACY, mine, theirs)
    clusters = {clip: number // 2 for number, clip in enumerate(by_clip.clips)}
    one, other = (compare("a", "b", each, clusters) for each in (by_clip, whole))
    assert one.difference == pytest.approx(other.difference)
    assert (one.interval.low, one.interval.high) == pytest.approx((other.interval.low, other.interval.high))
    assert one.p == pytest.approx(other.p), "six clusters: both are exact"
    assert one.clips_needed == pytest.approx(other.clips_needed, abs=1)


def test_variants_meet_on_the_seeds_and_clips_that_both_have():
    mine = {0: rows("xy", "xy"), 1: rows("xy", "xx")}
    theirs = {1: rows("xyx", "yyx"), 2: rows("xy", "xy")}
    found = ACCURACY.difference(mine, theirs)
    assert found.clips == ["c000", "c001"]
    assert found.differences.tolist() == [1.0, -1.0], "seed 1 alone"
    assert ACCURACY.difference({0: mine[0]}, theirs) is None


def test_texts_are_compared_by_their_overlap():
    measure = choose_measure("reason")
    mine, theirs = ({0: rows(["a low sad voice"], [said])} for said in ("a sad voice", "a smile"))
    assert measure.difference(mine, theirs).counted(np.ones(1)) == pytest.approx(0.8)


def test_neutral_clips_do_not_enter_the_weighted_f1_of_sentiments():
    answers = {0: rows(["positive", "neutral", "negative"], ["positive", "positive", "positive"])}
    assert Measure("waf", "weighted F1").difference(answers, answers).clips == ["c000", "c002"]


def answered(random, references, accuracy: float):
    """Answers that are right with this probability, else drawn; clips come in threes that are alike."""
    right = np.repeat(random.random(len(references) // 3) < accuracy, 3)
    return np.where(right, references, LABELS[random.integers(3, size=len(references))])


def worlds(count: int, mine: float, theirs: float, size: int = 120):
    """Pairs of answers to the same clips, two in three of one label; and the clusters."""
    random = np.random.default_rng(6)
    for _ in range(count):
        references = np.repeat(LABELS[random.choice(3, p=(0.7, 0.2, 0.1), size=size // 3)], 3)
        pair = [{0: rows(references, answered(random, references, accuracy))} for accuracy in (mine, theirs)]
        yield WEIGHTED.difference(*pair), np.repeat(range(size // 3), 3).tolist()


@pytest.mark.slow
def test_the_interval_of_a_set_covers_the_truth_as_often_as_it_says():
    truth = np.mean([each.counted(np.ones(len(each.clips))) for each, _ in worlds(40, 0.7, 0.5, size=6000)])
    covered = []
    for difference, clusters in worlds(120, 0.7, 0.5):
        interval = bootstrap_interval(difference.counted, clusters, resamples=300)
        covered.append(interval.low <= truth <= interval.high)
    assert 0.87 <= np.mean(covered) <= 0.99


@pytest.mark.slow
def test_without_a_difference_of_a_set_one_test_in_twenty_errs(monkeypatch):
    monkeypatch.setattr("fusion_train.comparison.PERMUTATIONS", 300)
    wrong = [difference.p(clusters, seed=1) < 0.05 for difference, clusters in worlds(240, 0.6, 0.6)]
    assert 0.015 <= np.mean(wrong) <= 0.095


def test_a_sweep_file_names_the_metric_and_the_figure(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("variants: {a: {}}\n")
    assert load_sweep(str(file), None, ()).measure == ACCURACY
    file.write_text("variants: {a: {}}\nmain: UAR\n")
    assert load_sweep(str(file), None, ()).measure == UAR
    for text, said in (("metric: hitt", "hit"), ("main: weighted F", "weighted F1"), ("task: caption", "a metric")):
        file.write_text("variants: {a: {}}\n" + text)
        with pytest.raises(ConfigError, match=said):
            load_sweep(str(file), None, ())
