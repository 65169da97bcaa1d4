"""The one tokenisation: published layout, cleaning, supervision."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from featurecache.clips.clip_list import Clip
from fusion_train.data.answers import answer_of
from fusion_train.errors import ConfigError, DataError
from fusion_train.models.token_streams import MODALITIES, SOFT_TOKEN
from fusion_train.presets import load_config
from fusion_train.prompts.prompt import TASKS, PromptFormat, encode_answer, encode_prompt, find_task
from fusion_train.remote.processing_emotion_llama import EmotionLlamaProcessor

EMOTION = find_task("emotion")


def whole(prompt: PromptFormat, text: str | None) -> str:
    before, after = prompt.render(text, EMOTION, ["angry", "sad"], instruction="Which of {labels}?")
    return before + "@" + after


def test_the_prompt_has_the_published_layout():
    assert whole(PromptFormat(), "I know it!") == (
        "[INST] <Vid>@</Vid> The person in video says: i know it.  [emotion] Which of angry, sad?  [/INST]"
    )


def test_the_second_stage_leaves_out_the_period():
    prompt = load_config(None, "cognition").prompt.format()
    assert "says: i know it  [emotion]" in whole(prompt, "I know it!")


def test_a_clip_without_words_has_no_sentence_about_words():
    assert whole(PromptFormat(), None) == "[INST] <Vid>@</Vid>  [emotion] Which of angry, sad?  [/INST]"
    assert whole(PromptFormat(), " .! ") == whole(PromptFormat(), None)


def test_text_is_cut_at_200_words():
    assert whole(PromptFormat(), "so " * 300).count(" so") == 200


@given(st.text(max_size=40))
def test_what_is_said_cannot_change_the_layout(text):
    before, after = PromptFormat(clean_text=False).render(text, EMOTION, instruction="Which?")
    assert before == "[INST] <Vid>"
    assert after.startswith("</Vid>")
    assert after.endswith("  [emotion] Which?  [/INST]")


def test_ids_begin_once_and_mark_every_soft_place(llama):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    ids = encode_prompt(tokenizer, "[INST] <Vid>", 5, "</Vid> [/INST]")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(SOFT_TOKEN) == 5


def test_an_answer_ends_with_the_end_of_sequence(llama):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    answer = encode_answer(tokenizer, "happy")
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == "happy"


def test_a_prompt_beyond_the_limit_is_refused(llama):
    with pytest.raises(DataError, match="at most 3800 prompt tokens"):
        encode_prompt(AutoTokenizer.from_pretrained(llama), "a", 4000, "b", "clip7")


def test_a_template_without_soft_places_is_refused():
    with pytest.raises(ConfigError, match=r"prompt\.template"):
        PromptFormat(template="[INST]").render("x", EMOTION)


def test_an_unknown_task_names_the_near_one():
    with pytest.raises(ConfigError, match='Did you mean "emotion"'):
        find_task("emotions")


def released(task: str, text: str | None, stage: str) -> str:
    prompt = load_config("released", stage).prompt.format()
    return "@".join(prompt.render(text, find_task(task), instruction="Which?"))


def test_the_released_profile_has_the_released_white_space():
    said = "[INST] <Vid>@</Vid> The person in video says: "
    assert released("emotion", "I know it!", "perception") == said + "I know it!.  [emotion] Which?  [/INST]"
    assert released("emotion", "I know it!", "cognition") == said + "I know it!  [emotion] Which?  [/INST]"
    assert released("audio", None, "perception") == said + ".  [audio] Which?  [/INST]"
    assert released("reason", None, "cognition") == said + "  [reason] Which?  [/INST]"
    assert released("vqa", None, "perception") == "[INST] <Vid>@</Vid> [vqa] Which?  [/INST]"


def test_the_released_profile_cleans_answers_but_no_boxes():
    prompt = load_config("released", "cognition").prompt.format()
    assert prompt.answer("He is SAD: (really). So!", find_task("reason")) == "he is sad really so"
    assert len(prompt.answer("so " * 300, find_task("reason")).split()) == 200
    assert prompt.answer("{<1><2><30><40>}", find_task("refer")) == "{<1><2><30><40>}"
    assert PromptFormat().answer("As It Is.", EMOTION) == "As It Is."


def test_stage_two_of_the_released_profile_asks_for_no_single_modality():
    tasks = load_config("released", "cognition").data.tasks
    assert "audio" not in tasks
    assert {"reason", "think"} <= set(tasks)
    assert "audio" in load_config("released", "perception").data.tasks


def test_a_rationale_is_asked_about_the_label_task_that_it_argues_for():
    think = find_task("think")
    assert think.full_name == "think"
    assert "the emotion, one of" in think.instruction
    intent = find_task("think:intent")
    assert (intent.name, intent.full_name, intent.label, intent.closed_key) == (
        "think",
        "think:intent",
        "intent",
        "intent",
    )
    assert "what the speaker intends, one of: {labels}" in intent.instruction
    assert "the sentiment, one of" in think.about("sentiment").instruction
    assert "Which sentiment does" in find_task("reason:sentiment").instruction
    several = think.about("multi-label")
    assert several.closed_key is None
    assert "{labels}" not in several.instruction
    assert think.about("emotion").full_name == "think"
    assert think.among(["sentiment", "emotion"]) == think
    assert think.among(["sentiment_score", "sentiment"]).full_name == "think:sentiment"
    assert EMOTION.among(["sentiment"]) == EMOTION
    with pytest.raises(ConfigError, match="label task after the colon"):
        find_task("emotion:intent")


def test_a_sentence_may_name_the_person():
    named = PromptFormat(said_by=" {person} in video says: {text}!")
    assert "".join(named.render("Hi {text}", EMOTION, person="the {text} man")).startswith(
        "[INST] <Vid></Vid> the {text} man in video says: hi {text}!  [emotion]"
    )
    assert " The person in video says: hi." in named.render("Hi", EMOTION)[1]
    assert " The person in video says: hi." in PromptFormat().render("Hi", EMOTION, person="the man")[1]
    assert "A The person says hi" in PromptFormat(said="A {person} says {text}").render("Hi", EMOTION)[1]


def test_verbatim_words_keep_their_white_space_and_length():
    text = " I  know\nit!  " + "so " * 300
    after = PromptFormat(clean_text=False, verbatim=True).render(text, EMOTION)[1]
    assert f"says: {text}.  [emotion]" in after
    assert released("emotion", text, "perception").endswith(f"says: {text}.  [emotion] Which?  [/INST]")


def test_an_exported_model_asks_as_the_run_did(llama):
    """A rationale is about a label task of the dataset; a person is named where the run named one."""
    sets = {"mosi": {"sentiment": ["negative", "positive"]}, "meld": {"emotion": ["joy"], "sentiment": ["positive"]}}
    tokenizer = AutoTokenizer.from_pretrained(llama)
    processor = EmotionLlamaProcessor(
        tokenizer,
        label_sets=sets,
        tasks=["emotion", "think"],
        prompt=load_config(None, "cognition", ['prompt.said_by=" {person} says {text}"']).prompt.model_dump(),
    )

    def asked(**arguments: str) -> str:
        return tokenizer.decode(processor(text="Hi", **arguments)["input_ids"][0].tolist())

    assert "name the sentiment, one of: negative, positive." in asked(task="think", dataset="mosi")
    assert "name the emotion, one of: joy." in asked(task="think", dataset="meld")
    assert "name the sentiment, one of: positive." in asked(task="think:sentiment", dataset="meld")
    assert "[think]" in asked(task="think:sentiment")
    assert "the man says hi" in asked(task="emotion", person="the man")
    assert "The person in video says: hi" in asked(task="emotion")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_prompt_and_finds_its_answer(name):
    task = find_task(name)
    assert task.full_name == name
    assert task.modalities
    assert set(task.modalities) <= set(MODALITIES)
    before, after = PromptFormat().render("I see.", task, ["happy", "sad"])
    assert f"[{name}]" in after
    assert "{" not in before + after
    assert ("happy, sad" in after) == ("{labels}" in task.instruction) == (task.closed_key is not None)
    value = {"label": "happy", "labels": ["happy", "sad"]}.get(task.answer, "Because.")
    held = {"labels": {task.key: value}} if task.answer in ("label", "labels") else {"responses": {task.key: value}}
    if task.answer == "think":
        held["labels"] = {task.label: "happy"}
    assert answer_of(Clip("a", **held), task)
    assert answer_of(Clip("b"), task) is None
