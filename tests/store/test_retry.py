"""`fcache retry` and `fcache repair` with real encoders: failed clips only, and exactly the rows that are lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import recordings as rec
from click.testing import CliRunner, Result
from small_stores import contents

import featurecache
from featurecache.cli import main
from featurecache.store.protocols import Status


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whisper_folder: Path) -> Path:
    """Three clips, one of them broken, extracted."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        rec.write_clip(tmp_path / f"c{number}.mp4", sound=rec.sine(0.5, 300 + 100 * number))
    shutil.copy("c1.mp4", "whole.mp4")
    Path("c1.mp4").write_bytes(b"nonsense" * 10)
    lines = [json.dumps({"id": f"c{number}", "video": f"c{number}.mp4"}) for number in range(3)]
    Path("clips.jsonl").write_text("\n".join(lines))
    assert fcache("extract", "--encoder", "whisper", "--weights", str(whisper_folder)).exit_code == 1
    return tmp_path


def fcache(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_retry_extracts_what_failed_and_nothing_else(folder: Path, whisper_folder: Path) -> None:
    before = contents(folder / "features.zarr")
    shutil.copy("whole.mp4", "c1.mp4")
    result = fcache("retry", "--weights", str(whisper_folder))
    assert result.exit_code == 0, result.output
    assert "whisper: 1 ok, 0 failed, 0 absent" in result.output
    feature = featurecache.open_store("features.zarr")["whisper"]
    assert list(feature.ids) == ["c0", "c2", "c1"]
    after = contents(folder / "features.zarr")
    assert all(after[path] == data for path, data in before.items() if path != "whisper/zarr.json")
    assert fcache("verify").exit_code == 0


def test_retry_takes_up_media_that_changed(folder: Path, whisper_folder: Path) -> None:
    shutil.copy("whole.mp4", "c2.mp4")
    refused = fcache("extract", "--encoder", "whisper", "--weights", str(whisper_folder))
    assert refused.exit_code == 2
    assert "fcache retry" in refused.output
    source = featurecache.open_store("features.zarr")["whisper"].record("c2").source
    result = fcache("retry", "--weights", str(whisper_folder))
    assert result.exit_code == 1  # c1 is still broken
    record = featurecache.open_store("features.zarr")["whisper"].record("c2")
    assert record.status is Status.OK
    assert record.source != source


def test_repair_computes_the_lost_row_to_the_same_bytes(folder: Path, whisper_folder: Path) -> None:
    sound = contents(folder / "features.zarr")
    shard = folder / "features.zarr/whisper/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 16
    shard.write_bytes(data)
    assert fcache("verify").exit_code == 1
    result = fcache("repair", "--weights", f"whisper={whisper_folder}", "--weights", "eva-global=nowhere")
    assert result.exit_code == 0, result.output
    assert "1 row computed anew" in result.output
    assert contents(folder / "features.zarr") == sound


def test_repair_with_another_encoder_is_refused(folder: Path, tmp_path: Path, whisper_folder: Path) -> None:
    other = shutil.copytree(whisper_folder, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"activation_function": "relu"}))
    shard = folder / "features.zarr/whisper/c/0/0/0"
    shard.write_bytes(b"")
    result = fcache("repair", "--weights", str(other))
    assert result.exit_code == 2, result.output
    assert "activation" in result.output
