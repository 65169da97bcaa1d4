"""From a folder of MMEVerse to prompts and answers of both released stages, character by character.

Expected texts are written out by the published columns and rules (arXiv 2601.16449 and the released readers); the words
of instructions are left out, since they are this project's own.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from featurecache.clips.clip_list import ClipList, load_clips
from featurecache.importers import Request, find_importer
from featurecache.importers.importing import Target, import_dataset
from fusion_train.data.answers import AnswerLimits
from fusion_train.data.samples import SampleStream, label_sets
from fusion_train.evaluation.benchmarks import BenchmarkSet
from fusion_train.evaluation.wording import wording_of
from fusion_train.presets import load_config
from fusion_train.prompts.prompt import find_task

DESCRIBED = ("response_AudioReasoner", "response_Qwen2Audio", "response_Qwen25vl_72B")
LONG, TOO_LONG = " ".join(["word"] * 150), " ".join(["word"] * 201)
SAID = ' I know!  It\'s\n"me". '
ROWS = {
    "MC-EIU": {"video_id": "dia_1_utt_1", "emotion": "happy", "intent": "agreeing", "Subtitle": SAID, "mode": "train",
               "response_AudioReasoner": "One voice.", "response_Qwen2Audio": "Other (voice).",
               "response_Qwen25vl_72B": LONG, "gpt-4o-mini_intent": "A nod."},
    "MAFW": {"video_id": "00007", "single_label": "anger", "multi_label": "anger,disgust", "text_whisper": "Out",
             "mode": "train", "response_AudioReasoner": "Loud.", "response_Qwen2Audio": "",
             "gpt-4o-mini_Single": "Brows sink.", "gpt-4o-mini_Multi": " Lips  rise."},
    "BOLD": {"video_id": "b_1_1", "Emotion_label": "Doubt/Confusion,Fear", "text_whisper": "None", "mode": "train",
             "gpt-4o-mini_Emotion": "A step back."},
    "E3": {"video_id": "v_1", "emotion": "shy", "person": "the woman", "conversation": "so " * 210, "mode": "train",
           "gpt-4o-mini_Emotion": LONG},
    "CMU-MOSI": {"video_id": "m_1", "sentiment_label": "positive", "text": "NONE", "mode": "train",
                 "gpt-4o-mini_Sentiment": TOO_LONG},
    "MELD": {"video_id": "dia0_utt0", "Emotion": "joy", "Sentiment": "positive", "text": "Hi", "mode": "train",
             "gpt-4o-mini_Emotion": "A laugh.", "gpt-4o-mini_Sentiment": ""},
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> ClipList:
    folder = tmp_path_factory.mktemp("published")
    for name, row in ROWS.items():
        texts = {column: row.get(column, "") for column in DESCRIBED}
        argued = {column: cell for column, cell in row.items() if column.startswith("gpt-4o")}
        labels = {column: cell for column, cell in row.items() if column not in {**texts, **argued}}
        write(folder / "MMEVerse" / name / f"{name}_merged.csv", labels | texts)
        write(folder / "MMEVerse" / "AU_gpt" / f"{name}_AU_gpt.csv", labels | argued)
        video = folder / "MMEVerse" / name / "video" / f"{row['video_id']}.mp4"
        video.parent.mkdir()
        video.write_bytes(b"media")
    import_dataset(find_importer("mmeverse"), Request(folder / "MMEVerse"), Target(folder / "clips.jsonl"))
    return load_clips(folder / "clips.jsonl")


def write(path: Path, row: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([row, row.values()])


def drawn(clips: ClipList, dataset: str, stage: str, config: str = "released", count: int = 1500) -> Counter:
    """(what stands between the pictures and the instruction, answer) of many draws, with their shares in per cent."""
    settings = load_config(config, stage)
    data, form = settings.data, settings.prompt.format()
    chosen = ClipList(clip for clip in clips if clip.dataset == dataset)
    stream = SampleStream(
        chosen,
        data.tasks,
        label_sets(chosen),
        seed=settings.seed,
        modalities=("audio", "image", "video"),
        task_weights=data.task_weights,
        fallback=data.fallback,
        form=form,
        limits=AnswerLimits(10**6, data.max_answer_words),
    )
    found: Counter = Counter()
    for number in range(count):
        sample = stream.draw(number)
        before, after = form.render(
            sample.clip.text, sample.task, sample.labels, instruction="?", person=sample.clip.person
        )
        assert before == "[INST] <Vid>"
        assert after.endswith(" ?  [/INST]")
        found[after.removesuffix(" ?  [/INST]"), form.answer(sample.answer, sample.task)] += 100 / count
    return found


def expect(found: Counter, expected: dict[tuple[str, str], float]) -> None:
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=4.5)  # 4 standard errors of 1500 draws


def test_intents_are_argued_for_concluded_with_and_fallen_back_to(clips):
    said = f"</Vid> The person in video says: {SAID}"
    expect(
        drawn(clips, "mc_eiu", "perception"),
        {
            (f"{said}.  [emotion]", "happy"): 25,
            (f"{said}.  [intent]", "agreeing"): 50,
            (f"{said}.  [audio]", "one voice"): 12.5,
            (f"{said}.  [audio]", "other voice"): 12.5,
        },
    )
    expect(
        drawn(clips, "mc_eiu", "cognition"),
        {
            (f"{said}  [emotion]", "happy"): 20,
            (f"{said}  [intent]", "agreeing"): 40,
            (f"{said}  [reason]", "a nod"): 20,
            (f"{said}  [think]", "<think>a nod </think><answer>agreeing</answer>"): 20,
        },
    )


def test_several_labels_have_rationales_of_their_own_and_no_space_between_them(clips):
    said = "</Vid> The person in video says: Out"
    expect(
        drawn(clips, "mafw", "perception"),
        {
            (f"{said}.  [emotion]", "anger"): 50,
            (f"{said}.  [multi-label]", "anger,disgust"): 100 / 3,
            (f"{said}.  [audio]", "loud"): 100 / 6,
        },
    )
    expect(
        drawn(clips, "mafw", "cognition"),
        {
            (f"{said}  [emotion]", "anger"): 20,
            (f"{said}  [multi-label]", "anger,disgust"): 20,
            (f"{said}  [reason]", "brows sink"): 20,
            (f"{said}  [think]", "<think>brows sink </think><answer>anger</answer>"): 20,
            (f"{said}  [think]", "<think> lips rise </think><answer>anger,disgust</answer>"): 20,
        },
    )
    said = "</Vid> The person in video says: "
    labels = "doubt/confusion,fear"
    expect(
        drawn(clips, "bold", "cognition"),
        {
            (f"{said}  [multi-label]", labels): 100 / 3,
            (f"{said}  [reason]", "a step back"): 100 / 3,
            (f"{said}  [think]", f"<think>a step back </think><answer>{labels}</answer>"): 100 / 3,
        },
    )


def test_who_speaks_is_said_with_a_period_in_both_stages_and_words_are_not_cut(clips):
    said = f"</Vid> the woman in video says: {'so ' * 210}."
    expect(drawn(clips, "e3", "perception"), {(f"{said}  [emotion]", "shy"): 100})
    expect(
        drawn(clips, "e3", "cognition"),
        {
            (f"{said}  [emotion]", "shy"): 100 / 3,
            (f"{said}  [reason]", LONG): 100 / 3,
            (f"{said}  [think]", f"<think>{LONG}</think><answer>shy</answer>"): 100 / 3,
        },
    )


def test_the_released_evaluation_says_who_speaks_after_two_spaces(clips):
    (clip,) = (clip for clip in clips if clip.dataset == "e3")
    form = wording_of(load_config("released", "cognition"), BenchmarkSet(dataset="e3"), ["e3"]).prompts["e3"]
    after = form.render("Hi", find_task("emotion"), instruction="?", person=clip.person)[1]
    assert after == "</Vid>  the woman in video says: Hi.  [emotion] ?  [/INST]"


def test_sentiments_are_thought_about_and_an_empty_or_too_long_text_asks_for_the_label(clips):
    said = "</Vid> The person in video says: NONE"
    expect(drawn(clips, "cmu_mosi", "cognition"), {(f"{said}  [sentiment]", "positive"): 100})
    said = "</Vid> The person in video says: Hi"
    expect(
        drawn(clips, "meld", "cognition"),
        {
            (f"{said}  [emotion]", "joy"): 50,
            (f"{said}  [sentiment]", "positive"): 25,
            (f"{said}  [reason]", "a laugh"): 12.5,
            (f"{said}  [think]", "<think>a laugh </think><answer>joy</answer>"): 12.5,
        },
    )


def test_the_default_tidies_words_and_answers(clips):
    said = "</Vid> The person in video says: i know it's me"
    found = drawn(clips, "mc_eiu", "cognition", "emotion_llama_v2")
    assert (f"{said}  [think]", "<think>A nod.</think><answer>agreeing</answer>") in found
    assert ("</Vid> The person in video says: " + " ".join(["so"] * 200) + "  [emotion]", "shy") in drawn(
        clips, "e3", "cognition", "emotion_llama_v2"
    )
    assert "anger, disgust" in {answer for _, answer in drawn(clips, "mafw", "cognition", "emotion_llama_v2")}
