"""From three datasets of the MMEVerse packaging to the report, by the commands a user types."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import recordings as rec
from click.testing import CliRunner
from toy import make_config

from featurecache.cli import main as fcache
from fusion_train.cli import main as fusion_train
from fusion_train.evaluation.benchmarks import load_benchmark

SETS = {
    "DFEW": (["video_id", "label", "sentence", "mode"], ["happy", "sad", "angry"]),
    "CAER": (["video_id", "emotion_label", "text_whisper", "mode"], ["anger", "happy", "neutral"]),
    "CMU-MOSI": (["video_id", "sentiment_label", "text", "mode"], ["negative", "positive", "neutral"]),
}


def write_packaging(root: Path) -> None:
    """Six training and three test clips a set, half a second each, with sound."""
    for offset, (name, (header, labels)) in enumerate(SETS.items()):
        rows = []
        for number in range(9):
            clip_id = f"v{offset}_{number:04d}"
            (root / name / "video").mkdir(parents=True, exist_ok=True)
            sound = rec.sine(0.5, 150 + 90 * (number % 3))
            rec.write_clip(root / name / "video" / f"{clip_id}.mp4", num_frames=8 + number % 3, sound=sound)
            rows.append([clip_id, labels[number % 3], f"clip {number}", "train" if number < 6 else "test"])
        with (root / name / f"{name}_merged.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


def run(command, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{arguments}\n{result.output}\n{result.exception!r}"
    return result.output


@pytest.mark.slow
def test_import_extract_train_eval_report(llama, whisper_folder, eva_folder, tmp_path, monkeypatch):
    root = tmp_path / "MMEVerse"
    write_packaging(root)
    monkeypatch.chdir(tmp_path)
    run(fcache, "import", "mmeverse", root, "--out", "clips.jsonl")
    weights = [
        "--weights",
        f"whisper={whisper_folder}",
        "--weights",
        f"eva-global={eva_folder}",
        "--weights",
        f"eva-temporal={eva_folder}",
    ]
    encoders = ["--encoder", "whisper", "--encoder", "eva-global", "--encoder", "eva-temporal"]
    run(fcache, "extract", *encoders, *weights)
    run(
        fcache,
        "extract",
        "--encoder",
        "whisper",
        *weights[:2],
        "--name",
        "whisper-noise",
        "--option",
        "whisper.perturb=noise:0",
    )
    mixture = "data.mixture={dfew: 1, caer: 1, cmu_mosi: 2}"
    config = make_config(llama, "optim.steps=4", "data.tasks=[emotion, sentiment]", "data.eval_split=null", mixture)
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    run(
        fusion_train,
        "--stage",
        "perception",
        "--config",
        "tiny.yaml",
        "--set",
        "data.tasks=[emotion, sentiment]",
        "--set",
        mixture,
        "--set",
        "data.eval_split=null",
    )
    said = run(fusion_train, "eval", "--run", "runs/perception", "--bench", "mmeverse")
    assert "DFEW" in said
    folder = tmp_path / "runs/perception/eval/mmeverse"
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores["sets"]) == {"dfew", "caer", "mosi"}
    assert "mer2023" in scores["means"]["MMEVerse-Bench"]["missing"]
    assert scores["sets"]["mosi"]["counts"]["neutral, not scored"] == 1
    assert "<svg" in (folder / "report.html").read_text()
    before = (folder / "scores.csv").read_text()
    run(fusion_train, "score", folder, "--bench", "mmeverse")  # from the files alone
    assert (folder / "scores.csv").read_text() == before
    run(fusion_train, "eval", "--run", "runs/perception", "--bench", "mmeverse", "--feature", "audio=whisper-noise")
    assert (tmp_path / "runs/perception/eval/mmeverse-whisper-noise/report.html").is_file()


def test_the_vocabularies_of_benches_are_those_that_importers_write():
    from featurecache.importers import dialogues, in_the_wild, mmsa

    sets = load_benchmark("mmeverse").sets
    for name, written in {
        "caer": in_the_wild.CAER_EMOTIONS,
        "dfew": in_the_wild.DFEW_EMOTIONS,
        "e3": in_the_wild.E3_EMOTIONS,
        "mafw": in_the_wild.MAFW_EMOTIONS,
        "mc-eiu": dialogues.MC_EIU_EMOTIONS,
        "mc-eiu-intent": dialogues.MC_EIU_INTENTS,
        "meld-s": mmsa.SENTIMENTS,
    }.items():
        assert set(written.labels) <= set(sets[name].vocabulary), name
