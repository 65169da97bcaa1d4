"""Texts longer than the model takes are found before the first step, and refused, left out or cut as asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy import LABELS, make_config, save_llama, write_features
from transformers import GPT2Config, LlamaConfig

from fusion_train.config import Config
from fusion_train.data.samples import Sample
from fusion_train.data.too_long import fitting_samples
from fusion_train.errors import DataError
from fusion_train.evaluation.evaluate import evaluate
from fusion_train.llm.loading import positions_of
from fusion_train.planning.plan import make_plan
from fusion_train.prompts.limits import PromptLimits, longest
from fusion_train.prompts.prompt import find_task
from fusion_train.run import Run
from fusion_train.run_context import build_context
from fusion_train.training.sample_stream import make_stream
from fusion_train.training.trainer import train
from fusion_train.training.validation import Validation

CHINESE = "我很高兴见到你" * 514
LONG = {"t3": {"text": CHINESE}, "v1": {"text": CHINESE}}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    save_llama(folder / "llama")
    names = [f"{'t' if n < 8 else 'v'}{n % 8}" for n in range(12)]
    write_features(folder / "features.zarr", {name: LABELS[n % 3] for n, name in enumerate(names)})
    return folder


def config_of(material: Path, *settings: str) -> Config:
    return make_config(material / "llama", "optim.steps=2", "optim.warmup_steps=1", *settings)


def lay(material: Path, folder: Path, **other: dict) -> str:
    rows = []
    for n in range(12):
        name, split = (f"t{n}", "train") if n < 8 else (f"v{n - 8}", "val")
        row = {"id": name, "text": f"number {n}", "split": split, "labels": {"emotion": LABELS[n % 3]}}
        rows.append(row | other.get(name, {}))
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_long_text_is_refused_before_the_first_step_in_both_splits(material, tmp_path):
    store = str(material / "features.zarr")
    for name, split in (("t3", "train"), ("v1", "val")):
        clips = lay(material, tmp_path, **{name: LONG[name]})
        with pytest.raises(DataError, match=rf"data\.too_long: .* 1 of \d+ clips of {split}") as caught:
            train(config_of(material), store=store, clips=clips, run=Run(tmp_path / "run"))
        assert caught.value.problems[0].startswith(f"{name}: a prompt of ")
        assert not (tmp_path / "run").exists()
        with pytest.raises(DataError, match=r"data\.too_long"):
            make_plan(config_of(material), store, clips, gpu="h200", utilisation=0.4, say=lambda text: None)


def test_long_texts_are_left_out_with_a_notice(material, tmp_path):
    said: list[str] = []
    config = config_of(material, "data.too_long=leave_out")
    clips = lay(material, tmp_path, **LONG)
    run = Run(tmp_path / "run")
    train(config, store=str(material / "features.zarr"), clips=clips, run=run, say=said.append)
    assert any("1 of 8 clips of train are left out: t3: a prompt of" in line for line in said)
    assert any("1 of 4 clips of val are left out: v1: a prompt of" in line for line in said)
    context = build_context(config, str(material / "features.zarr"), clips)
    stream = make_stream(context, said.append)
    assert sorted({stream.draw(n).clip.id for n in range(7)}) == ["t0", "t1", "t2", "t4", "t5", "t6", "t7"]
    assert Validation(context).clips.ids == ["v0", "v2", "v3"]


def test_a_cut_text_is_the_longest_beginning_that_fits_the_same_for_answering(material, tmp_path):
    config = config_of(material, "data.too_long=cut")
    context = build_context(config, str(material / "features.zarr"), lay(material, tmp_path, **LONG))
    said: list[str] = []
    assert len(make_stream(context, said.append)) == 8
    assert "the texts of 1 of 8 clips of train are cut: t3" in said[0]
    clip, task = context.clips.by_id("t3"), find_task("emotion")
    sample = Sample(clip, task, tuple(LABELS), "happy")
    encoded, limits = context.collator.encode(sample), context.collator.limits
    assert limits.positions is None
    asked = context.collator.prompt_ids(sample, [True] * 3)
    assert limits.answering - 10 < len(asked) <= limits.answering == 3800
    assert encoded.prompt == asked
    whole = context.collator.frame_tokens(sample)
    assert whole > 10_000
    assert len(evaluate(context, Validation(context).clips, "emotion").predictions) == 4


def test_what_is_long_but_not_the_words_is_refused_even_where_words_are_cut(material, tmp_path):
    config = config_of(material, "data.too_long=cut", "data.tasks=[vqa]")
    asked = {"questions": [{"task": "vqa", "question": CHINESE, "answer": "yes"}]}
    plain = {f"t{n}": {"questions": [{"task": "vqa", "question": "So?", "answer": "yes"}]} for n in range(8)}
    context = build_context(config, str(material / "features.zarr"), lay(material, tmp_path, **plain, v0=asked))
    assert len(make_stream(context)) == 8
    context = build_context(config, str(material / "features.zarr"), lay(material, tmp_path, **(plain | {"t2": asked})))
    with pytest.raises(DataError, match=r"t2: expected at most \d+ prompt tokens"):
        make_stream(context)


@pytest.mark.parametrize("policy", ["refuse", "leave_out", "cut"])
def test_a_clip_whose_answers_are_all_too_long_is_found_too(material, tmp_path, policy):
    config = config_of(material, f"data.too_long={policy}", "data.tasks=[reason]", "data.max_answer_tokens=40")
    reasons = {
        f"t{n}": {"responses": {"reason": "She smiles. " * (30 if n == 5 else 1)}, "labels": {}} for n in range(8)
    }
    context = build_context(config, str(material / "features.zarr"), lay(material, tmp_path, **reasons))
    if policy == "refuse":
        with pytest.raises(DataError, match=r"data\.too_long") as caught:
            make_stream(context)
        assert caught.value.problems == ["t5: answers of more than 40 tokens, and no label in their place"]
        return
    stream = make_stream(context, lambda text: None)
    drawn = {sample.clip.id: sample.answer for sample in map(stream.draw, range(len(stream)))}
    assert len(drawn) == (8 if policy == "cut" else 7)
    if policy == "cut":
        assert drawn["t5"].startswith("She smiles. She")
        assert len(drawn["t5"]) < 200
        assert drawn["t1"] == "She smiles."


def test_evaluation_finds_long_texts_before_it_asks(material, tmp_path):
    context = build_context(config_of(material), str(material / "features.zarr"), lay(material, tmp_path, **LONG))
    samples = [Sample(clip, find_task("emotion"), tuple(LABELS), "sad") for clip in context.clips.in_split("val")]
    with pytest.raises(DataError, match="1 of 4 clips of faces"):
        fitting_samples(samples, context.collator, "faces", lambda text: None)


def test_a_model_of_learned_positions_takes_no_more_than_it_has():
    assert positions_of(GPT2Config(n_positions=64)) == 64
    assert positions_of(LlamaConfig(max_position_embeddings=64)) is None
    limits = PromptLimits(positions=64, too_long="cut")
    assert (limits.answering, limits.beside(10)) == (48, 54)
    ids = limits.fit(lambda text: [1] * (len(text) + 4), "x" * 100, limits.beside(10), "a")
    assert len(ids) == 54


def test_the_longest_that_fits_is_found():
    assert [longest(9, lambda count, limit=limit: count <= limit) for limit in (-1, 0, 4, 9, 20)] == [0, 0, 4, 9, 9]
    assert PromptLimits().answering == 3800
    assert PromptLimits(positions=4096).beside(1024) == 3072
