"""The pipeline: overlap, shared forwards, bounded queues, several devices, errors that stop a run, statistics."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import recordings as rec
import torch
from stub_encoders import StubEncoder, stub_encoders

from featurecache import load_clips, open_store
from featurecache.clips.clip_list import ClipList
from featurecache.encoders import Encoder, open_encoder
from featurecache.errors import EncoderError, WriteError
from featurecache.extract.pipeline import BatchTarget, DevicePipeline, ForwardBatch, forward_key
from featurecache.extract.run import extract
from featurecache.extract.stats import ClipCounts, ExtractionStats, merge_stats
from featurecache.store.protocols import Status
from featurecache.views import AudioView

NUM_CLIPS = 12


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipList:
    folder = tmp_path_factory.mktemp("clips")
    lines = []
    for number in range(NUM_CLIPS):
        rec.write_clip(folder / f"{number}.mp4", num_frames=6, sound=rec.sine(0.4, 200 + 30 * number))
        lines.append(f'{{"id": "c{number}", "video": "{number}.mp4"}}\n')
    (folder / "clips.jsonl").write_text("".join(lines))
    return load_clips(folder / "clips.jsonl")


def rows_of(store: Path) -> dict[str, dict[str, bytes]]:
    opened = open_store(store)
    return {name: {clip_id: opened[name][clip_id].tobytes() for clip_id in opened[name].ids} for name in opened.names}


class Waiting(StubEncoder):
    """Takes its time on the device, and counts how many run at once."""

    def __init__(self, name: str, wait_s: float) -> None:
        super().__init__(name, AudioView())
        self.wait_s, self.at_once, self.most_at_once, self.calls = wait_s, 0, 0, 0
        self._lock = threading.Lock()

    def forward(self, batch: np.ndarray) -> np.ndarray:
        with self._lock:
            self.calls += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.wait_s)
        with self._lock:
            self.at_once -= 1
        return super().forward(batch)


def test_two_devices_run_at_once_and_give_the_bytes_of_one(clips: ClipList, tmp_path: Path) -> None:
    encoder = Waiting("loudness", 0.05)
    extract(open_store(tmp_path / "two", "a"), clips, {"loudness": encoder}, replicas=[{"loudness": encoder}])
    assert encoder.most_at_once == 2
    extract(open_store(tmp_path / "one", "a"), clips, {"loudness": stub_encoders()["loudness"]})
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")


def test_real_encoders_on_two_devices_give_the_bytes_of_one(
    clips: ClipList, whisper_folder: Path, eva_folder: Path, tmp_path: Path
) -> None:
    def opened() -> dict[str, Encoder]:
        names = {"whisper": whisper_folder, "eva-temporal": eva_folder}
        return {name: open_encoder(name, weights=str(folder), options={"batch": 2}) for name, folder in names.items()}

    extract(open_store(tmp_path / "one", "a"), clips, opened(), shard_clips=5)
    extract(open_store(tmp_path / "two", "a"), clips, opened(), shard_clips=5, replicas=[opened()])
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")


def test_decoding_goes_on_while_the_encoder_works(clips: ClipList, tmp_path: Path) -> None:
    """The third clip is prepared while the first batch, of two clips, is on the device: each waits for the other."""
    at_work, third_prepared, met = threading.Event(), threading.Event(), []

    class Meeting(Waiting):
        prepared = 0

        def preprocess(self, view: np.ndarray) -> np.ndarray:
            self.prepared += 1
            if self.prepared == 3:
                met.append(at_work.wait(60))
                third_prepared.set()
            return super().preprocess(view)

        def forward(self, batch: np.ndarray) -> np.ndarray:
            if self.calls == 0:
                at_work.set()
                met.append(third_prepared.wait(60))
            return super().forward(batch)

    extract(open_store(tmp_path / "s", "a"), clips, {"loudness": Meeting("loudness", 0.0)}, workers=1)
    assert met == [True, True]


def test_features_that_differ_in_pooling_alone_share_one_forward_and_one_preprocessing(
    clips: ClipList, whisper_folder: Path, tmp_path: Path
) -> None:
    counts: Counter[str] = Counter()
    encoders = {}
    for tokens in (8, 16, 64):
        encoder = open_encoder("whisper", weights=str(whisper_folder), options={"tokens": tokens, "batch": 3})
        encoders[f"whisper-{tokens}"] = encoder
        for method in ("forward", "preprocess"):
            original = getattr(encoder, method)
            counted = lambda given, original=original, method=method: (counts.update([method]), original(given))[1]  # noqa: E731
            setattr(encoder, method, counted)
    assert len({forward_key(encoder) for encoder in encoders.values()}) == 1
    stats = extract(open_store(tmp_path / "together", "a"), clips, encoders)
    assert counts == {"preprocess": NUM_CLIPS, "forward": NUM_CLIPS / 3}
    assert stats.num_forwards == NUM_CLIPS / 3
    for name, encoder in encoders.items():
        extract(open_store(tmp_path / "alone", "a"), clips, {name: encoder})
    assert rows_of(tmp_path / "together") == rows_of(tmp_path / "alone")


def test_encoders_that_differ_in_more_than_pooling_and_layer_share_nothing(
    whisper_folder: Path, eva_folder: Path
) -> None:
    def key(name: str, folder: Path, **options: object) -> str:
        return forward_key(open_encoder(name, weights=str(folder), options=options))

    keys = [
        key("whisper", whisper_folder),
        key("whisper", whisper_folder, batch=2),
        key("eva-global", eva_folder),
        key("eva-temporal", eva_folder),
        key("eva-temporal", eva_folder, frames=8),
    ]
    assert len(set(keys)) == len(keys)
    assert key("eva-temporal", eva_folder, grid=4) == key("eva-temporal", eva_folder)
    assert key("whisper", whisper_folder, layer=1) == key("whisper", whisper_folder)


def test_no_more_clips_are_held_than_the_stats_state(clips: ClipList, tmp_path: Path) -> None:
    held, most, lock = [0], [0], threading.Lock()

    class Counted(Waiting):
        def preprocess(self, view: np.ndarray) -> np.ndarray:
            with lock:
                held[0] += 1
                most[0] = max(most[0], held[0])
            return super().preprocess(view)

        def pool(self, tokens):  # type: ignore[no-untyped-def]
            with lock:
                held[0] -= len(tokens)
            return super().pool(tokens)

    encoder = Counted("loudness", 0.02)
    encoder.batch_size = 1
    stats = extract(open_store(tmp_path / "s", "a"), clips, {"loudness": encoder}, workers=2)
    assert stats.max_clips_held < NUM_CLIPS  # otherwise this test says nothing
    assert most[0] <= stats.max_clips_held
    assert stats.input_bytes == 12 * 4
    assert stats.to_dict()["memory_bound_bytes"] == stats.max_clips_held * 48


def test_an_error_of_the_encoder_stops_the_run_and_a_second_run_goes_on(clips: ClipList, tmp_path: Path) -> None:
    class Broken(Waiting):
        def forward(self, batch: np.ndarray) -> np.ndarray:
            if self.calls == 3:
                raise RuntimeError("out of memory")
            return super().forward(batch)

    with pytest.raises(RuntimeError, match="out of memory"):
        extract(open_store(tmp_path / "s", "a"), clips, {"loudness": Broken("loudness", 0)}, shard_clips=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("encode", "write", "decode"))]
    extract(open_store(tmp_path / "s", "a"), clips, {"loudness": Waiting("loudness", 0)}, shard_clips=2)
    assert len(open_store(tmp_path / "s")["loudness"].ids) == NUM_CLIPS


def test_a_batch_too_large_for_the_device_says_what_to_change(clips: ClipList, tmp_path: Path) -> None:
    class TooLarge(Waiting):
        def forward(self, batch: np.ndarray) -> np.ndarray:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(EncoderError, match="--batch-size"):
        extract(open_store(tmp_path / "s", "a"), clips, {"loudness": TooLarge("loudness", 0)})


def test_an_error_of_the_writer_is_raised_by_submit_and_finish() -> None:
    def refuse(rows: object) -> None:
        raise WriteError("store", got="the disk is full")

    pipeline = DevicePipeline([{"loudness": Waiting("loudness", 0)}], ExtractionStats({}))
    batch = ForwardBatch({0: np.zeros(12, np.float32)}, (BatchTarget("loudness", {}, refuse),))
    with pytest.raises(WriteError, match="the disk is full"):  # noqa: PT012
        for _ in range(100):
            pipeline.submit(batch)
            time.sleep(0.01)
    with pytest.raises(WriteError):
        pipeline.finish()


def test_stats_name_the_part_that_was_busy_most_of_its_time() -> None:
    stats = ExtractionStats({}, num_clips=10, wall_s=10.0, workers=2, devices=1, writers=1)
    stats.decode_s, stats.encode_s, stats.write_s = 15.0, 5.0, 1.0
    assert stats.bottleneck == "decode workers"
    assert [round(part.share, 2) for part in stats.utilizations()] == [0, 0.75, 0, 0.5, 0.1]
    stats.encode_s = 9.0
    assert stats.bottleneck == "encoder"
    assert stats.to_dict()["clips_per_s"] == 1.0


def test_stats_of_several_processes_add_up() -> None:
    parts = [
        ExtractionStats({}, num_clips=3, wall_s=wall_s, workers=2, devices=1, writers=1, encode_s=1.0)
        for wall_s in (2, 4)
    ]
    whole = merge_stats(parts)
    assert (whole.num_clips, whole.workers, whole.devices, whole.writers) == (6, 4, 2, 2)
    assert (whole.encode_s, whole.wall_s) == (2.0, 4)
    before = ClipCounts(prior=Counter({Status.OK: 1, Status.FAILED: 1}), prior_failed_ids={"x": ["a"]})
    after = ClipCounts(prior=Counter({Status.OK: 4, Status.FAILED: 2}), prior_failed_ids={"x": ["a"], "y": ["b"]})
    fresh = after.since(before)
    assert (fresh.ok, fresh.failed, fresh.absent, fresh.failed_ids) == (3, 1, 0, {"y": ["b"]})


@dataclass
class Assigned:
    """Assigns units one at a time, as the work queue of a cluster does."""

    numbers: list[int]

    def __call__(self, num_units: int):  # type: ignore[no-untyped-def]
        assert num_units == NUM_CLIPS / 4
        yield from self.numbers


def test_units_may_be_assigned_one_by_one(clips: ClipList, tmp_path: Path) -> None:
    some = {"loudness": stub_encoders()["loudness"]}
    store = open_store(tmp_path / "s", "a")
    stats = extract(store, clips, some, shard_clips=4, assign_units=Assigned([2, 0]))
    assert (stats.num_clips, stats.num_left) == (8, 4)
    assert extract(store, clips, some, shard_clips=4, assign_units=Assigned([0, 1, 2])).num_clips == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper", "eva-temporal"])
def test_compiled_blocks_give_nearly_the_same_and_another_fingerprint(
    name: str, whisper_folder: Path, eva_folder: Path
) -> None:
    weights = str(whisper_folder if name == "whisper" else eva_folder)
    plain = open_encoder(name, weights=weights)
    compiled = open_encoder(name, weights=weights, options={"compile": "yes"})
    view = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)
    if name == "eva-temporal":
        view = np.random.default_rng(0).integers(0, 255, (16, 60, 80, 3), np.uint8)
    batch = plain.preprocess(view)[None]
    first, second = compiled.forward(batch), compiled.forward(batch)
    assert np.array_equal(first.numpy(), second.numpy())
    assert np.allclose(first.numpy(), plain.forward(batch).numpy(), atol=1e-4)
    assert plain.network.module is not compiled.network.module
    assert compiled.spec("float16").fingerprint != plain.spec("float16").fingerprint
