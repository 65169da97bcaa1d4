"""What must hold of every score, whatever the labels: order and repetition do not matter, nothing is NaN."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wheel_files import write_table, write_tables

from featurecache.errors import SpreadsheetError
from fusion_train.errors import DataError
from fusion_train.metrics import (
    EmotionWheels,
    classification_scores,
    hit_rate,
    multi_label_scores,
    open_vocabulary_scores,
    sentiment_scores,
)
from fusion_train.metrics.labels import label_list

WHEELS = EmotionWheels.small()
WORDS = st.sampled_from(["happy", "joy", "sad", "anger", "worried", "disgust", "neutral", "unheard", "", "NaN"])
LISTS = st.lists(WORDS, max_size=4)
CLIPS = st.lists(st.tuples(LISTS, LISTS, WORDS, WORDS), min_size=1, max_size=12)


def by_clip(values) -> dict:
    return {f"c{number:02d}": value for number, value in enumerate(values)}


def figures(clips) -> list[float]:
    """Every score of these clips that has one."""
    lists, answers = by_clip(row[0] for row in clips), by_clip(row[1] for row in clips)
    words, said = by_clip(row[2] or "sad" for row in clips), by_clip(row[3] for row in clips)
    numbers = by_clip(len(row[0]) - 1.5 for row in clips)
    found = []
    for score, get in (
        (lambda: hit_rate(words, answers, WHEELS), lambda s: [s.mean, s.mean_num_labels]),
        (lambda: open_vocabulary_scores(lists, answers, WHEELS), lambda s: [s.mean, s.precision, s.recall]),
        (lambda: classification_scores(words, said), lambda s: [s.accuracy, s.uar, s.weighted_f1]),
        (lambda: multi_label_scores(lists, answers), lambda s: [s.map_macro, s.f1_micro, s.f1_samples, s.jaccard]),
        (lambda: sentiment_scores(numbers, said), lambda s: [s.mean, s.accuracy]),
    ):
        try:
            found += get(score())
        except DataError:  # no clip that could be scored: an error, and never a NaN
            found.append(-1.0)
    return found


@settings(max_examples=60)
@given(CLIPS)
def test_scores_are_finite_and_shares(clips):
    for value in figures(clips):
        assert math.isfinite(value)


@settings(max_examples=40)
@given(CLIPS, st.randoms(use_true_random=False))
def test_order_of_clips_and_labels_and_repetition_do_not_matter(clips, random):
    before = figures(clips)
    shuffled = [(random.sample(a, len(a)) * 2, random.sample(b, len(b)) * 2, c, d) for a, b, c, d in clips]
    changed = figures(shuffled)
    assert [b for k, b in enumerate(before) if k != 1][:4] == [c for k, c in enumerate(changed) if k != 1][:4]
    wanted = by_clip(row[2] for row in clips)
    backwards = dict(reversed(list(wanted.items())))
    said = by_clip(row[3] for row in clips)
    assert classification_scores(wanted, said).weighted_f1 == classification_scores(backwards, said).weighted_f1


@given(st.text(max_size=30))
def test_any_text_is_read_as_labels(text):
    labels = label_list(text)
    assert len(set(labels)) == len(labels)
    assert all(label == label.strip().lower() and label for label in labels)


@settings(max_examples=30)
@given(CLIPS)
def test_more_labels_never_lower_the_hit_rate(clips):
    words, answers = by_clip(row[2] or "sad" for row in clips), by_clip(row[1] for row in clips)
    if not any(WHEELS.group(word) for word in words.values()):
        return
    more = {clip: [*labels, "joy", "sad"] for clip, labels in answers.items()}
    assert hit_rate(words, more, WHEELS).mean >= hit_rate(words, answers, WHEELS).mean


def test_missing_and_surplus_predictions_are_named():
    with pytest.raises(DataError, match="missing: b") as caught:
        hit_rate({"a": "joy", "b": "sad"}, {"a": "joy", "c": "sad"}, WHEELS)
    assert "unknown: c" in str(caught.value)
    with pytest.raises(DataError, match="no references"):
        sentiment_scores({}, {})


def test_hit_takes_one_reference_a_clip():
    with pytest.raises(DataError, match="one label per clip for HIT"):
        hit_rate({"a": ["joy", "sad"]}, {"a": "joy"}, WHEELS)


def test_all_neutral_is_an_error_and_no_nan():
    with pytest.raises(DataError, match="on some emotion wheel"):
        hit_rate({"a": "neutral"}, {"a": "joy"}, WHEELS)
    with pytest.raises(DataError, match="not neutral"):
        sentiment_scores({"a": 0}, {"a": "positive"})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "wheel3.xlsx").unlink(), "no wheel3.xlsx"),
        (lambda folder: (folder / "wheel3.xlsx").write_bytes(b"no table"), "an xlsx workbook"),
        (
            lambda folder: write_table(folder / "wheel3.xlsx", ("level1", "levl2", "level3"), []),
            "level1, levl2, level3",
        ),
        (lambda folder: write_table(folder / "wheel3.xlsx", ("level1", "level2", "level3"), []), "only a header"),
        (lambda folder: write_table(folder / "synonym.xlsx", ("word_run1",), []), "Missing: synonym_run1"),
        (lambda folder: (folder / "format.csv").write_text("name;format\n"), "name, format"),
        (lambda folder: (folder / "format.csv").write_bytes(b"name,format\n\xff,x\n"), "UTF-8"),
    ],
)
def test_a_malformed_wheel_folder_is_named_with_what_was_found(tmp_path, spoil, said):
    write_tables(tmp_path)
    spoil(tmp_path)
    with pytest.raises((DataError, SpreadsheetError), match=said):
        EmotionWheels.load(tmp_path)


def test_a_synonym_of_no_wheel_word_is_refused(tmp_path):
    write_tables(tmp_path)
    header = tuple(name for run in range(1, 9) for name in (f"word_run{run}", f"synonym_run{run}"))
    write_table(tmp_path / "synonym.xlsx", header, [("gladd", "happy") * 8])
    with pytest.raises(DataError, match='Did you mean "glad"'):
        EmotionWheels.load(tmp_path)


def test_no_folder_of_wheels_is_named():
    with pytest.raises(DataError, match="no such folder"):
        EmotionWheels.load("nowhere")
