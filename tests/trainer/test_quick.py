"""`fusion-train quick`: from a folder to a report and an exported model; it goes on where it was stopped."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import hf_networks
import pytest
import yaml
from click.testing import CliRunner, Result
from recordings import sine, write_clip, write_wav

from featurecache.cli import main as fcache
from featurecache.clips.clip_list import load_clips
from fusion_train.cli import main
from fusion_train.evaluation.append_only import read_lines
from fusion_train.quick import steps
from fusion_train.quick.encoder_choice import choose_encoders
from fusion_train.quick.request import RECORD, QuickRequest, QuickRun

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    return hf_networks.save(folder, "Dinov2", hf_networks.PICTURE, hf_networks.CROPPED)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty folder `clips`; probes of few steps."""
    from featurecache.importers.folder import IMPORTER

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("featurecache.importers.find_importer", lambda name: IMPORTER)
    monkeypatch.setattr(steps, "PROBE_STEPS", 6)
    monkeypatch.setattr(steps, "FUSIONS", ("conv-attention", "attention"))
    (tmp_path / "clips").mkdir()
    return tmp_path


def sounds(classes: dict[str, int], tone: float = 300.0) -> None:
    """WAV files in folders of their classes."""
    for name, count in classes.items():
        for number in range(count):
            path = Path("clips", name, f"{name}{number}.wav")
            path.parent.mkdir(exist_ok=True)
            write_wav(path, sine(0.5, tone + 40 * number + 300 * len(name))[None])


@pytest.fixture
def quick(place: Path, whisper_folder: Path) -> Callable[..., Result]:
    def run(*options: str) -> Result:
        weights = ("--weights", f"whisper={whisper_folder}")
        return CliRunner().invoke(main, ["quick", "clips", *weights, "--device", "cpu", *options])

    return run


def test_one_command_leads_from_a_folder_to_a_report_and_each_step_is_an_ordinary_command(
    quick: Callable[..., Result], pictures: Path
) -> None:
    lines = ["file,label"]
    for number in range(20):
        label = "happy" if number % 2 else "sad"
        write_clip(Path(f"clips/c{number}.mp4"), num_frames=4, sound=sine(0.5, 300.0 + 200 * (number % 2)))
        lines.append(f"c{number}.mp4,{label}")
    Path("labels.csv").write_text("\n".join(lines) + "\n")
    result = quick("--labels", "labels.csv", "--weights", f"hf-image={pictures}")
    assert result.exit_code == 0, result.output
    assert "sound: whisper with" in result.output
    assert "pictures: hf-image with" in result.output
    page = Path("quick/report.html").read_text()
    for text in ("Test clips", "Fusions compared", "Exported model", "Encoders", "attention", "happy", "interval"):
        assert text in page
    predictions = Path("quick/predictions-test.jsonl")
    rows = read_lines(predictions)
    answers = {row["id"]: row["answer"] for row in read_lines(Path("quick/answers-test.jsonl"))}
    assert {row["id"]: row["prediction"] for row in rows} == answers
    assert f"exported model: quick/model; {len(rows)} of {len(rows)} raw test clips" in result.output
    predictions.write_text("".join(json.dumps(row | {"prediction": "neither"}) + "\n" for row in rows))
    assert quick("--labels", "labels.csv", "--weights", f"hf-image={pictures}").exit_code == 0
    assert Path("quick/report.html").read_text().count('<figure class="card"><img') == len(rows) > 0
    record = yaml.safe_load(Path("quick/project.yaml").read_text())
    assert [step["title"] for step in record["steps"]] == [
        "list clips", "plan", "extract features", "compare fusions", "score test clips",
        "export", "predict test clips",
    ]  # fmt: skip
    assert all(step["done"] for step in record["steps"])
    for step in record["steps"]:
        assert f"$ {step['command']}\n" in result.output
        program, *words = shlex.split(step["command"])
        if step["title"] not in ("list clips", "export"):  # these are never written over
            again = CliRunner().invoke(fcache if program == "fcache" else main, words)
            assert again.exit_code == 0, again.output
    *_, first, second, third = result.output.splitlines()
    assert first.startswith("  fusion-train predict --model quick/model clips/c")
    assert CliRunner().invoke(main, shlex.split(first)[1:]).exit_code == 0
    assert second.startswith("  fcache audit --clips quick/clips.jsonl")
    assert third.startswith("  fusion-train plan")
    assert Path("quick/featurecache.toml").is_file()


def test_stopped_at_a_step_the_same_command_goes_on_from_there(
    quick: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds({"happy": 8, "sad": 8})

    def stopped(run: QuickRun) -> steps.Step:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(steps, "train_step", stopped)
        result = quick()
        assert result.exit_code == 1
        assert "run the same command again" in result.output
    extracted = {path: path.stat().st_mtime_ns for path in Path("quick/features.zarr").rglob("*") if path.is_file()}
    result = quick()
    assert result.exit_code == 0, result.output
    assert "$ fcache" not in result.output
    assert {path: path.stat().st_mtime_ns for path in extracted} == extracted
    assert Path("quick/report.html").is_file()


def files_and_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".html"}


def test_a_finished_one_is_said_to_be_finished_and_no_step_is_repeated(
    quick: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds({"happy": 8, "sad": 8})
    first = quick()
    assert first.exit_code == 0, first.output
    assert "Every step was done before" not in first.output
    record = Path("quick", RECORD)
    record.write_text(record.read_text().replace("\nrequest:\n", "\nasked:\n"))  # as earlier releases named the key
    before = files_and_times(Path("quick"))
    with monkeypatch.context() as context:
        context.setattr(sys.modules["fusion_train.cli.quick"], "_invoke", lambda step: pytest.fail(step.command))
        again = quick()
    assert again.exit_code == 0, again.output
    assert "Every step was done before: nothing was extracted, trained or exported again." in again.output
    assert "compare fusions: done before, quick/fusions/report.html" in again.output
    assert files_and_times(Path("quick")) == before
    shutil.rmtree("quick/model")
    again = quick()
    assert again.exit_code == 0, again.output
    assert "Every step was done before" not in again.output
    assert Path("quick/model/certificate.json").is_file()


def test_an_extraction_that_was_stopped_is_not_done(
    quick: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds({"happy": 8, "sad": 8})
    with monkeypatch.context() as context:
        context.setattr(steps, "undecided", lambda run: 3)
        result = quick()
        assert result.exit_code == 1
        assert "3 clips are left. The same command goes on." in result.output
        context.setattr(steps, "train_step", lambda run: 1 / 0)
        context.setattr(steps, "undecided", lambda run: 0)
        assert "$ fcache extract" in quick().output
        assert "extract features: done before" in quick().output


def test_what_a_killed_process_leaves_behind_is_no_obstacle(quick: Callable[..., Result]) -> None:
    sounds({"happy": 8, "sad": 8})
    Path("quick").mkdir()
    Path("quick/.tmp-0123456789abcdef").write_text("half a clip list")
    result = quick()
    assert result.exit_code == 0, result.output
    record = Path("quick", RECORD)
    document = yaml.safe_load(record.read_text())
    document["steps"] = [
        step | {"done": step["title"] not in ("export", "predict test clips")} for step in document["steps"]
    ]
    record.write_text(yaml.safe_dump(document))
    result = quick()  # killed between the publication of the folder and its record
    assert result.exit_code == 0, result.output
    assert "$ fusion-train export --verify quick/model" in result.output
    shutil.rmtree("quick/model")
    Path("quick/answers-test.jsonl").unlink()
    half = Path("quick/.model-0123456789abcdef")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    Path("quick/.model-of-mine").mkdir()
    assert quick().exit_code == 0
    assert not half.exists()
    assert Path("quick/.model-of-mine").exists()


def test_a_list_that_was_begun_and_not_finished_is_made_anew_for_any_request(
    quick: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds({"happy": 8, "sad": 8})
    with monkeypatch.context() as context:
        context.setattr(QuickRun, "discard", lambda run: None)  # as if it were killed
        context.setattr("fusion_train.quick.request.check_labels", lambda clips, task: 1 / 0)
        assert isinstance(quick("--seed", "1").exception, ZeroDivisionError)
    assert Path("quick/clips.jsonl").is_file()
    result = quick()
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_killed_at_the_start_of_each_step_the_same_command_ends_with_the_same_answers(
    quick: Callable[..., Result], whisper_folder: Path
) -> None:
    sounds({"happy": 8, "sad": 8})
    command = [sys.executable, "-m", "fusion_train", "quick", "clips", "--weights", f"whisper={whisper_folder}"]
    command += ["--device", "cpu", "--out", "killed"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for title in ("list clips", "plan", "extract features", "compare fusions", "score test clips", "export", "predict"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(title):
                time.sleep(0.2)
                process.kill()
        assert process.wait() == -signal.SIGKILL, title
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    command[-1] = "whole"
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    killed, whole = (read_lines(Path(folder, "answers-test.jsonl")) for folder in ("killed", "whole"))
    assert [(row["id"], row["answer"]) for row in killed] == [(row["id"], row["answer"]) for row in whole]


def test_another_request_for_the_same_folder_is_refused(quick: Callable[..., Result]) -> None:
    sounds({"happy": 8, "sad": 8})
    Path("labels.csv").write_text("file,label\n" + "".join(f"{c}{n},{c}\n" for c in ("happy", "sad") for n in range(8)))
    assert quick("--labels", "labels.csv", "--split", "50/25/25").exit_code == 0
    result = quick("--labels", "labels.csv", "--seed", "1")
    assert result.exit_code == 2
    assert "expected the same request, to go on with it" in result.output
    assert "split: 50/25/25 then, 70/15/15 now" in result.output
    assert "seed: 0 then, 1 now" in result.output
    Path("labels.csv").write_text(Path("labels.csv").read_text().replace("happy0,happy", "happy0,sad"))
    assert "labels_sha256" in quick("--labels", "labels.csv", "--split", "50/25/25").output


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        ({}, (), "expected media files"),
        ({"happy": 9}, (), "expected clips with a label of emotion, got none of 9"),
        ({"happy": 1, "sad": 1}, (), "expected at least 3 clips for train, val, test, got 2"),
        ({"happy": 5, "sad": 4}, ("--labels", "lost.csv"), "lost.csv: expected a file that can be read"),
        ({"happy": 5, "sad": 4}, ("--labels", "one.csv"), "expected two classes of emotion or more in train"),
        ({"happy": 5, "sad": 4}, ("--split", "70/20/15"), "that add up to 100"),
        ({"happy": 5, "sad": 4}, ("--split", "80/20"), "none in val"),
        ({"happy": 5, "sad": 4}, ("--weights", "wisper=x/y"), "expected an encoder of whisper, hf-audio"),
        ({"happy": 5, "sad": 4}, ("--weights", "whisper=/no/where"), 'weights "/no/where": expected a checkpoint'),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    quick: Callable[..., Result], classes: dict[str, int], options: tuple[str, ...], message: str
) -> None:
    sounds(classes)
    Path("one.csv").write_text("file,label\n" + "".join(f"happy{n},happy\n" for n in range(5)))
    before = sorted(Path().rglob("*"))
    words = list(options)
    result = quick(*words) if "whisper" not in " ".join(words) else CliRunner().invoke(main, ["quick", "clips", *words])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len([line for line in result.output.splitlines() if line.startswith("error")]) == 1
    assert sorted(Path().rglob("*")) == before


def test_a_class_of_one_clip_is_trained_on_and_named(quick: Callable[..., Result]) -> None:
    sounds({"happy": 8, "sad": 8, "rare": 1})
    result = quick()
    assert result.exit_code == 0, result.output
    assert "rare: happy (8), rare (1), sad (8)" in result.output


def test_weights_of_another_family_are_one_line(place: Path, pictures: Path) -> None:
    sounds({"happy": 5, "sad": 4})
    result = CliRunner().invoke(main, ["quick", "clips", "--weights", f"hf-audio={pictures}"])
    assert result.exit_code == 2
    assert "expected a checkpoint of hubert" in result.output
    assert not Path("quick").exists()


def test_a_full_disk_is_known_before_the_work(quick: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    sounds({"happy": 5, "sad": 4})
    monkeypatch.setattr("fusion_train.quick.encoder_choice.free_bytes", lambda location: 1000)
    result = quick()
    assert result.exit_code == 1
    assert "of free space for the features of 9 clips, got 0.0 GB. Free some" in result.output
    assert not Path("quick").exists()


def test_a_folder_of_other_things_is_refused(quick: Callable[..., Result]) -> None:
    sounds({"happy": 5, "sad": 4})
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("…")
    result = quick("--out", "mine")
    assert result.exit_code == 2
    assert "expected a new folder, or that of a quick run, got one with thesis.tex" in result.output


def test_a_clip_that_cannot_be_decoded_stops_nothing(quick: Callable[..., Result]) -> None:
    sounds({"happy": 8, "sad": 8})
    Path("clips/sad/torn.wav").write_text("no recording")
    result = quick()
    assert result.exit_code == 0, result.output
    assert "1 file (sad/torn) has no sound and no picture that can be read" in result.output
    split = next(clip.split for clip in load_clips("quick/clips.jsonl", "clips") if clip.id == "sad/torn")
    assert split == "test"
    assert "no encoder could read them: 1 (sad/torn)" in Path("quick/report.html").read_text()


def test_the_machine_decides_the_size_and_the_user_the_checkpoint() -> None:
    files = [Path("a.mp4")]
    assert [(choice.encoder, choice.weights) for choice in choose_encoders(files, {}, "cpu")] == [
        ("whisper", "openai/whisper-base"), ("hf-image", "facebook/dinov2-small"),
    ]  # fmt: skip
    assert [choice.weights for choice in choose_encoders(files, {}, "cuda")] == [
        "openai/whisper-large-v3", "facebook/dinov2-large",
    ]  # fmt: skip
    named = choose_encoders([Path("a.wav")], {"hf-audio": "x/hubert"}, "cpu")
    assert [(choice.encoder, choice.weights, choice.why) for choice in named] == [("hf-audio", "x/hubert", "as named")]
    assert [choice.reads for choice in choose_encoders([Path("a.png")], {}, "cpu")] == ["pictures"]


def test_on_a_gpu_with_a_language_model_its_lora_is_trained(place: Path) -> None:
    sounds({"happy": 8, "sad": 8})
    request = QuickRequest("clips", None, None, "70/15/15", None, 0, "emotion", {}, "owner/llm")
    run = QuickRun(Path("quick"), request, choose_encoders([Path("a.wav")], {}, "cuda"), "cuda")
    step = steps.import_step(run, overwrite=False)
    assert CliRunner().invoke(fcache, list(step.words[1:])).exit_code == 0
    words = list(steps.train_step(run).words)
    assert words[:3] == ["fusion-train", "--stage", "perception"]
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    assert settings["model.llm"] == "owner/llm"
    assert (settings["features.audio"], settings["features.image"]) == ("whisper", "null")
    assert settings["data.tasks"] == "[emotion]"
    assert not QuickRun(Path("quick"), request, run.encoders, "cpu").has_llm
    from fusion_train.presets import load_config

    config = load_config(None, "perception", [word for word in words if "=" in word])
    assert config.optim.micro_batch_size == "auto"


def test_on_a_terminal_it_asks_after_the_plan_and_goes_on_later(
    quick: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds({"happy": 8, "sad": 8})
    answers = iter([False, True])
    with monkeypatch.context() as context:
        terminal = SimpleNamespace(isatty=lambda: True)
        module = sys.modules["fusion_train.cli.quick"]  # the package has the command under this name
        context.setattr(module, "sys", SimpleNamespace(stdin=terminal, stdout=terminal))
        context.setattr("click.confirm", lambda question, default: next(answers))
        result = quick()
        assert result.exit_code == 0, result.output
        assert "The same command goes on from here." in result.output
        assert "to write" in result.output
        assert not Path("quick/features.zarr").exists()
        assert quick().exit_code == 0
    assert Path("quick/report.html").is_file()
