"""Extraction resumed after a stop, a kill or more clips: the same bytes as one uninterrupted run."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from awkward_clips import NAMES, NUM_PLAIN
from stored_rows import file_hashes, rows_of
from stub_encoders import stub_encoders

from featurecache import load_clips, open_store
from featurecache.clips.clip_list import ClipList
from featurecache.encoders import Encoder
from featurecache.errors import FingerprintError
from featurecache.extract.run import extract
from featurecache.interrupt import Interrupted
from featurecache.maintenance.describe import store_info
from featurecache.maintenance.repair import repair_store
from featurecache.maintenance.retry import recompute_by_extraction, retry
from featurecache.maintenance.verify import verify_store
from featurecache.store.protocols import Status


def test_a_second_run_does_nothing_and_changes_no_byte(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    shutil.copytree(reference, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    stats = extract(open_store(folder, "a"), clips, encoders)
    assert stats.num_clips == 0
    assert stats.by_feature["whisper"].prior[Status.OK] == NUM_PLAIN + 2
    assert stats.failed == 6  # two clips in three features, from the first run, and not tried again
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert file_hashes(folder) == file_hashes(reference)


def test_more_clips_and_more_encoders_leave_what_is_there_untouched(
    clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    some = {"whisper": encoders["whisper"]}
    extract(open_store(folder, "a"), clips[:5], some, shard_clips=4)
    before = file_hashes(folder)
    extract(open_store(folder, "a"), clips, encoders, shard_clips=4)
    after = file_hashes(folder)
    shards = [path for path in before if "/c/" in path or "records" in path]
    assert shards
    assert all(after[path] == before[path] for path in shards)
    assert len(open_store(folder)["eva-global"].ids) == NUM_PLAIN + 3


def test_a_clip_planned_to_be_retried_is_extracted_from_its_new_media(collection: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(collection, folder)
    clips = load_clips(folder / "clips.jsonl")
    some = {"loudness": stub_encoders()["loudness"]}
    extract(open_store(tmp_path / "s", "a"), clips, some, shard_clips=4)
    old = open_store(tmp_path / "s")["loudness"]["c0"].copy()
    shutil.copy(folder / "c4.mp4", folder / "c0.mp4")
    shutil.copy(folder / "c4.mp4", folder / "bad.mp4")
    store = open_store(tmp_path / "s", "a")
    store.writer("loudness", stub_encoders()["loudness"].spec("float16")).retry(["c0", "bad"])
    stats = extract(store, clips, some)
    assert stats.num_clips == 2
    feature = open_store(tmp_path / "s")["loudness"]
    assert np.array_equal(feature["c0"], feature["c4"])
    assert np.array_equal(feature["bad"], feature["c4"])
    assert not np.array_equal(feature["c0"], old)


def stopping_after(count: int) -> Callable[[], bool]:
    """Ask an extraction to stop once it has done so many clips."""
    asked = itertools.count(1)
    return lambda: next(asked) >= count


@pytest.mark.parametrize("name", ["s.zarr", "s.wds"])
@pytest.mark.parametrize("batch", [1, 3])
def test_stopping_keeps_every_finished_clip_and_resuming_does_none_of_them_again(
    clips: ClipList,
    encoders: dict[str, Encoder],
    tmp_path: Path,
    name: str,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for encoder in encoders.values():
        monkeypatch.setattr(encoder, "batch_size", batch)
    extract(open_store(tmp_path / "whole" / name, "a"), clips, encoders, shard_clips=8, workers=1)
    done, location = 0, tmp_path / name
    for stop_after in (2, 3, 5):
        store, stop = open_store(location, "a"), stopping_after(stop_after)
        with pytest.raises(Interrupted, match=f"{stop_after} clips that are finished are kept.*same command") as caught:
            extract(store, clips, encoders, shard_clips=8, workers=1, stop=stop)
        done += stop_after
        assert caught.value.num_finished == stop_after
        assert [len(rows) for rows in rows_of(location).values()] == [done] * len(NAMES)
        assert all(feature.num_pending == len(clips) - done for feature in store_info(open_store(location)).features)
        assert not verify_store(open_store(location)).damage
    stats = extract(open_store(location, "a"), clips, encoders, shard_clips=8)
    assert stats.num_clips == len(clips) - done
    assert sum(stats.by_feature["whisper"].prior.values()) == done
    assert rows_of(location) == rows_of(tmp_path / "whole" / name)
    assert not verify_store(open_store(location)).damage
    assert extract(open_store(location, "a"), clips, encoders).num_clips == 0
    assert all(feature.num_pending == 0 for feature in store_info(open_store(location)).features)


def test_a_stopped_rank_leaves_the_division_among_ranks_as_it_was(clips: ClipList, tmp_path: Path) -> None:
    def run(rank: int, location: Path = tmp_path / "s", **how: object) -> int:
        store = open_store(location, "a")
        return extract(store, clips, stub_encoders(), shard_clips=4, rank=(rank, 3), **how).num_clips  # type: ignore[arg-type]

    with pytest.raises(Interrupted):
        run(1, stop=stopping_after(2))
    assert [run(rank) for rank in (2, 1, 0)] == [4, 2, 5]
    assert [run(rank, tmp_path / "whole") for rank in range(3)] == [5, 4, 4]
    assert rows_of(tmp_path / "s") == rows_of(tmp_path / "whole")


def test_a_clip_kept_by_a_stop_is_known_to_be_changed_and_retried(collection: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(collection, folder)
    clips, some = load_clips(folder / "clips.jsonl"), {"loudness": stub_encoders()["loudness"]}
    with pytest.raises(Interrupted):
        extract(open_store(tmp_path / "s", "a"), clips, some, stop=stopping_after(4))
    shutil.copy(folder / "c4.mp4", folder / "c0.mp4")
    with pytest.raises(FingerprintError, match="fcache retry"):
        extract(open_store(tmp_path / "s", "a"), clips, some)
    retry(open_store(tmp_path / "s", "a"), clips, ["loudness"], lambda spec: some[spec.encoder])
    feature = open_store(tmp_path / "s")["loudness"]
    assert np.array_equal(feature["c0"], feature["c4"])
    assert len(feature.ids) == NUM_PLAIN + 2


def test_a_stopped_retry_of_named_clips_goes_on_and_does_none_of_them_twice(clips: ClipList, tmp_path: Path) -> None:
    some = {"loudness": stub_encoders()["loudness"]}
    extract(open_store(tmp_path / "s", "a"), clips, some)
    how = ([*clips[:5].ids], lambda spec: some[spec.encoder])
    with pytest.raises(Interrupted, match="2 clips"):
        retry(open_store(tmp_path / "s", "a"), clips, ["loudness"], how[1], how[0], workers=1, stop=stopping_after(2))
    stats = retry(open_store(tmp_path / "s", "a"), clips, ["loudness"], how[1], how[0])
    assert stats.num_clips == 3
    assert {open_store(tmp_path / "s")["loudness"].record(clip_id).shard for clip_id in how[0]} == {1, 2}


STUB_WORKER = """
import sys
from featurecache import load_clips, open_store
from featurecache.extract.run import extract
from stub_encoders import stub_encoders

assert "torch" not in sys.modules
print("ready", flush=True)
clips, store = load_clips(sys.argv[1]), open_store(sys.argv[2], "a")
extract(store, clips, stub_encoders(), shard_clips=2, advance=lambda done, total: print(done, flush=True))
"""


REAL_WORKER = """
import sys
from featurecache import load_clips, open_store
from featurecache.encoders import open_encoder
from featurecache.extract.run import extract

clips, store = load_clips(sys.argv[1]), open_store(sys.argv[2], "a")
encoders = {}
for name, weights in (pair.split("=") for pair in sys.argv[3:]):
    encoders[name] = open_encoder(name, weights=weights)
extract(store, clips, encoders, shard_clips=4, advance=lambda done, total: print(done, flush=True))
"""


def killed_and_resumed(program: str, arguments: list[str], kills: list[tuple[int, float]]) -> None:
    """Kill an extraction after so many clips and so many seconds more, again and again; let the last one finish."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    for after, wait_s in [*kills, (10**9, 0.0)]:
        command = [sys.executable, "-c", program, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
            for line in worker.stdout:
                if line.strip().isdigit() and int(line) >= after:
                    time.sleep(wait_s)
                    worker.kill()
                    break
        assert worker.returncode in ((0,) if after == 10**9 else (0, -signal.SIGKILL))


def test_an_extraction_killed_and_resumed_is_byte_identical_to_an_uninterrupted_one(
    collection: Path, tmp_path: Path
) -> None:
    clip_list = str(collection / "clips.jsonl")
    extract(open_store(tmp_path / "whole", "a"), load_clips(clip_list), stub_encoders(), shard_clips=2)
    kills = [(1, 0.0), (2, 0.001), (3, 0.002), (2, 0.004)]
    killed_and_resumed(STUB_WORKER, [clip_list, str(tmp_path / "killed")], kills)
    assert file_hashes(tmp_path / "killed") == file_hashes(tmp_path / "whole")


def test_extractors_at_the_same_time_do_every_clip_exactly_once(collection: Path, tmp_path: Path) -> None:
    clip_list = str(collection / "clips.jsonl")
    extract(open_store(tmp_path / "whole", "a"), load_clips(clip_list), stub_encoders(), shard_clips=2)
    command = [sys.executable, "-c", STUB_WORKER, clip_list, str(tmp_path / "s")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    done = [len(worker.communicate()[0].split()) - 2 for worker in workers]  # "ready", 0, then a line a clip
    assert [worker.returncode for worker in workers] == [0] * 4
    assert file_hashes(tmp_path / "s") == file_hashes(tmp_path / "whole")
    assert sum(done) == len(load_clips(clip_list))


@pytest.mark.slow
def test_a_hundred_kills_at_random_instants_lose_and_double_nothing(collection: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clip_list = str(collection / "clips.jsonl")
    extract(open_store(tmp_path / "whole", "a"), load_clips(clip_list), stub_encoders(), shard_clips=2)
    for number in range(25):
        kills = [(int(rng.integers(1, 6)), float(rng.uniform(0, 0.02))) for _ in range(4)]
        killed_and_resumed(STUB_WORKER, [clip_list, str(tmp_path / str(number))], kills)
        assert file_hashes(tmp_path / str(number)) == file_hashes(tmp_path / "whole")


@pytest.mark.slow
def test_real_encoders_killed_and_resumed_give_the_same_bytes(
    reference: Path, collection: Path, whisper_folder: Path, eva_folder: Path, tmp_path: Path
) -> None:
    pairs = [f"{name}={whisper_folder if name == 'whisper' else eva_folder}" for name in NAMES]
    arguments = [str(collection / "clips.jsonl"), str(tmp_path / "s"), *pairs]
    killed_and_resumed(REAL_WORKER, arguments, [(2, 0.0), (4, 0.01), (3, 0.02)])
    assert file_hashes(tmp_path / "s") == file_hashes(reference)


def test_rows_lost_to_a_flipped_bit_are_recomputed_to_the_same_bytes(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "s")
    shard = next(path for path in (tmp_path / "s" / "eva-temporal" / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[200] ^= 16
    shard.write_bytes(data)
    store = open_store(tmp_path / "s", "a")
    report = repair_store(store, recompute_by_extraction(store, clips, lambda spec: encoders[spec.encoder]))
    assert len(report.recomputed) == 1
    assert file_hashes(tmp_path / "s") == file_hashes(reference)
