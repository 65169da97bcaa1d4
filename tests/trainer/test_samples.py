"""Which question is asked of which clip."""

from __future__ import annotations

from collections import Counter

import pytest

from featurecache.clips.clip_list import Clip, ClipList, Question
from fusion_train.data.answers import AnswerLimits, answer_of, answers_of
from fusion_train.data.samples import Sample, SampleStats, SampleStream, label_sets, near_classes
from fusion_train.errors import ConfigError, DataError
from fusion_train.presets import load_config
from fusion_train.prompts.prompt import PromptFormat, find_task

MODALITIES = ("audio", "image", "video")


def clips(count: int = 30, dataset: str = "toy", **rest) -> ClipList:
    return ClipList(
        Clip(id=f"{dataset}{n}", text="x", dataset=dataset, labels={"emotion": ["happy", "sad"][n % 2]}, **rest)
        for n in range(count)
    )


def stream(clip_list: ClipList, tasks=("emotion",), **rest) -> SampleStream:
    return SampleStream(clip_list, tasks, label_sets(clip_list), **{"seed": 0, "modalities": MODALITIES, **rest})


def test_an_epoch_holds_every_clip_once_in_a_new_order():
    drawn = stream(clips())
    first, second = ([drawn.draw(k).clip.id for k in range(start, start + 30)] for start in (0, 30))
    assert sorted(first) == sorted(second) == sorted(clips().ids)
    assert first != second


def test_a_sample_is_a_function_of_seed_and_index():
    one, same, other = stream(clips()), stream(clips()), stream(clips(), seed=1)
    assert [one.draw(k) for k in range(50)] == [same.draw(k) for k in reversed(range(50))][::-1]
    assert [one.draw(k) for k in range(30)] != [other.draw(k) for k in range(30)]


def test_a_mixture_draws_by_weight():
    both = ClipList([*clips(10, "a"), *clips(1000, "b")])
    drawn = stream(both, mixture={"a": 3, "b": 1})
    counts = Counter(drawn.draw(k).clip.dataset for k in range(2000))
    assert 1400 < counts["a"] < 1600


def test_a_mixture_of_an_unknown_dataset_is_refused():
    with pytest.raises(DataError, match='Did you mean "toy"'):
        stream(clips(), mixture={"toyy": 1})


def test_a_mixture_that_may_leave_out_says_what_and_draws_the_rest():
    said: list[str] = []
    both = ClipList([*clips(10, "a"), *clips(10, "b"), *clips(10, "mine")])
    drawn = stream(both, mixture={"a": 1, "b": 1, "gone": 2}, on_absent_dataset="leave_out", say=said.append)
    assert {drawn.draw(k).clip.dataset for k in range(200)} == {"a", "b"}
    assert "without gone (50% of its weight)" in said[0]
    assert "clips of mine are never drawn" in said[1]


def test_a_mixture_of_nothing_at_hand_is_not_used():
    said: list[str] = []
    drawn = stream(clips(), mixture={"gone": 2}, on_absent_dataset="leave_out", say=said.append)
    assert sorted(drawn.draw(k).clip.id for k in range(30)) == sorted(clips().ids)
    assert len(said) == 1


@pytest.mark.parametrize(("stage", "share"), [("perception", 0.265), ("cognition", 0.316), ("joint", 0.316)])
def test_the_shipped_mixtures_have_the_published_share_of_general_pictures(stage, share):
    mixture = load_config(None, stage).data.mixture
    general = ("coco_caption", "refcoco", "refcoco+", "refcocog", "coco_vqa", "ok_vqa", "aok_vqa", "gqa")
    assert sum(mixture[name] for name in general) / sum(mixture.values()) == pytest.approx(share, abs=5e-4)
    assert len(mixture) == 20


def test_a_question_of_the_clips_own_is_asked_of_the_picture_alone():
    asked = (Question("vqa", "two", "How many?"), Question("vqa", "red", "Which colour?"))
    drawn = stream(ClipList([Clip(id="p", dataset="gqa", questions=asked)]), ("emotion", "vqa"))
    samples = [drawn.draw(k) for k in range(100)]
    assert {(sample.question, sample.answer) for sample in samples} == {("How many?", "two"), ("Which colour?", "red")}
    assert {sample.hidden for sample in samples} == {("audio", "video")}


def test_tasks_are_drawn_evenly_among_those_a_clip_can_answer():
    answering = clips(4, responses={"reason": "because"})
    counts = Counter(stream(answering, ("emotion", "reason", "audio")).draw(k).task.name for k in range(1000))
    assert set(counts) == {"emotion", "reason"}
    assert 430 < counts["reason"] < 570


def test_a_response_that_is_too_long_falls_back_to_the_label():
    answering = clips(4, responses={"reason": "word " * 2000})
    sample = stream(answering, ("reason",), limits=AnswerLimits(1024, None, lambda text: len(text.split()))).draw(0)
    assert sample.task.name == "emotion"
    assert sample.answer in ("happy", "sad")
    limited = stream(clips(4, responses={"reason": "word " * 121}), ("reason",), limits=AnswerLimits(words=120))
    assert limited.draw(0).task.name == "emotion"


def test_a_task_is_drawn_among_those_of_the_dataset_and_an_empty_answer_falls_back():
    """As published: half of the draws ask for a reason, and where a clip has none its label is asked for."""
    mixed = ClipList([*clips(3), *clips(1, "toy-r", responses={})][:3])
    with_reason = Clip(id="r", text="x", dataset="toy", labels={"emotion": "sad"}, responses={"reason": "because"})
    drawn = stream(ClipList([*mixed, with_reason]), ("emotion", "reason"))
    counts = Counter((drawn.draw(k).clip.id == "r", drawn.draw(k).task.name) for k in range(2000))
    assert (False, "reason") not in counts
    assert 190 < counts[True, "reason"] < 310
    assert 190 < counts[True, "emotion"] < 310


def test_a_fallback_without_the_tasks_own_label_takes_the_first_label_there_is():
    clip = Clip(id="s", text="x", labels={"sentiment": "positive"}, responses={"reason": "word " * 130})
    drawn = stream(ClipList([clip]), ("reason", "sentiment"), limits=AnswerLimits(words=120))
    assert {drawn.draw(k).task.name for k in range(20)} == {"sentiment"}


def test_an_empty_response_is_not_asked_for():
    with pytest.raises(DataError, match="labels or responses for one of reason"):
        stream(clips(4, responses={"reason": "  "}), ("reason",))


def test_think_wraps_reasoning_and_conclusion():
    sample = stream(clips(1, responses={"think": "a low voice"}), ("think",)).draw(0)
    assert sample.answer == "<think>a low voice</think><answer>happy</answer>"
    assert sample.labels == ("happy",)


def test_a_description_of_sound_is_asked_of_sound_alone():
    sample = stream(clips(1, responses={"audio": "a low voice"}), ("audio",)).draw(0)
    assert sample.hidden == ("image", "video")


def test_hiding_leaves_at_least_one_modality():
    drawn = stream(clips(), hide_modality_p=1.0)
    hidden = Counter(drawn.draw(k).hidden for k in range(500))
    assert len(hidden) == 6
    assert all(1 <= len(names) <= 2 for names in hidden)


def test_modalities_are_hidden_in_as_many_samples_as_configured():
    drawn = stream(clips(), hide_modality_p=0.3)
    share = sum(bool(drawn.draw(k).hidden) for k in range(1000)) / 1000
    assert share == pytest.approx(0.3, abs=0.05)


def test_no_words_of_an_open_vocabulary_mean_neutral_but_no_labels_of_a_closed_set_are_not_asked():
    clip = Clip("a", labels={"openset": [], "multi-label": []})
    assert answer_of(clip, find_task("openset")) == "neutral"
    assert answer_of(clip, find_task("multi-label")) is None
    assert answer_of(Clip("b", labels={"openset": ["sad", "tired"]}), find_task("openset")) == "sad, tired"


def test_questions_on_one_clip_come_in_a_row_with_different_tasks_first():
    answering = clips(8, responses={"reason": "because", "think": "a voice"})
    drawn = stream(answering, ("emotion", "reason", "think"), questions_per_clip=3, hide_modality_p=0.5)
    for turn in range(20):
        samples = [drawn.draw(3 * turn + number) for number in range(3)]
        assert len({sample.clip.id for sample in samples}) == 1
        assert {sample.task.name for sample in samples} == {"emotion", "reason", "think"}
        assert len({sample.hidden for sample in samples}) == 1
    epoch = [drawn.draw(k).clip.id for k in range(0, 3 * 8, 3)]
    assert sorted(epoch) == sorted(answering.ids)


def test_classes_that_differ_by_case_or_space_alone_are_said():
    names = ["happy", "Happy", "happy ", "sad", "very  sad", "very sad"]
    listed = ClipList(Clip(id=str(n), dataset="toy", labels={"emotion": name}) for n, name in enumerate(names))
    assert near_classes(label_sets(listed)) == [
        'toy: emotion: "Happy", "happy", "happy " are classes of their own, which differ by case or space alone',
        'toy: emotion: "very  sad", "very sad" are classes of their own, which differ by case or space alone',
    ]
    assert near_classes(label_sets(clips())) == []


def test_a_list_of_labels_is_not_asked_for_as_one_label():
    listed = ClipList([*clips(4), Clip(id="both", text="x", dataset="toy", labels={"emotion": ["happy", "sad"]})])
    with pytest.raises(
        DataError, match=r"both: expected one label for the task emotion, got labels.emotion: \['happy'"
    ):
        stream(listed)


def test_a_rationale_concludes_with_the_label_task_that_it_names():
    both = {"emotion": "happy", "intent": "agreeing", "multi-label": ["a", "b"]}
    clip = Clip(
        "c",
        text="x",
        labels=both,
        responses={"think": {"intent": "A nod.", "multi-label": " Both. "}, "reason": "A smile."},
    )
    think = answers_of(clip, find_task("think"))
    assert [(answer.task.full_name, answer.text) for answer in think] == [
        ("think:intent", "<think>A nod.</think><answer>agreeing</answer>"),
        ("think:multi-label", "<think>Both.</think><answer>a, b</answer>"),
    ]
    assert [answer.text for answer in answers_of(clip, find_task("think:intent"))] == [think[0].text]
    assert answers_of(clip, find_task("think:emotion")) == []
    assert [answer.task.full_name for answer in answers_of(clip, find_task("reason"))] == ["reason"]
    assert answers_of(clip, find_task("reason:intent")) == []
    form = PromptFormat(verbatim=True, label_separator=",")
    assert answers_of(clip, find_task("think"), form)[1].text == "<think> Both. </think><answer>a,b</answer>"
    plain = Clip("d", labels={"openset": ["warm"], "sentiment": "positive"}, responses={"think": "Warm."})
    (answer,) = answers_of(plain, find_task("think"))
    assert answer.task.full_name == "think:sentiment"
    assert answer.text == "<think>Warm.</think><answer>positive</answer>"
    assert answer_of(Clip("e", labels={"openset": ["warm"]}, responses={"think": "Warm."}), find_task("think")) is None


def test_one_of_several_texts_is_drawn_and_an_empty_one_asks_for_the_label():
    drawn = stream(clips(4, responses={"audio": ["One.", "Two.", ""]}), ("audio",))
    counts = Counter((drawn.draw(k).task.name, drawn.draw(k).answer) for k in range(1200))
    assert 330 < counts["audio", "One."] < 470
    assert 330 < counts["audio", "Two."] < 470
    assert (
        counts["emotion", "happy"] + counts["emotion", "sad"]
        == 1200 - counts["audio", "One."] - counts["audio", "Two."]
    )
    with pytest.raises(DataError, match="labels or responses for one of audio"):
        stream(clips(4, responses={"audio": ["", " "]}), ("audio",))


def test_the_fallback_is_that_of_the_dataset_else_what_the_answer_argues_for():
    both = {"emotion": "happy", "intent": "agreeing"}
    long = ClipList([Clip("c", text="x", dataset="toy", labels=both, responses={"think": {"intent": "word " * 9}})])
    limits = AnswerLimits(words=5)
    assert stream(long, ("emotion", "think"), limits=limits).draw(0).task.name in ("emotion", "intent")
    assert {stream(long, ("think",), limits=limits).draw(k).task.name for k in range(20)} == {"intent"}
    chosen = stream(long, ("think",), limits=limits, fallback={"toy": "emotion"})
    assert {chosen.draw(k).task.name for k in range(20)} == {"emotion"}


def test_tasks_of_a_dataset_may_be_drawn_by_weight():
    weighted = stream(
        clips(4, responses={"reason": "because"}), ("emotion", "reason"), task_weights={"toy": {"reason": 3}}
    )
    counts = Counter(weighted.draw(k).task.name for k in range(1000))
    assert 700 < counts["reason"] < 800
    several = stream(
        clips(4, responses={"reason": "because"}),
        ("emotion", "reason"),
        questions_per_clip=2,
        task_weights={"toy": {"reason": 3}},
    )
    assert {frozenset((several.draw(k).task.name, several.draw(k + 1).task.name)) for k in range(0, 80, 2)} == {
        frozenset(("emotion", "reason"))
    }


def test_the_shipped_stages_weigh_and_fall_back_as_published():
    data = load_config(None, "cognition").data
    assert data.task_weights == {"mc_eiu": {"intent": 2}, "mafw": {"think": 2}}
    assert data.fallback["mc_eiu"] == load_config(None, "perception").data.fallback["mc_eiu"] == "intent"
    assert (data.max_answer_words, load_config("released", "perception").data.max_answer_words) == (None, 120)
    assert load_config("released", "cognition").data.max_answer_words == 200
    with pytest.raises(ConfigError, match=r'fallback\.toy: "think" is none of emotion'):
        load_config(None, "cognition", ["data.fallback.toy=think"])
    with pytest.raises(ConfigError, match=r'task_weights\.toy: no task "thinks".*Did you mean "think"'):
        load_config(None, "cognition", ["data.task_weights.toy.thinks=2"])


def test_a_modality_is_missing_or_hidden_or_shown():
    sample = Sample(Clip(id="a", dataset="d"), find_task("emotion"), (), "sad", hidden=("audio", "video"))
    stats = SampleStats.of(sample, {"audio": False, "image": True, "video": True}, 7, 2)
    assert stats == SampleStats("d", "emotion", 7, 2, missing=("audio",), hidden=("video",))
