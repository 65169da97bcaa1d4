"""A shard is visible if and only if its record is; whatever happens in between does no harm."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_stores import build, clip_ids, contents, fill, make_spec, source_of, tokens_of

import featurecache
from featurecache.errors import MissingFeatureError, WriteError
from featurecache.files import publish
from featurecache.files.lease import Lease
from featurecache.maintenance.verify import verify_store
from featurecache.store import writer
from featurecache.store.protocols import Status

HERE = Path(__file__).parent

EXTRACTOR = """
import sys, time
sys.path.insert(0, sys.argv[1])
from small_stores import *
store = featurecache.open_store(sys.argv[2], mode="a")
count, pause_s = int(sys.argv[3]), float(sys.argv[4])
feature = store.writer("whisper", make_spec(), shard_rows=4)
feature.plan(clip_ids(count))
print("planned", flush=True)
committed = []
for shard in feature.pending():
    shard_writer = feature.claim(shard)
    if shard_writer is None:
        continue
    with shard_writer:
        for slot, clip_id in enumerate(shard.ids):
            time.sleep(pause_s)
            shard_writer.put(slot, tokens_of(clip_id), source_of(clip_id))
        shard_writer.commit()
    committed.append(shard.number)
print("committed", *committed, flush=True)
"""


def extractor(location: Path, count: int, pause_s: float = 0.0) -> subprocess.Popen:
    arguments = [sys.executable, "-c", EXTRACTOR, str(HERE), str(location), str(count), str(pause_s)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def uninterrupted(location: Path, count: int) -> dict[str, bytes]:
    feature = featurecache.open_store(location, mode="a").writer("whisper", make_spec(), shard_rows=4)
    feature.plan(clip_ids(count))
    fill(feature)
    return contents(location)


def test_nothing_of_a_shard_is_visible_before_its_commit(tmp_path: Path, kind: str, place: Path) -> None:
    store = build(place, kind)
    before = contents(place)
    feature = store.writer("whisper", make_spec())
    feature.plan(clip_ids(14))
    shard = feature.pending()[0]
    planned = contents(place)
    with feature.begin(shard) as shard_writer:
        shard_writer.put(0, tokens_of(shard.ids[0]), "")
        assert shard.ids[0] not in featurecache.open_store(place)["whisper"]
        shard_writer.put(1, tokens_of(shard.ids[1]), "")
    assert contents(place) == planned  # left without commit: all gone
    assert {path for path in planned if path not in before} == {"whisper/.fcache/plan/00003"}


def test_a_shard_left_without_a_record_is_replaced(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path / "whole.zarr", 8)
    location = tmp_path / "torn.zarr"
    feature = featurecache.open_store(location, mode="a").writer("whisper", make_spec(), shard_rows=4)
    feature.plan(clip_ids(8))
    orphan = location / "whisper/c/0/0/0"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"left by a writer that died")
    assert not len(featurecache.open_store(location)["whisper"])
    fill(feature)
    assert contents(location) == expected


def test_of_two_writers_of_one_shard_the_second_does_no_harm(tmp_path: Path) -> None:
    location = tmp_path / "s.zarr"
    first, second = (
        featurecache.open_store(location, mode="a").writer("whisper", make_spec(), shard_rows=4) for _ in range(2)
    )
    first.plan(clip_ids(4))
    second.plan(clip_ids(4))
    writers = [feature.begin(feature.pending()[0]) for feature in (first, second)]
    for number, shard_writer in enumerate(writers):
        for slot in range(4):  # the second gives other tokens, as another device would
            shard_writer.put(slot, tokens_of(clip_ids(4)[slot]) + number, "")
    writers[0].commit()
    committed = {path: data for path, data in contents(location).items() if ".tmp-" not in path}
    writers[1].commit()
    assert contents(location) == committed
    assert np.array_equal(second["set/clip_000"], first["set/clip_000"])
    assert not verify_store(featurecache.open_store(location)).problems


def test_workers_that_plan_at_once_arrive_at_one_plan(tmp_path: Path) -> None:
    location = tmp_path / "s.zarr"
    features = [
        featurecache.open_store(location, mode="a").writer("whisper", make_spec(), shard_rows=4) for _ in range(3)
    ]
    features[0].plan(clip_ids(6))
    features[1].plan(clip_ids(9))  # has not seen the first plan
    features[2].plan(clip_ids(9))
    assert len({tuple(feature.pending()) for feature in features}) == 1
    assert [len(shard.ids) for shard in features[0].pending()] == [4, 2, 3]


@pytest.mark.parametrize("workers", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_concurrent_extractors_do_everything_exactly_once(tmp_path: Path, workers: int) -> None:
    location = tmp_path / "shared.zarr"
    processes = [extractor(location, 48, 0.005) for _ in range(workers)]
    committed: list[str] = []
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0
        committed += output.splitlines()[-1].split()[1:]
    assert sorted(map(int, committed)) == list(range(12))
    assert contents(location) == uninterrupted(tmp_path / "whole.zarr", 48)


def test_a_stopped_holder_that_wakes_after_a_takeover_does_no_harm(tmp_path: Path) -> None:
    location = tmp_path / "s.zarr"
    holder = extractor(location, 4, 0.3)
    assert holder.stdout is not None
    holder.stdout.readline()
    while not list(location.glob("whisper/.fcache/leases/*")):
        time.sleep(0.01)
    holder.send_signal(signal.SIGSTOP)
    feature = featurecache.open_store(location, mode="a").writer("whisper", make_spec())
    shard = feature.pending()[0]
    assert feature.claim(shard) is None  # held by a living process
    shard_writer = feature.claim(shard, lease_s=0.0)
    assert shard_writer is not None
    with shard_writer:
        for slot, clip_id in enumerate(shard.ids):
            shard_writer.put(slot, tokens_of(clip_id), source_of(clip_id))
        shard_writer.commit()
    holder.send_signal(signal.SIGCONT)
    holder.communicate()
    assert holder.returncode == 0
    assert contents(location) == uninterrupted(tmp_path / "whole.zarr", 4)


def test_the_lease_of_a_dead_process_is_free_at_once(tmp_path: Path) -> None:
    location = tmp_path / "s.zarr"
    holder = extractor(location, 4, 1.0)
    while not list(location.glob("whisper/.fcache/leases/*")):
        time.sleep(0.01)
    holder.kill()
    holder.communicate()
    feature = featurecache.open_store(location, mode="a").writer("whisper", make_spec())
    shard_writer = feature.claim(feature.pending()[0])
    assert shard_writer is not None
    shard_writer.abort()
    assert not list(location.glob("whisper/.fcache/leases/*"))


def test_a_lease_is_held_by_one(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, "0")
    assert lease is not None
    assert Lease.take(tmp_path, "0") is None
    lease.renew()
    lease.release()
    lease.release()
    again = Lease.take(tmp_path, "0")
    assert again is not None
    again.release()


def test_temporary_files_of_the_dead_are_swept_and_of_the_living_kept(tmp_path: Path) -> None:
    (tmp_path / ".tmp-of-the-dead").write_bytes(b"x")
    with publish.TemporaryFile(tmp_path) as living:
        assert publish.sweep(tmp_path, dry_run=True) == [tmp_path / ".tmp-of-the-dead"]
        assert publish.sweep(tmp_path) == [tmp_path / ".tmp-of-the-dead"]
        assert living.path.exists()
    assert not list(tmp_path.iterdir())


def test_publishing_never_replaces(tmp_path: Path) -> None:
    assert publish.publish_bytes(tmp_path / "a", b"first")
    assert not publish.publish_bytes(tmp_path / "a", b"second")
    assert contents(tmp_path) == {"a": b"first"}
    publish.replace_bytes(tmp_path / "a", b"third")
    assert contents(tmp_path) == {"a": b"third"}


def test_a_folder_is_published_whole_and_never_replaced(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_text(name)
    assert publish.publish_folder(tmp_path / "one", tmp_path / "target")
    assert not publish.publish_folder(tmp_path / "two", tmp_path / "target")
    assert (tmp_path / "target/inner/file").read_text() == "one"


def test_file_systems_without_hard_links_publish_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert publish.publish_bytes(tmp_path / "a", b"first")
    assert not publish.publish_bytes(tmp_path / "a", b"second")
    assert contents(tmp_path) == {"a": b"first"}


@pytest.mark.parametrize("call", ["write", "pwrite"])
def test_writes_that_the_kernel_cuts_short_go_on(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = uninterrupted(tmp_path / "whole.zarr", 8)
    real = getattr(os, call)
    monkeypatch.setattr(os, call, lambda fd, data, *at: real(fd, data[:7], *at))
    assert uninterrupted(tmp_path / "short.zarr", 8) == expected


FAULTS = ("write", "pwrite", "fsync", "link", "rename", "mkdir", "open")


@pytest.mark.parametrize("call", FAULTS)
def test_a_full_disk_at_any_write_is_a_clear_error_and_resumable(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = uninterrupted(tmp_path / "whole.zarr", 8)
    real = getattr(os, call)
    for instant in range(200):
        location = tmp_path / f"{call}-{instant}.zarr"
        calls = 0

        def failing(*arguments: object, instant: int = instant, **named: object) -> object:
            nonlocal calls
            writes = call != "open" or bool(arguments[1] & os.O_CREAT)  # type: ignore[operator]
            calls += writes
            if writes and calls == instant + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **named)

        monkeypatch.setattr(os, call, failing)
        message = ""
        try:
            uninterrupted(location, 8)
        except WriteError as error:
            message = str(error)
        monkeypatch.setattr(os, call, real)
        if calls <= instant:
            break  # every call was made to fail once
        if message:
            assert "the disk is full" in message
            assert "Free space and run the same command again" in message
        else:
            assert contents(location) == expected  # a folder that was there already
        if location.exists():
            assert not verify_store(featurecache.open_store(location)).damage
        assert uninterrupted(location, 8) == expected
    assert calls <= instant
    assert instant > 0
    print(f"{call}: each of {instant} calls failed once")


def test_the_file_size_limit_is_a_clear_error_and_resumable(tmp_path: Path) -> None:
    code = (
        "import sys, resource, signal; sys.path.insert(0, sys.argv[1]); from small_stores import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "feature = featurecache.open_store(sys.argv[2], mode='a').writer('whisper', make_spec(), shard_rows=4)\n"
        "feature.plan(clip_ids(8)); resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))\n"
        "fill(feature)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    location = tmp_path / "s.zarr"
    done = subprocess.run(
        [sys.executable, "-c", code, str(HERE), str(location)], capture_output=True, text=True, check=False
    )
    assert "WriteError" in done.stderr
    assert "shard 0" in done.stderr
    assert "ulimit -f" in done.stderr
    assert uninterrupted(location, 8) == uninterrupted(tmp_path / "whole.zarr", 8)


def test_a_commit_lock_that_is_never_let_go_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "COMMIT_PATIENCE_S", 0.05)
    store = build(tmp_path / "s.zarr")
    feature = store.writer("whisper", make_spec())
    feature.retry([clip_ids(12)[5]])
    with (
        writer.commit_lock(store.folder("whisper").records, "another"),
        pytest.raises(WriteError, match="another process holds it"),
    ):
        fill(feature)
    fill(feature)
    assert feature.counts[Status.FAILED] == 0


def test_an_opened_store_says_which_clips_were_committed_since(place: Path, kind: str) -> None:
    writer = build(place, kind).writer("whisper", make_spec())
    feature = featurecache.open_store(place)["whisper"]
    failed, absent = clip_ids(10)[5], clip_ids(10)[4]
    new = clip_ids(15)[12:]
    writer.plan(new[:2])
    writer.retry([failed])
    fill(writer)
    for read in (feature.read, lambda ids: feature[ids[0]]):
        with pytest.raises(MissingFeatureError) as caught:
            read([new[0], failed])
        assert f"{new[0]}: committed since this store was opened" in caught.value.problems
        assert "Open the store again" in str(caught.value)
        assert "fcache extract" not in str(caught.value)
    with pytest.raises(MissingFeatureError) as caught:
        feature.read([clip_ids(1)[0], new[1], absent, failed, new[2]])
    assert caught.value.clip_ids == [new[1], absent, failed, new[2]]
    assert caught.value.problems == [
        f"{new[1]}: committed since this store was opened",
        f"{absent}: absent, no audio stream",
        f"{failed}: committed since this store was opened",
        f"{new[2]}: not extracted",
    ]
    assert "fcache extract" in str(caught.value)
    assert new[0] not in feature  # what was opened stays as it was
    feature.refresh()
    assert np.array_equal(feature[new[0]], tokens_of(new[0]).astype(feature.dtype))
    assert feature.read([failed, new[1]]).shape == (2, *feature.shape)
