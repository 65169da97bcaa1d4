"""What a sweep compares by: figures of answers, of clips and of whole sets."""

from __future__ import annotations

import pytest

from fusion_train.errors import ConfigError
from fusion_train.sweeps.compared_metric import ComparedMetric, choose_metric
from fusion_train.sweeps.sweep_file import load_sweep

ACCURACY, UAR = (ComparedMetric("classification", main) for main in ("accuracy", "UAR"))


def rows(references, answers) -> list[dict]:
    return [
        {"id": f"c{number:03d}", "reference": reference, "prediction": answer}
        for number, (reference, answer) in enumerate(zip(references, answers, strict=True))
    ]


def test_the_difference_of_an_unweighted_recall_by_hand():
    references = ["angry", "angry", "angry", "sad"]
    mine = {0: rows(references, ["angry", "angry", "happy", "sad"])}
    theirs = {0: rows(references, ["angry", "happy", "angry", "happy"])}
    (own,), (other,) = UAR.paired(mine, theirs)
    assert own.value - other.value == pytest.approx((2 / 3 + 1) / 2 - (2 / 3 + 0) / 2)


def test_variants_meet_on_the_clips_that_all_seeds_of_both_have():
    mine = {0: rows("xy", "xy"), 1: rows("xyx", "xxx")}
    theirs = {1: rows("xyx", "yyx"), 2: rows("xyx", "xyx"), 3: rows("xyx", "xyx")}
    own, other = ACCURACY.paired(mine, theirs)
    assert (len(own), len(other)) == (2, 3), "seeds need not be the same"
    assert {each.clip_ids for each in (*own, *other)} == {("c000", "c001")}
    assert [each.value for each in own] == [1.0, 0.5]
    assert ACCURACY.paired({}, theirs) is None


def test_texts_are_compared_by_their_overlap():
    measure = choose_metric("reason")
    mine, theirs = ({0: rows(["a low sad voice"], [said])} for said in ("a sad voice", "a smile"))
    (own,), (other,) = measure.paired(mine, theirs)
    assert own.value - other.value == pytest.approx(0.8)


def test_neutral_clips_do_not_enter_the_weighted_f1_of_sentiments():
    answers = {0: rows(["positive", "neutral", "negative"], ["positive", "positive", "positive"])}
    assert ComparedMetric("waf", "weighted F1").paired(answers, answers)[0][0].clip_ids == ("c000", "c002")


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
