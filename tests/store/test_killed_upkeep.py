"""Every command that mends, copies or removes, killed and run again, ends with the bytes of one that was left alone."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from killing import (
    JOBS,
    RETRIED,
    flip,
    new_tokens,
    prepare_repair,
    prepare_store,
    recompute,
    row_begin,
    run_until,
    shard_file,
)
from small_stores import KINDS, contents

import featurecache
from featurecache.errors import CorruptStoreError, SpecError, StoreNotFoundError
from featurecache.maintenance.gc import remove_leftovers
from featurecache.maintenance.repair import recompute_from_copy, repair_store
from featurecache.maintenance.verify import verify_store
from featurecache.store.formats import FORMATS


@pytest.mark.parametrize("times", [pytest.param(2, id="few"), pytest.param(50, marks=pytest.mark.slow, id="50")])
@pytest.mark.parametrize("job", list(JOBS))
@pytest.mark.parametrize("kind", list(FORMATS))
def test_killed_and_run_again_equals_undisturbed(tmp_path: Path, job: str, kind: str, times: int) -> None:
    prepared, whole, tried = tmp_path / "prepared", tmp_path / "whole", tmp_path / "tried"
    JOBS[job][0](prepared, kind)
    shutil.copytree(prepared, whole)
    changes = run_until(job, whole, kind)
    assert changes
    assert contents(whole) != contents(prepared)
    expected = comparable(whole)
    instants = random.Random(f"{job} {kind}").sample(range(1, changes + 1), min(times, changes))
    for instant in instants:
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(prepared, tried)
        assert run_until(job, tried, kind, instant) is None, "the instant misses the work"
        if job == "repair":
            assert_no_superseded_tokens(tried / KINDS[kind][0])
        if job == "retry-id" and records_in(tried) == records_in(whole):  # it was done: once more is another retry
            remove_leftovers(featurecache.open_store(tried / KINDS[kind][0], "a"))
        else:
            run_until(job, tried, kind)
        content = comparable(tried)
        assert content.keys() == expected.keys(), instant
        assert content == expected, (instant, [name for name in content if content[name] != expected[name]])


def comparable(folder: Path) -> dict[str, object]:
    """Every file of a folder; a header of safetensors, whose keys come in any order, is read."""

    def read(name: str, data: bytes) -> object:
        if not name.endswith(".safetensors"):
            return data
        end = 8 + int.from_bytes(data[:8], "little")
        return json.loads(data[8:end]), data[end:]

    return {name: read(name, data) for name, data in contents(folder).items()}


def records_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(".fcache/records/*")}


def assert_no_superseded_tokens(place: Path) -> None:
    """A reader is refused or gets the tokens of the last retry."""
    try:
        tokens = featurecache.open_store(place)["whisper"][RETRIED]
    except (CorruptStoreError, SpecError, StoreNotFoundError):
        return
    assert np.array_equal(tokens, new_tokens(RETRIED).astype(np.float16))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_damaged_record_stays_until_its_shard_is_whole_again(tmp_path: Path, kind: str) -> None:
    prepare_repair(tmp_path, kind)
    place = tmp_path / KINDS[kind][0]
    store = featurecache.open_store(place, "a", format=KINDS[kind].format)
    record = place / "whisper/.fcache/records/00000003"
    damaged = record.read_bytes()

    def stopped(name: str, ids: list[str]):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    for how in (None, stopped, lambda name, ids: []):
        try:
            report = repair_store(store, how)
        except KeyboardInterrupt:
            continue
        finally:
            assert record.read_bytes() == damaged
        assert [line for line in report.left if "shard 3" in line]
        assert report.exit_code == 1
        with pytest.raises(CorruptStoreError, match="fcache repair"):
            featurecache.open_store(place)["whisper"]
    report = repair_store(store, recompute)
    assert report.exit_code == 0
    assert ("whisper", RETRIED) in report.recomputed
    assert not verify_store(featurecache.open_store(place)).problems
    feature = featurecache.open_store(place)["whisper"]
    assert np.array_equal(feature[RETRIED], new_tokens(RETRIED).astype(np.float16))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_shard_with_a_file_and_no_record_is_filled_by_repair(tmp_path: Path, kind: str) -> None:
    place = tmp_path / KINDS[kind][0]
    prepare_store(place, kind)
    sound = contents(place)
    (place / "whisper/.fcache/records/00000003").unlink()
    store = featurecache.open_store(place, "a")
    assert repair_store(store).pending == [("whisper", 3)]
    report = repair_store(store, recompute)
    assert report.recomputed == [("whisper", RETRIED)]
    assert contents(place) == sound


def test_a_clip_that_cannot_be_computed_is_not_written_down_as_failed(tmp_path: Path) -> None:
    place = tmp_path / "features.zarr"
    prepare_store(place, "zarr")
    flip(place / "whisper/.fcache/records/00000000", 50)
    copy = tmp_path / "empty.zarr"
    prepare_store(copy, "zarr")
    for path in copy.glob("whisper/.fcache/records/*"):
        path.unlink()
    store = featurecache.open_store(place, "a")
    report = repair_store(store, recompute_from_copy(featurecache.open_store(copy), store))
    assert "the copy does not have it" in report.left[0]
    with pytest.raises(CorruptStoreError):
        featurecache.open_store(place)["whisper"]


def test_a_lost_row_that_a_retry_superseded_does_not_stop_repair(tmp_path: Path) -> None:
    place = tmp_path / "features.zarr"
    prepare_store(place, "zarr")
    flip(shard_file(place, 0), row_begin(shard_file(place, 0), RETRIED))  # whose media have changed since
    report = repair_store(featurecache.open_store(place, "a"), recompute)
    assert not report.left
    assert not verify_store(featurecache.open_store(place)).problems
    feature = featurecache.open_store(place)["whisper"]
    assert np.array_equal(feature[RETRIED], new_tokens(RETRIED).astype(np.float16))
