"""Every metric on an example worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_train.errors import DataError
from fusion_train.metrics import (
    EmotionWheels,
    LexicalJudge,
    classification_scores,
    hit_rate,
    multi_label_scores,
    open_vocabulary_scores,
    overlap_scores,
    sentiment_scores,
    three_way_sentiment_scores,
)
from fusion_train.metrics.labels import find_sentiment, label_list, one_label, parse_list, read_sentiment, spelt_as
from fusion_train.metrics.negation import is_negated
from fusion_train.metrics.registry import score


def test_the_small_tables_have_the_sizes_counted_by_hand(wheels):
    # wheel words: joy sadness fear, glad proud blue dread; besides them happy, cheery, feeling; happily and gladly
    assert wheels.sizes.words == 7
    assert wheels.sizes.synonyms == 10
    assert wheels.sizes.surfaces == 9
    assert wheels.sizes.level1 == (3, 2, 3, 3, 3)
    assert not wheels.comparable
    assert "not comparable" in wheels.note


def test_a_surface_maps_through_format_and_synonyms_to_a_group(wheels):
    assert wheels.group("Happily ") == "joy"  # format: happily -> happy; synonym: happy beside glad; wheel: glad in joy
    assert wheels.group("blue") == "sadness"
    assert wheels.group("neutral") is None
    assert wheels.group("dread", wheel=1) is None  # wheel 2 has no fear
    assert wheels.groups(["happily", "proud", "blue", "unheard"]) == {"joy", "sadness"}


def test_the_first_known_word_in_sorted_order_decides(wheels):
    # `feeling` stands beside blue and proud: sorted, blue comes first on every wheel
    assert wheels.group("feeling") == "sadness"


def test_at_level_two_a_level_one_word_is_the_first_of_its_kinds(wheels):
    assert wheels.group("proud", level=2) == "proud"
    assert wheels.group("joy", level=2) == "glad"


def test_hit_rate_drops_clips_a_wheel_does_not_know(wheels):
    references = {"1": "happily", "2": "blue", "3": "dread", "4": "neutral"}
    predictions = {"1": "proud, blue", "2": ["dread"], "3": "['dread']", "4": "joy"}
    scores = hit_rate(references, predictions, wheels)
    # wheels 1, 3, 4, 5: clip 1 hit, 2 miss, 3 hit -> 2/3. Wheel 2 knows no fear: 1 hit, 2 miss -> 1/2
    assert scores.per_wheel == pytest.approx((2 / 3, 1 / 2, 2 / 3, 2 / 3, 2 / 3))
    assert scores.mean == pytest.approx((4 * 2 / 3 + 1 / 2) / 5)
    assert scores.num_scored == (3, 2, 3, 3, 3)
    assert scores.mean_num_labels == 5 / 4


def test_open_vocabulary_scores_average_before_the_harmonic_mean(wheels):
    references = {"1": ["glad", "blue"], "2": ["dread"], "3": []}
    predictions = {"1": ["proud"], "2": "unheard", "3": "joy"}
    scores = open_vocabulary_scores(references, predictions, wheels)
    # clip 1: P {joy}, Y {joy, sadness}: 1 and 1/2; clip 2 predicted nothing known: 0 and 0; clip 3 drops out
    part = scores.per_wheel[0]
    assert (part.precision, part.recall) == (1 / 2, 1 / 4)
    assert part.f == pytest.approx(2 * (1 / 2) * (1 / 4) / (3 / 4))
    assert scores.num_scored == (2, 1, 2, 2, 2)
    assert scores.per_wheel[1].f == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert scores.mean == pytest.approx((4 * part.f + scores.per_wheel[1].f) / 5)


def test_both_sentiment_scores_differ_on_the_same_predictions():
    scores = {"1": 2.0, "2": 1.0, "3": -1.0, "4": -2.0, "5": 0.0}
    labels = {"1": "positive", "2": "positive", "3": "negative", "4": "negative", "5": "neutral"}
    answers = {"1": "positive", "2": "Positive.", "3": "neutral", "4": "I cannot say", "5": "positive"}
    waf = sentiment_scores(scores, answers)
    assert waf.mean == 1.0  # neutral and unreadable count as not positive
    assert (waf.num_scored, waf.num_neutral, waf.num_unreadable) == (4, 1, 1)
    three_way = three_way_sentiment_scores(labels, answers)
    assert three_way.mean == pytest.approx(0.5)  # positive: F1 1; negative: F1 0; weights 2:2


def test_waf_weights_the_two_classes_by_their_references():
    scores = {"1": 1, "2": 1, "3": 1, "4": -1}
    answers = {"1": "positive", "2": "negative", "3": "positive", "4": "positive"}
    # positive: precision 2/3, recall 2/3, F1 2/3, weight 3; not positive: none right, F1 0, weight 1
    assert sentiment_scores(scores, answers).mean == pytest.approx(2 / 3 * 3 / 4)


def test_classification_counts_an_unknown_answer_as_wrong_and_no_class():
    references = {"1": "a", "2": "a", "3": "b", "4": "b"}
    scores = classification_scores(references, {"1": "a", "2": "b", "3": "b", "4": "unheard"})
    assert scores.accuracy == scores.war == scores.uar == 0.5
    # a: precision 1, recall 1/2, F1 2/3; b: precision 1/2, recall 1/2, F1 1/2; weights 2:2
    assert scores.weighted_f1 == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores.confusion.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert scores.num_outside == 1
    assert [(c.label, c.recall, c.num_clips) for c in scores.classes] == [("a", 0.5, 2), ("b", 0.5, 2)]


def test_uar_weighs_classes_alike_and_war_clips():
    references = {"1": "a", "2": "a", "3": "a", "4": "b"}
    scores = classification_scores(references, dict.fromkeys(references, "a"))
    assert (scores.uar, scores.war) == (0.5, 0.75)


def test_spellings_of_the_datasets_own_labels_are_one():
    vocabulary = ("angry", "happy", "sad")
    scores = classification_scores({"1": "angry", "2": "happy"}, {"1": "anger", "2": "joy"}, vocabulary)
    assert scores.accuracy == 1
    assert spelt_as("scared", ("fear", "sad")) == "fear"
    assert spelt_as("joy", ("happy", "happiness")) == "joy"  # two would fit: nothing is guessed
    assert spelt_as("tired", vocabulary) == "tired"


def test_a_reference_outside_the_vocabulary_is_named():
    with pytest.raises(DataError, match='2: "bored"'):
        classification_scores({"1": "sad", "2": "bored"}, {"1": "sad", "2": "sad"}, ("sad", "angry"))


def test_multi_label_scores():
    references = {"1": ["a", "b"], "2": ["b"], "3": ["c"]}
    predictions = {"1": "a, b", "2": "a", "3": "c, d"}
    scores = multi_label_scores(references, predictions)
    # tp: 1a 1b 3c = 3; fp: 2a = 1 (d is no class); fn: 2b = 1
    assert scores.f1_micro == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert scores.f1_samples == pytest.approx((1 + 0 + 1) / 3)
    assert scores.jaccard == pytest.approx((1 + 0 + 1) / 3)
    # AP of a yes or no = precision * recall + share of positives * (1 - recall): a 1/2, b 1/2 + 2/3 * 1/2, c 1
    assert scores.map_macro == pytest.approx((1 / 2 + (1 / 2 + 1 / 3) + 1) / 3)
    assert scores.num_outside == 1


def test_one_class_alone_is_scored_too():
    scores = multi_label_scores({"1": ["a"], "2": []}, {"1": "a", "2": "a"})
    assert (scores.f1_micro, scores.jaccard) == pytest.approx((2 / 3, 1 / 2))


def test_lexical_overlap_is_an_f1_of_content_words():
    scores = overlap_scores({"1": "The voice is low and sad."}, {"1": "A low voice"}, LexicalJudge())
    assert scores.clue == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))  # 2 of 2 words given, 2 of 3 wanted
    assert scores.judge == "lexical overlap"


class Mute:
    name, highest = "mute", 10.0

    def rate(self, kind, clip_id, reference, prediction):
        return None if clip_id == "2" else 7.0


def test_a_reply_without_a_rating_is_counted_and_enters_no_mean():
    texts = {"1": "x", "2": "y"}
    scores = overlap_scores(texts, texts, Mute())
    assert (scores.clue, scores.num_unrated, scores.num_clips) == (7.0, 1, 2)
    with pytest.raises(DataError, match="a rating in its replies"):
        overlap_scores({"2": "y"}, {"2": "y"}, Mute())


def test_the_list_parser_reads_what_models_write():
    assert parse_list("['happy', \"very sad\"]") == ["happy", "very sad"]
    assert parse_list("[happy, sad") == ["happy", "sad"]
    assert parse_list("[[happy]") == ["[happy"]  # one bracket alone is dropped
    assert parse_list("") == parse_list("[]") == []
    assert label_list("<think>a, b</think><answer>Sad, sad ,Angry</answer>") == ["sad", "angry"]
    assert one_label(" Happy. ") == "happy"


def test_sentiment_is_read_only_where_one_word_says_it():
    assert read_sentiment("It is Negative.") == "negative"
    assert read_sentiment("positive and negative") is None
    assert read_sentiment("positivity") is None
    assert find_sentiment("It is not Negative.") == "negative"
    assert find_sentiment("not positive but negative") is None


SAYS_POSITIVE = [
    "not only positive", "Not just positive but enthusiastic", "never not positive", "not non-positive",
    "not sure, but positive", "I am not sure but it is positive", "positive, not negative", "not negative but positive",
    "No doubt positive", "without a doubt positive", "nothing but positive", "cannot be anything but positive",
    "Non-verbal cues are positive", "a notable positive tone", "No, positive", "neither sad nor angry, positive",
    "does not smile and the tone is positive", "<think>not positive</think><answer>positive</answer>",
    "非常积极", "不仅积极", "对未来积极", "无比积极", "没想到很积极",
    "不错，积极", "不是消极而是积极", "不是不积极", "毫无疑问是积极的", "情感是positive的",
]  # fmt: skip
DOES_NOT = [
    "not positive", "NOT 'positive'", "'not positive'", "isn't positive", "isn’t positive", "isnt positive",
    "it is not at all positive", "I do not think that it is positive", "no positive emotion", "never positive",
    "no longer positive", "not bad", "non-positive", "hardly positive", "far from positive", "anything but positive",
    "cannot be called positive", "not very positive", "not so positive", "I doubt it is positive",
    "lack of positive cues",
    "neither positive, negative nor neutral",
    "不积极", "并非积极", "没有积极情绪", "不太积极", "并非positive", "谈不上积极",
]  # fmt: skip


@pytest.mark.parametrize("text", SAYS_POSITIVE)
def test_what_only_looks_like_a_negation_negates_nothing(text):
    assert read_sentiment(text) == "positive"


@pytest.mark.parametrize("text", DOES_NOT)
def test_a_negated_word_says_no_sentiment(text):
    assert read_sentiment(text) is None


def test_negation_leaves_the_other_words():
    assert read_sentiment("not positive but negative") == read_sentiment("negative rather than positive") == "negative"
    assert read_sentiment("neither positive nor negative") == read_sentiment("既非积极亦非消极") == "neutral"
    assert label_list("not 'happy' but 'sad'") == ["not", "but", "sad"]
    assert label_list("['not happy', 'sad']") == ["not happy", "sad"]


def test_waf_reads_negation_and_the_released_metrics_do_not():
    scores, answers = {"1": 1.0, "2": -1.0, "3": -2.0}, {"1": "positive", "2": "not positive", "3": "Negative"}
    assert score("waf", scores, answers).value == 1.0
    assert score("waf-released", scores, answers).figures["accuracy"] == pytest.approx(2 / 3)
    assert score("sentiment-three-way", scores, {**answers, "2": "negative."}).value == 1.0
    released = score("sentiment-three-way-released", scores, {**answers, "2": "negative."})  # the string as it stands
    assert released.figures["accuracy"] == pytest.approx(2 / 3)


def test_the_small_wheel_serves_and_says_that_it_is_not_comparable():
    wheels = EmotionWheels.small()
    assert wheels.group("happiness") == "happy"
    assert wheels.group("worried") == "afraid"
    assert wheels.group("neutral") is None
    scores = hit_rate({"1": "anger"}, {"1": "frustrated, calm"}, wheels)
    assert (scores.mean, scores.comparable) == (1.0, False)
    assert np.array_equal(scores.hits, [[1.0]])


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("not positive nor negative", True),  # without "neither", a "nor" ahead leaves the clause as it is
        ("neither sad, positive nor loud", True),
        ("It is neither. The voice is positive, nor loud.", False),  # "neither" of another sentence
    ],
)
def test_a_clause_reaches_back_to_neither_of_its_own_sentence_alone(text, negated):
    assert is_negated(text, text.index("positive")) is negated
