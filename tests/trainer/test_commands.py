"""`fusion-train` as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_train import run_training
from toy import make_config, write_features

from fusion_train.cli import main
from fusion_train.metrics.labels import conclusion


@pytest.fixture(scope="module")
def trained(llama, material, tmp_path_factory) -> Path:
    config = make_config(llama, "optim.steps=4", "data.tasks=[emotion, reason, think]")
    return run_training(config, material, tmp_path_factory.mktemp("trained") / "run").folder


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_every_command_shows_an_example():
    for name, command in main.commands.items():
        assert f"fusion-train {name}" in command.help, f"{name} has no example"
    assert invoke("--help").exit_code == 0


def test_eval_writes_every_prediction(trained):
    result = invoke("eval", "--run", trained, "--split", "val")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (trained / "predictions-val-emotion.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_eval_can_hide_modalities(trained):
    result = invoke("eval", "--run", trained, "--split", "val", "--modalities", "audio")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (trained / "predictions-val-emotion-audio.jsonl").read_text().splitlines()]
    assert {tuple(row["hidden"]) for row in rows} == {("image", "video")}


@pytest.mark.parametrize("task", ["reason", "think"])
def test_eval_generates_open_answers(trained, task):
    result = invoke("eval", "--run", trained, "--split", "val", "--task", task)
    assert result.exit_code == 0, result.output
    rows = (trained / f"predictions-val-{task}.jsonl").read_text().splitlines()
    assert all("prediction" in json.loads(row) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "test"], "one of train, val"),
        (["--split", "val", "--task", "emotoin"], 'Did you mean "emotion"?'),
        (["--split", "val", "--task", "sentiment"], "none of 12 clips"),
        (["--split", "val", "--modalities", "sound"], "among audio, image, video"),
        (["--split", "val", "--checkpoint", "99"], "last, best or one of"),
        (["--split", "val", "--store", "nowhere.zarr"], "nowhere.zarr"),
    ],
)
def test_wrong_use_is_one_message_and_exit_code_2(trained, arguments, said):
    result = invoke("eval", "--run", trained, *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_eval_of_a_folder_that_is_no_run_names_those_there_are(trained):
    result = invoke("eval", "--run", trained.parent / "nothing")
    assert result.exit_code == 2
    assert "There are: run." in result.output


def test_a_conclusion_is_what_stands_in_the_answer():
    assert conclusion("<think>low voice</think><answer> sad </answer>") == "sad"
    assert conclusion("sad") == "sad"
    assert conclusion("<think>x</think><answer>sad") == "sad"


def test_a_description_of_the_sound_is_asked_with_the_pictures_hidden(llama, tmp_path):
    (tmp_path / "clips.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "id": f"{split}{n}",
                    "video": "v.mp4",
                    "split": split,
                    "responses": {"audio": "a low voice"},
                    "labels": {"emotion": "sad"},
                }
            )
            + "\n"
            for split in ("train", "val")
            for n in range(2)
        )
    )
    write_features(tmp_path / "features.zarr", {f"{split}{n}": "sad" for split in ("train", "val") for n in range(2)})
    run = run_training(make_config(llama, "optim.steps=1", "data.tasks=[audio]"), tmp_path, tmp_path / "run")
    result = invoke("eval", "--run", run.folder, "--split", "val", "--task", "audio")
    assert result.exit_code == 0, result.output
    rows = (run.folder / "predictions-val-audio.jsonl").read_text().splitlines()
    assert {tuple(json.loads(row)["hidden"]) for row in rows} == {("image", "video")}
