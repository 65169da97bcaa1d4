"""An exported model offers the tasks that training had samples of, and says so when it is asked another."""

from __future__ import annotations

import json
import shutil

import pytest
from test_train import run_training
from toy import make_config

from fusion_train.export.provenance import trained_tasks
from fusion_train.predict.opening import open_model
from fusion_train.predict.request import make_request
from fusion_train.run import Run
from fusion_train.run_context import load_context


def test_an_export_offers_the_tasks_that_had_samples(exported, trained):
    assert list(trained.run.config().data.tasks) == ["emotion", "sentiment", "reason"]
    for name in ("config.json", "processor_config.json"):
        assert json.loads((exported / name).read_text())["tasks"] == ["emotion", "reason"]
    card = (exported / "README.md").read_text()
    assert "tasks emotion, reason." in card
    assert "Tasks of the configuration that no training clip answers: sentiment." in card


def test_an_exported_model_says_once_that_it_was_not_trained_on_a_task(exported, trained, processor, caplog):
    for _ in range(2):
        processor(video=trained.video("v0"), task="sentiment", labels=["good", "bad"])
    said = "this model was not trained on the task sentiment; it was on emotion, reason"
    assert [record.getMessage() for record in caplog.records] == [said]
    assert open_model(exported).processor.untrained_notice("sentiment") == said


def test_without_a_task_the_first_trained_one_is_asked(exported, trained, processor):
    video = trained.video("v0")
    asked, default = processor(video=video, task="emotion"), processor(video=video)
    assert default["input_ids"].tolist() == asked["input_ids"].tolist()
    processor.tasks = ["reason"]
    try:
        first, reason = processor(video=video), processor(video=video, task="reason")
        assert first["input_ids"].tolist() == reason["input_ids"].tolist() != asked["input_ids"].tolist()
        assert make_request(processor, None).task.name == "reason"
    finally:
        processor.tasks = ["emotion", "reason"]


ALL = "data.tasks=[caption, think, emotion, sentiment, reason]"


@pytest.mark.parametrize(
    ("settings", "sampled"),
    [
        ((), ("think", "emotion", "reason")),
        (("data.max_answer_words=3",), ("think", "emotion")),  # "The person is happy." falls back to the label
        (("features.audio=null", "features.video=null"), ("think", "emotion", "reason")),
    ],
    ids=["", "too long", "one modality"],
)
def test_tasks_without_an_answer_that_can_be_trained_on_are_not_offered(llama, material, tmp_path, settings, sampled):
    said: list[str] = []
    run = Run(tmp_path / "run")
    from fusion_train.training.trainer import train

    config = make_config(llama, ALL, "optim.steps=1", "data.eval_split=null", *settings)
    train(config, store=str(material / "features.zarr"), clips=str(material / "clips.jsonl"), run=run, say=said.append)
    assert trained_tasks(run, load_context(run)) == sampled
    without = [name for name in config.data.tasks if name not in sampled]
    assert f'split "train": no clip answers {", ".join(without)}' in said


def test_tasks_of_datasets_that_are_never_drawn_are_not_offered(llama, material, tmp_path):
    lines = [json.loads(line) for line in (material / "clips.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        if number % 2:
            line |= {"dataset": "other", "responses": {"reason": "So it is."}}
        else:
            line["responses"] = {}
    shutil.copytree(material / "features.zarr", tmp_path / "features.zarr")
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for weights, sampled in (("{toy: 1}", ("emotion",)), ("{toy: 1, other: 1}", ("emotion", "reason"))):
        config = make_config(
            llama, "data.tasks=[emotion, reason]", "optim.steps=1", f"data.mixture={weights}", "data.eval_split=null"
        )
        run = run_training(config, tmp_path, tmp_path / f"run{len(sampled)}")
        assert trained_tasks(run, load_context(run)) == sampled


def test_tasks_of_the_run_it_started_from_count_and_those_of_a_probe_do_not(llama, material, tmp_path):
    lines = [json.loads(line) for line in (material / "clips.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("responses")
    shutil.copytree(material / "features.zarr", tmp_path / "features.zarr")
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = make_config(llama, ALL, "optim.steps=1", "data.eval_split=null")
    first = run_training(config, material, tmp_path / "first")
    second = run_training(config, tmp_path, tmp_path / "second", initial=first)
    assert trained_tasks(second, load_context(second)) == ("think", "emotion", "reason")
    shutil.rmtree(second.pool)  # as of a run of an earlier release: found from the clip list
    assert trained_tasks(second, load_context(second)) == ("think", "emotion", "reason")
    shutil.rmtree(first.folder)
    assert trained_tasks(second, load_context(second)) == ("emotion",)
