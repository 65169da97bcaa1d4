"""Sweeps met by full disks, damaged files and variants that cannot be built."""

from __future__ import annotations

import csv
import errno
import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from featurecache.errors import FeatureCacheError
from fusion_train.cli import main
from fusion_train.documents import read_document, write_document
from fusion_train.errors import DataError
from fusion_train.run import Run
from fusion_train.sweeps.report import as_json
from fusion_train.sweeps.results import read_results


def invoke(command: list[str]):
    return CliRunner().invoke(main, command)


def rows(folder: Path) -> dict[str, dict]:
    trials = json.loads((folder / "sweep" / "results.json").read_text())["trials"]
    return {f"{row['variant']}-seed{row['seed']}": row for row in trials}


PROBES = "stage: probe\nsettings: {optim: {steps: 4}, data: {tasks: [emotion]}}\nseeds: [0, 1]\n"


def test_a_probe_of_a_variant_without_fusion_is_refused_before_anything_is_trained(sweep, tmp_path):
    command = sweep(
        PROBES + "variants: {none: {model: {fusion: {name: none}}}, conv: {model: {fusion: {name: conv}}}}\n"
    )
    for more in (["--check"], []):
        result = invoke([*command, *more])
        assert result.exit_code == 2, result.output
        assert "none: model.fusion.name: expected a fusion" in result.output
    assert not (tmp_path / "sweep" / "conv-seed0").exists()


def test_answers_of_a_sweep_name_their_speakers(sweep, tmp_path):
    command = sweep("seeds: [0]\nvariants:\n  a: {}\n")
    place = command.index("--clips") + 1
    listed = [json.loads(line) for line in Path(command[place]).read_text().splitlines()]
    speakers = {clip["id"]: f"s{number % 6}" for number, clip in enumerate(listed)}
    command[place] = str(tmp_path / "clips.jsonl")
    lines = [json.dumps(clip | {"speaker": speakers[clip["id"]]}) for clip in listed]
    Path(command[place]).write_text("\n".join(lines) + "\n")
    assert invoke(command).exit_code == 0
    answers = (tmp_path / "sweep" / "a-seed0" / "predictions.jsonl").read_text().splitlines()
    assert {row["id"]: row["speaker"] for row in map(json.loads, answers)} == {
        clip_id: speaker for clip_id, speaker in speakers.items() if clip_id.startswith("v")
    }


@pytest.mark.parametrize("where", ["checkpoint", "predictions"])
def test_a_full_disk_is_no_trials_fault_and_the_same_command_goes_on(sweep, tmp_path, monkeypatch, where):
    command = sweep("seeds: [0]\nvariants:\n  a: {}\n  b: {model: {fusion: {name: conv}}}\n")
    target = {
        "checkpoint": "fusion_train.checkpoint.save_file",
        "predictions": "fusion_train.evaluation.evaluate.replace_bytes",
    }

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(target[where], full)
        result = invoke(command)
    assert result.exit_code == 1, result.output
    assert "No trial is marked as failed" in result.output
    again = invoke(command)
    assert again.exit_code == 0, again.output
    assert {row["state"] for row in rows(tmp_path).values()} == {"done"}


@pytest.mark.parametrize("noticed_by", ["sweep", "trial"])
@pytest.mark.parametrize("probe", [False, True])
def test_a_changed_clip_list_is_no_trials_fault(sweep, tmp_path, monkeypatch, noticed_by, probe):
    text = "variants:\n  a: {}\n  b: {model: {fusion: {name: conv}}}\n"
    command = sweep((PROBES if probe else "seeds: [0]\n") + text)
    place = command.index("--clips") + 1
    original = Path(command[place]).read_text()
    listed = tmp_path / "clips.jsonl"
    command[place] = str(listed)
    listed.write_text(original)

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fusion_train.checkpoint.save_file", full)
        assert invoke(command).exit_code == 1
    about = tmp_path / "sweep" / "sweep.json"
    if noticed_by == "trial":  # as of a release whose sweeps kept no hashes
        kept = read_document(about, DataError, "")
        del kept["lists"]
        write_document(about, kept)
    rows_then = [json.loads(line) for line in original.splitlines()]
    rows_then[1]["labels"]["emotion"] = "angry"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows_then))
    refused = invoke(command)
    assert refused.exit_code == 2, refused.output
    assert "--clips-changed" in refused.output
    assert "failed:" not in refused.output
    table = sqlite3.connect(tmp_path / "sweep" / "trials.sqlite")
    assert set(table.execute("SELECT state FROM trials")) == {("waiting",)}
    table.close()
    if probe:
        listed.write_text(original)
        assert invoke(command).exit_code == 0
    else:
        accepted = invoke([*command, "--clips-changed"])
        assert accepted.exit_code == 0, accepted.output
        assert len(Run(tmp_path / "sweep" / "a-seed0").record().list_changes) == 1
    assert {row["state"] for row in rows(tmp_path).values()} == {"done"}


def test_a_damaged_table_or_answer_is_refused_with_advice_and_mended_without_training(sweep, tmp_path):
    command = sweep("seeds: [0]\nvariants:\n  conv: {model: {fusion: {name: conv}}}\n  plain: {}\n")
    assert invoke(command).exit_code == 0
    folder = tmp_path / "sweep"
    before = (folder / "results.csv").read_bytes()
    table, answers = folder / "trials.sqlite", folder / "conv-seed0" / "predictions.jsonl"
    weights = {path: path.read_bytes() for path in folder.glob("*/checkpoints/*/model.safetensors")}
    for path, old, new in ((table, b"conv", b"coNv"), (answers, b"prediction", b"prediktion")):
        sound = path.read_bytes()
        assert old in sound
        path.write_bytes(sound.replace(old, new))
        for refused in (["report", str(folder)], command if path == table else ["report", str(folder)]):
            result = invoke(refused)
            assert result.exit_code != 0, result.output
            assert not isinstance(result.exception, KeyError | ValueError | TypeError), result.exception
            assert "Delete" in result.output
        path.unlink()
        again = invoke(command)
        assert again.exit_code == 0, again.output
    assert weights == {path: path.read_bytes() for path in weights}
    times = {"seconds"}
    old_rows, new_rows = (
        list(csv.DictReader(io.StringIO(text.decode()))) for text in (before, (folder / "results.csv").read_bytes())
    )
    assert [{k: v for k, v in row.items() if k not in times} for row in old_rows] == [
        {k: v for k, v in row.items() if k not in times} for row in new_rows
    ]


def test_any_flipped_bit_of_the_table_is_refused_or_changes_nothing(sweep, tmp_path):
    command = sweep("seeds: [0]\nvariants:\n  conv: {model: {fusion: {name: conv}}}\n  plain: {}\n")
    assert invoke(command).exit_code == 0
    folder = tmp_path / "sweep"
    table = folder / "trials.sqlite"
    sound, expected = table.read_bytes(), as_json(read_results(folder))
    random, refused = np.random.default_rng(0), 0
    for place in random.choice(len(sound), 60, replace=False):
        flipped = bytearray(sound)
        flipped[place] ^= 1 << int(random.integers(8))
        table.write_bytes(bytes(flipped))
        try:
            found = as_json(read_results(folder))
        except FeatureCacheError as error:
            found, said = expected, str(error)
            refused += "run the same command" in said
        assert found == expected
    assert refused > 10
