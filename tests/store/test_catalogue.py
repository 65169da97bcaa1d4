"""What the records of a feature say together, and what a shard file that cannot be mapped says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from small_stores import build, clip_ids, fill, make_spec

import featurecache
from featurecache.maintenance.verify import verify_store
from featurecache.store.catalogue import Catalogue
from featurecache.store.shard_files import OpenFile, map_file


def test_slots_with_tokens_are_given_per_shard(tmp_path: Path) -> None:
    """Five shards: with a failed clip; with another and an absent one; short; of two clips planned later; a retry."""
    feature = build(tmp_path / "features.zarr")["whisper"]
    slots = Catalogue(feature.committed).ok_slots()
    named = [
        [record.encoded_id(slot).decode() for slot in own.tolist()]
        for record, own in zip(feature.committed, slots, strict=True)
    ]
    ids = clip_ids(12)
    assert named == [ids[:3], ids[6:8], ids[8:10], ids[10:], [ids[3]]]
    assert Catalogue().ok_slots() == []


def test_a_record_of_other_clips_than_the_planned_ones_is_no_sound_record(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 40)):
        writer = featurecache.open_store(tmp_path / f"{name}.zarr", "a").writer("whisper", make_spec(), shard_rows=4)
        writer.plan(clip_ids(4, first))
        fill(writer)
    records = [tmp_path / f"{name}.zarr/whisper/.fcache/records/00000000" for name in "ab"]
    shutil.copy(records[1], records[0])
    problems = [str(problem) for problem in verify_store(featurecache.open_store(tmp_path / "a.zarr")).problems]
    assert any("the record's clips are not the planned ones" in problem for problem in problems), problems


def test_a_change_of_compressed_bytes_is_found_by_their_checksum(tmp_path: Path) -> None:
    """Decompression does not notice every change."""
    place = build(tmp_path / "archive.zarr", "archive").root
    path = place / "whisper/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[5] ^= 1  # within the first row
    path.write_bytes(data)
    problems = [str(problem) for problem in verify_store(featurecache.open_store(place)).problems]
    assert any("slot 0: compressed bytes contradict their checksum" in problem for problem in problems), problems


def test_a_file_that_cannot_be_mapped_is_an_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"12345678")
    file = OpenFile(tmp_path / "shard")
    assert bytes(map_file(file)) == b"12345678"
    writing = os.open(tmp_path / "shard", os.O_WRONLY)
    os.dup2(writing, file.fd)  # memory for reading cannot be made of it
    os.close(writing)
    with pytest.raises(PermissionError) as error:
        map_file(file)
    assert error.value.filename == str(tmp_path / "shard")
