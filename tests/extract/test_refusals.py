"""Extraction refuses changed media and another spec, and stops at too many failures."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from awkward_clips import NUM_PLAIN
from stored_rows import file_hashes
from stub_encoders import stub_encoders

from featurecache import load_clips, open_store
from featurecache.clips.clip_list import ClipList
from featurecache.encoders import open_encoder
from featurecache.errors import FingerprintError, MediaError
from featurecache.extract.run import extract
from featurecache.store.protocols import Status


def test_changed_media_under_an_old_id_are_refused_and_named(collection: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(collection, folder)
    clips = load_clips(folder / "clips.jsonl")
    extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), shard_clips=4)
    before = file_hashes(tmp_path / "s")
    shutil.copy(folder / "c1.mp4", folder / "c0.mp4")
    with pytest.raises(FingerprintError, match="fcache retry") as caught:
        extract(open_store(tmp_path / "s", "a"), clips, stub_encoders())
    assert caught.value.problems == ["c0"]
    assert file_hashes(tmp_path / "s") == before


def test_media_deleted_after_extraction_are_no_change(collection: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(collection, folder)
    clips = load_clips(folder / "clips.jsonl")
    extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), shard_clips=4)
    (folder / "c0.mp4").unlink()
    assert extract(open_store(tmp_path / "s", "a"), clips, stub_encoders()).num_clips == 0


def test_another_spec_under_the_same_name_is_refused(
    reference: Path, clips: ClipList, whisper_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "s")
    other = open_encoder("whisper", weights=str(whisper_folder), options={"tokens": 32})
    with pytest.raises(FingerprintError, match=r"pooling\.tokens"):
        extract(open_store(tmp_path / "s", "a"), clips, {"whisper": other})


def test_too_many_failures_stop_the_run_with_their_reasons(clips: ClipList, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="--max-failures") as caught:
        extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), shard_clips=4, max_failures=2)
    assert any("to be readable" in problem for problem in caught.value.problems)
    assert list(open_store(tmp_path / "s")["loudness"].ids)[:4] == ["c0", "c1", "c2", "c3"]


def test_a_run_that_ends_at_too_many_failures_keeps_what_is_usable_and_records_no_failure(
    clips: ClipList, tmp_path: Path
) -> None:
    failing = [clips.by_id("bad"), clips.by_id("gone")]
    rest = [clip for clip in clips if clip not in failing]
    with pytest.raises(MediaError, match=r"--max-failures.* finished are kept"):
        extract(
            open_store(tmp_path / "s", "a"),
            ClipList([*rest[:4], *failing, *rest[4:]]),
            stub_encoders(),
            max_failures=3,
            workers=1,
            advance=lambda done, total: time.sleep(0.1),  # failures are counted when they are written
        )
    feature = open_store(tmp_path / "s")["loudness"]
    assert list(feature.ids)[:4] == [clip.id for clip in rest[:4]]
    assert len(feature.ids) < NUM_PLAIN + 2
    assert feature.counts[Status.FAILED] == 0
