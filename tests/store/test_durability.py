"""What is published is on the disk first, and a lease lives as long as its holder works."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from small_stores import make_spec, tokens_of

import featurecache
from featurecache.files import lease
from featurecache.files.publish import publish_folder, replace_bytes
from fusion_train import checkpoint


@pytest.fixture
def disk(monkeypatch):
    """Record, in order, which inodes reach the disk and which names appear: ("sync", inode), ("name", path, inode)."""
    events: list[tuple] = []
    named = {"link": os.link, "rename": os.rename, "replace": os.replace}

    def fsync(fd, _fsync=os.fsync):
        events.append(("sync", os.fstat(fd).st_ino))
        _fsync(fd)

    def naming(how):
        def name(source, target, *rest, **options):
            named[how](source, target, *rest, **options)
            if "dir_fd" not in str(options):
                events.append(("name", Path(target), os.stat(target).st_ino))

        return name

    monkeypatch.setattr(os, "fsync", fsync)
    for how in named:
        monkeypatch.setattr(os, how, naming(how))
    return events


def assert_durable(events: list[tuple], paths: list[Path], files_of=lambda path: [path]) -> None:
    """Content before the name, the folder after it."""
    for path in paths:
        place = max(number for number, event in enumerate(events) if event[0] == "name" and event[1] == path)
        before = {event[1] for event in events[:place] if event[0] == "sync"}
        after = {event[1] for event in events[place:] if event[0] == "sync"}
        for file in files_of(path):
            assert os.stat(file).st_ino in before, f"{file} had its name before its content was on the disk"
        assert os.stat(path.parent).st_ino in after, f"the name {path} was never put on the disk"


def test_shards_and_records_are_on_the_disk_before_and_after_they_get_their_names(place, disk):
    writer = featurecache.open_store(place, "a").writer("whisper", make_spec())
    writer.plan(["a", "b"])
    disk.clear()
    with writer.begin(writer.pending()[0]) as shard:
        for slot, clip_id in enumerate(["a", "b"]):
            shard.put(slot, tokens_of(clip_id), "00" * 32)
        shard.commit()
    names = [event[1] for event in disk if event[0] == "name"]
    assert len(names) >= 2
    assert_durable(disk, names)


def test_a_file_that_replaces_another_is_on_the_disk_before_and_after(tmp_path, disk):
    replace_bytes(tmp_path / "about.json", b"{}")
    assert_durable(disk, [tmp_path / "about.json"])


def test_every_file_of_a_checkpoint_is_on_the_disk_before_the_checkpoint_has_its_name(tmp_path, disk):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    folder = checkpoint.save(tmp_path / "checkpoints", model, optimizer, checkpoint.State(1, "x", {}), keep=1)
    files = sorted(folder.iterdir())
    assert {file.name for file in files} >= {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert_durable(disk, [folder], lambda path: files)


def test_a_published_folder_is_on_the_disk(tmp_path, disk):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "inside.txt").write_text("content")
    publish_folder(tmp_path / "made", tmp_path / "target")
    assert_durable(disk, [tmp_path / "target"], lambda path: [path / "inside.txt"])


def test_a_shard_that_is_being_written_is_not_taken_over_however_long_it_takes(place, monkeypatch):
    clock = [time.monotonic()]
    monkeypatch.setattr(lease.time, "monotonic", lambda: clock[0])
    writer = featurecache.open_store(place, "a").writer("whisper", make_spec())
    writer.plan(["a", "b", "c"])
    claimed = writer.claim(writer.pending()[0])
    with claimed:
        (file,) = writer.folder.leases.iterdir()
        for slot, decide in enumerate((claimed.fail, claimed.absent)):
            os.utime(file, (0, time.time() - 2 * lease.LEASE_S))
            clock[0] += lease.RENEW_EVERY_S + 1
            decide(slot, "a reason")
            assert time.time() - file.stat().st_mtime < lease.LEASE_S, "a clip was decided: the lease is fresh"
        os.utime(file, (0, time.time() - 2 * lease.LEASE_S))
        clock[0] += lease.RENEW_EVERY_S + 1
        claimed.put(2, tokens_of("c"), "00" * 32)
        assert time.time() - file.stat().st_mtime < lease.LEASE_S
        assert lease.Lease.take(file.parent, file.name) is None
        claimed.commit()
