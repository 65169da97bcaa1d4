"""Extraction: every clip decided once, the same bytes however the work was cut, nothing torn by a kill."""

from __future__ import annotations

import hashlib
import itertools
import json
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
import recordings as rec
from PIL import Image
from stored_rows import rows_of
from stub_encoders import stub_encoders

from featurecache import load_clips, open_store
from featurecache.clips.clip_list import ClipList
from featurecache.encoders import Encoder, open_encoder
from featurecache.errors import FingerprintError, MediaError
from featurecache.extract.prepare import reason_of
from featurecache.extract.run import extract, parse_rank
from featurecache.extract.work_units import plan_units
from featurecache.interrupt import Interrupted
from featurecache.maintenance.describe import store_info
from featurecache.maintenance.repair import repair_store
from featurecache.maintenance.retry import recomputer, retry
from featurecache.maintenance.verify import verify_store
from featurecache.media.decode import decode
from featurecache.store.protocols import Status

NAMES = ("whisper", "eva-global", "eva-temporal")
NUM_PLAIN = 6


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six ordinary clips and one of every awkward kind."""
    folder = tmp_path_factory.mktemp("clips")
    rows: list[dict[str, object]] = []
    for number in range(NUM_PLAIN):
        rec.write_clip(folder / f"c{number}.mp4", num_frames=16 + number, sound=rec.sine(1.5, 200 + 60 * number))
        rows.append({"id": f"c{number}", "video": f"c{number}.mp4", "peak_frame": number})
    rec.write_clip(folder / "mute.mp4", num_frames=5)
    rec.write_clip(folder / "voice.wav", num_frames=0, sound=rec.sine(1.0), audio_codec="pcm_s16le")
    Image.fromarray(rec.picture(3)).save(folder / "still.png")
    (folder / "bad.mp4").write_bytes(b"nonsense" * 100)
    rows += [
        {"id": "mute", "video": "mute.mp4"},
        {"id": "voice", "audio": "voice.wav"},
        {"id": "still", "image": "still.png"},
        {"id": "bad", "video": "bad.mp4"},
        {"id": "gone", "video": "gone.mp4"},
        {"id": "words", "text": "Nothing else."},
        {"id": "part", "video": "c5.mp4", "start_s": 0.5, "end_s": 1.0},
    ]
    write_list(folder, rows)
    return folder


def write_list(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def encoders(whisper_folder: Path, eva_folder: Path) -> dict[str, Encoder]:
    return {
        name: open_encoder(name, weights=str(whisper_folder if name == "whisper" else eva_folder)) for name in NAMES
    }


@pytest.fixture
def clips(collection: Path) -> ClipList:
    return load_clips(collection / "clips.jsonl")


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by relative path, but for leases: who is at work is no part of what is stored."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "leases"
    }


@pytest.fixture(scope="module")
def reference(collection: Path, encoders: dict[str, Encoder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store extracted at one go, in shards of four clips."""
    folder = tmp_path_factory.mktemp("reference") / "features.zarr"
    extract(open_store(folder, "a"), load_clips(collection / "clips.jsonl"), encoders, shard_clips=4, workers=1)
    return folder


def test_every_clip_is_ok_absent_or_failed_with_its_reason(reference: Path) -> None:
    store = open_store(reference)
    assert store.names == sorted(NAMES)
    statuses = {
        name: {record.id: record.status.name.lower() for record in store[name].records()} for name in store.names
    }
    plain = {f"c{number}": "ok" for number in range(NUM_PLAIN)} | {"part": "ok"}
    broken = {"bad": "failed", "gone": "failed", "words": "absent"}
    assert statuses["whisper"] == plain | broken | {"mute": "absent", "voice": "ok", "still": "absent"}
    assert statuses["eva-global"] == plain | broken | {"mute": "ok", "voice": "absent", "still": "ok"}
    assert statuses["eva-temporal"] == plain | broken | {"mute": "ok", "voice": "absent", "still": "absent"}
    assert store["whisper"].record("mute").reason == "no audio stream"
    assert "no such file" in store["eva-global"].record("gone").reason
    assert "mute" not in store["whisper"]


def test_stored_tokens_are_what_the_encoder_gives_for_the_clip_alone(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder]
) -> None:
    store = open_store(reference)
    for name, encoder in encoders.items():
        for clip_id in ("c2", "part"):
            view = decode(clips.by_id(clip_id), [encoder.view])[0]
            tokens = encoder.pool(encoder.forward(encoder.preprocess(view)[None]))[0].numpy()
            assert np.array_equal(store[name][clip_id], tokens.astype(np.float16))


@pytest.mark.parametrize("workers", [1, 5])
def test_worker_count_does_not_change_a_byte(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path, workers: int
) -> None:
    extract(open_store(tmp_path / "s", "a"), clips, encoders, shard_clips=4, workers=workers)
    assert contents(tmp_path / "s") == contents(reference)


def test_a_second_run_does_nothing_and_changes_no_byte(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    shutil.copytree(reference, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    summary = extract(open_store(folder, "a"), clips, encoders)
    assert summary.num_clips == 0
    assert summary.by_feature["whisper"].earlier[Status.OK] == NUM_PLAIN + 2
    assert summary.failed == 6  # two clips in three features, from the first run, and not tried again
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert contents(folder) == contents(reference)


def test_order_in_the_list_does_not_change_a_clips_tokens(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    other = open_store(tmp_path / "s", "a")
    extract(other, ClipList(list(clips)[::-1]), encoders, shard_clips=2)
    store = open_store(reference)
    for name in NAMES:
        feature = open_store(tmp_path / "s")[name]
        assert sorted(feature.ids) == sorted(store[name].ids)
        for clip_id in feature.ids:
            assert np.array_equal(feature[clip_id], store[name][clip_id])


def test_batches_of_a_fixed_shape_do_not_depend_on_which_neighbours_failed(
    collection: Path, encoders: dict[str, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    encoder = encoders["whisper"]
    forward = encoder.forward
    monkeypatch.setattr(encoder, "batch_size", 4)
    monkeypatch.setattr(encoder, "forward", lambda batch: (shapes.append(batch.shape), forward(batch))[1])
    clips = load_clips(collection / "clips.jsonl")
    chosen = [clips.by_id(clip_id) for clip_id in ("c0", "bad", "c1", "mute", "c2")]
    extract(open_store(tmp_path / "with", "a"), ClipList(chosen), {"whisper": encoder}, shard_clips=8)
    swapped = [clips.by_id(clip_id) for clip_id in ("c0", "c4", "c1", "c3", "c2")]
    extract(open_store(tmp_path / "without", "a"), ClipList(swapped), {"whisper": encoder}, shard_clips=8)
    assert {shape[0] for shape in shapes} == {4}
    assert len(shapes) == 4
    for clip_id in ("c0", "c1", "c2"):
        first, second = (open_store(tmp_path / each)["whisper"][clip_id] for each in ("with", "without"))
        assert np.array_equal(first, second)


def test_ranks_together_do_everything_once(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    done = []
    for rank in range(3):
        summary = extract(open_store(tmp_path / "s", "a"), clips, encoders, shard_clips=4, rank=(rank, 3))
        done.append(summary.num_clips)
    assert sum(done) == len(clips)
    assert contents(tmp_path / "s") == contents(reference)


def test_a_rank_that_starts_late_takes_no_unit_of_another(clips: ClipList, tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", "a")
    extract(store, clips, stub_encoders(), shard_clips=4, rank=(0, 2))
    writers = {name: store.writer(name, encoder.spec("float16")) for name, encoder in stub_encoders().items()}
    units = plan_units(writers, clips)
    assert [bool(unit.shards) for unit in units] == [False, True, False, True]


def test_a_clip_is_decoded_once_for_all_features(
    clips: ClipList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurecache.extract import prepare as preparation

    decoded = []
    decode_each = preparation.decode_each
    monkeypatch.setattr(
        preparation, "decode_each", lambda clip, *given: (decoded.append(clip.id), decode_each(clip, *given))[1]
    )
    extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), shard_clips=4)
    assert sorted(decoded) == sorted(clips.ids)


def test_features_of_other_shard_sizes_still_share_one_decode(
    clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    store = open_store(tmp_path / "s", "a")
    rows = {"whisper": 8, "eva-global": 2, "eva-temporal": 4}
    writers = {name: store.writer(name, encoders[name].spec("float16"), shard_rows=rows[name]) for name in NAMES}
    for writer in writers.values():
        writer.plan(clips.ids)
    units = plan_units(writers, clips)
    assert [len(unit.shards) for unit in units] == [1 + 4 + 2, 1 + 3 + 2]
    summary = extract(store, clips, encoders)
    assert summary.num_clips == len(clips)


def test_more_clips_and_more_encoders_leave_what_is_there_untouched(
    clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    some = {"whisper": encoders["whisper"]}
    extract(open_store(folder, "a"), clips[:5], some, shard_clips=4)
    before = contents(folder)
    extract(open_store(folder, "a"), clips, encoders, shard_clips=4)
    after = contents(folder)
    shards = [path for path in before if "/c/" in path or "records" in path]
    assert shards
    assert all(after[path] == before[path] for path in shards)
    assert len(open_store(folder)["eva-global"].ids) == NUM_PLAIN + 3


def test_changed_media_under_an_old_id_are_refused_and_named(collection: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(collection, folder)
    clips = load_clips(folder / "clips.jsonl")
    extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), shard_clips=4)
    before = contents(tmp_path / "s")
    shutil.copy(folder / "c1.mp4", folder / "c0.mp4")
    with pytest.raises(FingerprintError, match="fcache retry") as caught:
        extract(open_store(tmp_path / "s", "a"), clips, stub_encoders())
    assert caught.value.problems == ["c0"]
    assert contents(tmp_path / "s") == before


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
    summary = extract(store, clips, some)
    assert summary.num_clips == 2
    feature = open_store(tmp_path / "s")["loudness"]
    assert np.array_equal(feature["c0"], feature["c4"])
    assert np.array_equal(feature["bad"], feature["c4"])
    assert not np.array_equal(feature["c0"], old)


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


def test_output_that_is_not_finite_fails_that_clip_alone(
    clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoders["whisper"]
    pool = encoder.pool
    calls = []

    def poisoned(tokens):  # type: ignore[no-untyped-def]
        calls.append(1)
        return pool(tokens) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(encoder, "pool", poisoned)
    summary = extract(open_store(tmp_path / "s", "a"), clips[:4], {"whisper": encoder}, shard_clips=4)
    assert (summary.by_feature["whisper"].ok, summary.by_feature["whisper"].failed) == (3, 1)
    record = open_store(tmp_path / "s")["whisper"].record("c1")
    assert record.status is Status.FAILED
    assert "cannot be stored" in record.reason


def test_a_shard_is_finished_though_some_of_its_clips_left_the_list(clips: ClipList, tmp_path: Path) -> None:
    some = {"loudness": stub_encoders()["loudness"]}
    store = open_store(tmp_path / "s", "a")
    writer = store.writer("loudness", stub_encoders()["loudness"].spec("float16"), shard_rows=4)
    writer.plan(clips[:6].ids)
    extract(store, clips[:2], some)
    feature = open_store(tmp_path / "s")["loudness"]
    assert list(feature.ids) == ["c0", "c1"]
    assert feature.record("c2").reason.startswith("not in the clip list")
    assert feature.record("c4") is None  # its shard has no clip of this list, and waits


def test_too_many_failures_stop_the_run_with_their_reasons(clips: ClipList, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="--max-failures") as caught:
        extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), shard_clips=4, max_failures=2)
    assert any("to be readable" in problem for problem in caught.value.problems)
    assert list(open_store(tmp_path / "s")["loudness"].ids)[:4] == ["c0", "c1", "c2", "c3"]


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
        assert caught.value.kept == stop_after
        assert [len(rows) for rows in rows_of(location).values()] == [done] * len(NAMES)
        assert all(feature.num_pending == len(clips) - done for feature in store_info(open_store(location)).features)
        assert not verify_store(open_store(location)).damage
    summary = extract(open_store(location, "a"), clips, encoders, shard_clips=8)
    assert summary.num_clips == len(clips) - done
    assert sum(summary.by_feature["whisper"].earlier.values()) == done
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
    summary = retry(open_store(tmp_path / "s", "a"), clips, ["loudness"], how[1], how[0])
    assert summary.num_clips == 3
    assert {open_store(tmp_path / "s")["loudness"].record(clip_id).shard for clip_id in how[0]} == {1, 2}


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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
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
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_extractors_at_the_same_time_do_every_clip_exactly_once(collection: Path, tmp_path: Path) -> None:
    clip_list = str(collection / "clips.jsonl")
    extract(open_store(tmp_path / "whole", "a"), load_clips(clip_list), stub_encoders(), shard_clips=2)
    command = [sys.executable, "-c", STUB_WORKER, clip_list, str(tmp_path / "s")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    done = [len(worker.communicate()[0].split()) - 2 for worker in workers]  # "ready", 0, then a line a clip
    assert [worker.returncode for worker in workers] == [0] * 4
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    assert sum(done) == len(load_clips(clip_list))


def test_a_unit_that_another_process_works_on_is_left_to_it(clips: ClipList, tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", "a")
    writer = store.writer("loudness", stub_encoders()["loudness"].spec("float16"), shard_rows=4)
    writer.plan(clips.ids)
    with writer.claim(writer.pending()[1]):
        summary = extract(store, clips, stub_encoders(), shard_clips=4)
    assert (summary.num_clips, summary.left) == (len(clips) - 4, 4)
    assert extract(store, clips, stub_encoders()).num_clips == 4


@pytest.mark.slow
def test_a_hundred_kills_at_random_instants_lose_and_double_nothing(collection: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clip_list = str(collection / "clips.jsonl")
    extract(open_store(tmp_path / "whole", "a"), load_clips(clip_list), stub_encoders(), shard_clips=2)
    for number in range(25):
        kills = [(int(rng.integers(1, 6)), float(rng.uniform(0, 0.02))) for _ in range(4)]
        killed_and_resumed(STUB_WORKER, [clip_list, str(tmp_path / str(number))], kills)
        assert contents(tmp_path / str(number)) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_real_encoders_killed_and_resumed_give_the_same_bytes(
    reference: Path, collection: Path, whisper_folder: Path, eva_folder: Path, tmp_path: Path
) -> None:
    pairs = [f"{name}={whisper_folder if name == 'whisper' else eva_folder}" for name in NAMES]
    arguments = [str(collection / "clips.jsonl"), str(tmp_path / "s"), *pairs]
    killed_and_resumed(REAL_WORKER, arguments, [(2, 0.0), (4, 0.01), (3, 0.02)])
    assert contents(tmp_path / "s") == contents(reference)


def test_rows_lost_to_a_flipped_bit_are_recomputed_to_the_same_bytes(
    reference: Path, clips: ClipList, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "s")
    shard = next(path for path in (tmp_path / "s" / "eva-temporal" / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[200] ^= 16
    shard.write_bytes(data)
    store = open_store(tmp_path / "s", "a")
    report = repair_store(store, recomputer(store, clips, lambda spec: encoders[spec.encoder]))
    assert len(report.recomputed) == 1
    assert contents(tmp_path / "s") == contents(reference)


def test_reasons_hold_neither_path_nor_clip_id() -> None:
    error = OSError(28, "No space left on device", "/somewhere/private/clip.mp4")
    assert reason_of(error) == "No space left on device"
    assert reason_of(MediaError('clip "x"', expected="its video file", got="no such file")) == (
        "expected its video file, got no such file"
    )
    assert reason_of(ValueError("two\nlines")) == "ValueError: two lines"


def test_ranks_are_read_from_text() -> None:
    assert parse_rank("2/4") == (2, 4)
    for wrong in ("4/4", "-1/4", "1", "a/b", "0/0"):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_rank(wrong)
