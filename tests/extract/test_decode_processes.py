"""Decode workers as processes: the bytes of threads, a crash costs one clip, and nothing outlives the run."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import recordings as rec
from stored_rows import file_hashes, rows_of
from stub_encoders import StubEncoder, stub_encoders

from featurecache import load_clips, open_store
from featurecache.clips.clip_list import Clip, ClipList
from featurecache.encoders import Encoder, open_encoder
from featurecache.errors import EncoderError, MediaError
from featurecache.extract import decode_processes, run
from featurecache.extract.decode_processes import DecodeProcesses
from featurecache.extract.prepare import ClipInputs, prepare, prepare_all
from featurecache.extract.run import extract
from featurecache.interrupt import Interrupted
from featurecache.maintenance.verify import verify_store
from featurecache.media.decode import clip_source
from featurecache.media.frames import FrameMemory
from featurecache.views import AudioView, FramesView

NUM_CLIPS = 8
MISBEHAVING = """
# Loaded by every interpreter that is started with this folder on its path, so by the template of the workers.
import ctypes, os, signal, time
try:
    from featurecache.media import recording
except ImportError:
    pass
else:
    decode = recording.Recording.decode

    def misbehaving(self, views, *rest):
        name = self.path.name
        sound = any(type(view).__name__ == "AudioView" for view in views)
        if name.startswith("crash") or (name.startswith("sound") and sound):
            ctypes.string_at(0)
        if name.startswith("greedy"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("stuck"):
            time.sleep(1000)
        if name.startswith("slow"):
            time.sleep(0.5)
        return decode(self, views, *rest)

    recording.Recording.decode = misbehaving
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, and the code that makes some of them misbehave in the processes of this package."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(NUM_CLIPS):
        rec.write_clip(folder / f"{number}.mp4", num_frames=4, sound=rec.sine(0.3, 200 + 30 * number))
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(MISBEHAVING)
    return folder


@pytest.fixture
def misbehaving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, str]], ClipList]:
    """A function that returns the clips, those of its argument under a name that decides what becomes of them."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "site"), *sys.path]))

    def listed(bad: dict[int, str]) -> ClipList:
        rows = []
        for number in range(NUM_CLIPS):
            name = f"{bad.get(number, '')}{number}.mp4"
            if number in bad:
                (folder / name).write_bytes((folder / f"{number}.mp4").read_bytes())
            rows.append({"id": f"c{number}", "video": name})
        (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_clips(folder / "clips.jsonl")

    return listed


@pytest.fixture
def descendants() -> Iterator[Callable[[], set[int]]]:
    """A function that returns the processes below this one; at the end none of them may be left."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}

    def current() -> set[int]:
        return {process.pid for process in psutil.Process().children(recursive=True)} - before

    yield current
    assert current() == set()


def equal(one: ClipInputs, other: ClipInputs) -> bool:
    """Whether two preparations of a clip give the same values, dtypes and reasons."""
    assert list(one.by_feature) == list(other.by_feature)
    for name, mine in one.by_feature.items():
        theirs = other.by_feature[name]
        for field in ("source", "absent", "failed", "num_valid"):
            assert getattr(mine, field) == getattr(theirs, field), (one.clip.id, name, field)
        assert (mine.array is None) == (theirs.array is None)
        if mine.array is not None and theirs.array is not None:
            assert (mine.array.dtype, mine.array.shape) == (theirs.array.dtype, theirs.array.shape)
            assert mine.array.tobytes() == theirs.array.tobytes(), (one.clip.id, name)
    return list(one.notices) == list(other.notices)


def test_processes_store_every_byte_that_threads_store(
    reference: Path, collection: Path, encoders: dict[str, Encoder], tmp_path: Path, descendants: Callable[[], set[int]]
) -> None:
    clips = load_clips(collection / "clips.jsonl")
    store = open_store(tmp_path / "s", "a")
    stats = extract(store, clips, encoders, shard_clips=4, workers=2, decode_in="processes")
    assert file_hashes(tmp_path / "s") == file_hashes(reference)
    assert stats.to_dict()["decode_in"] == "processes"
    assert {part.capacity for part in stats.utilizations()[:3]} == {"2 decode processes"}


def test_odd_recordings_are_prepared_alike_by_threads_and_processes(
    recordings: Path, whisper_folder: Path, eva_folder: Path
) -> None:
    weights = {"whisper": whisper_folder, "eva-global": eva_folder, "eva-temporal": eva_folder}
    encoders = {name: open_encoder(name, weights=str(path)) for name, path in weights.items()}
    options = {"pooling": "valid", "perturb": "noise:10"}
    encoders["valid"] = open_encoder("whisper", weights=str(whisper_folder), options=options)
    videos = [path for path in sorted(recordings.iterdir()) if path.suffix in (".mp4", ".mkv")]
    sounds = [path for path in sorted(recordings.iterdir()) if path.suffix in (".wav", ".flac")]
    sounds += sorted((recordings.parent / "real" / "emodb").rglob("*.wav"))[::90]
    clips = [Clip(path.name, video=path) for path in videos] + [Clip(path.name, audio=path) for path in sounds]
    clips += [Clip("part", video=videos[-1], start_s=1.0, end_s=3.5), Clip("gone", video=recordings / "gone.mp4")]
    processes = DecodeProcesses(encoders, 2, {}, 300.0)
    try:
        tasks = [(clip, encoders) for clip in clips]
        with ThreadPoolExecutor(2) as pool:
            found = list(prepare_all(tasks, pool, 4, processes.prepare))
    finally:
        processes.close()
    assert len(found) == len(clips) > 8
    for clip, inputs in zip(clips, found, strict=True):
        assert inputs.clip == clip
        assert equal(prepare(clip, encoders, {}, 300.0), inputs)


def test_features_that_share_a_forward_share_an_array(folder: Path) -> None:
    encoders = {name: StubEncoder("loudness", AudioView()) for name in ("one", "two", "other")}
    processes = DecodeProcesses(encoders, 1, {"one": "key", "two": "key", "other": "own"}, None)
    inputs = processes.prepare(Clip("c", video=folder / "0.mp4"), encoders).by_feature
    processes.close()
    assert inputs["one"].array is inputs["two"].array
    assert inputs["one"].array is not inputs["other"].array


def test_a_clip_that_crashes_its_decoder_fails_and_the_run_goes_on(
    misbehaving: Callable[[dict[int, str]], ClipList], tmp_path: Path, descendants: Callable[[], set[int]]
) -> None:
    clips = misbehaving({2: "crash", 4: "sound", 5: "greedy"})
    stats = extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), shard_clips=4, decode_in="processes")
    assert (stats.by_feature["loudness"].failed, stats.by_feature["colours"].failed) == (3, 2)
    store = open_store(tmp_path / "s")
    reasons = {clip_id: store["loudness"].record(clip_id).reason for clip_id in ("c2", "c4", "c5")}
    crashed = "the decoder crashed (SIGSEGV)"
    killed = "the decoder was killed twice (SIGKILL), perhaps for want of memory"
    assert reasons == {"c2": crashed, "c4": crashed, "c5": killed}
    assert "c4" in store["colours"]
    source = clip_source(clips.by_id("c2"), AudioView())
    assert store["loudness"].record("c2").source == source
    assert not verify_store(store).damage
    assert not list((tmp_path / "s").glob("*/.fcache/leases/decoding-*"))
    extract(open_store(tmp_path / "whole", "a"), misbehaving({}), stub_encoders(), shard_clips=4, decode_in="threads")
    whole, bad = rows_of(tmp_path / "whole"), {"c2", "c5"}
    for name, rows in rows_of(tmp_path / "s").items():
        left = set(rows) - bad - ({"c4"} if name == "loudness" else set())
        assert {clip_id: rows[clip_id] for clip_id in left} == {clip_id: whole[name][clip_id] for clip_id in left}


def test_a_worker_that_a_person_kills_costs_no_clip(
    misbehaving: Callable[[dict[int, str]], ClipList], tmp_path: Path, descendants: Callable[[], set[int]]
) -> None:
    clips = misbehaving(dict.fromkeys(range(NUM_CLIPS), "slow"))
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        workers = [pid for pid in descendants() if psutil.Process(pid).ppid() != os.getpid()]
        if done == 2 and not killed:
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), workers=2, decode_in="processes", advance=kill_one)
    assert killed
    assert len(open_store(tmp_path / "s")["loudness"].ids) == NUM_CLIPS


def test_a_decoder_that_does_not_look_at_its_time_limit_is_killed(
    misbehaving: Callable[[dict[int, str]], ClipList],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    descendants: Callable[[], set[int]],
) -> None:
    monkeypatch.setattr(decode_processes, "KILL_AFTER_S", 3.0)
    clips = misbehaving({3: "stuck"})
    store, options = open_store(tmp_path / "s", "a"), {"shard_clips": 4, "decode_in": "processes"}
    extract(store, clips, stub_encoders(), clip_limit_s=2.0, **options)
    feature = open_store(tmp_path / "s")["loudness"]
    assert len(feature.ids) == NUM_CLIPS - 1
    assert feature.record("c3").reason == "expected decoding to take at most 2 s, got longer"


def test_the_limit_of_threads_holds_in_processes_with_the_same_words(folder: Path) -> None:
    clip, encoders = Clip("c", video=folder / "0.mp4"), stub_encoders()
    processes = DecodeProcesses(encoders, 1, {}, 1e-9)
    inputs = processes.prepare(clip, encoders)
    processes.close()
    assert equal(prepare(clip, encoders, {}, 1e-9), inputs)
    assert "at most 1e-09 s" in inputs.by_feature["loudness"].failed


class OwnError(Exception):
    """An error that neither Python nor the package has."""


class Raising(StubEncoder):
    """Raises for a clip whose sound is louder than that of silence."""

    def __init__(self, error: Exception) -> None:
        super().__init__("loudness", AudioView())
        self.error = error

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        if np.abs(view).max() > 0.01:
            raise self.error
        return super().preprocess(view)


@pytest.mark.parametrize(
    "error",
    [
        TypeError("an argument too many"),
        EncoderError("loudness", expected="a loud clip", got="another", next_step="Speak up."),
        PermissionError(13, "Permission denied"),
        OwnError("not of Python"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_program_ends_the_run_with_its_traceback_and_keeps_what_is_finished(
    error: Exception, tmp_path: Path, descendants: Callable[[], set[int]]
) -> None:
    for number in range(6):
        rec.write_clip(tmp_path / f"{number}.mp4", sound=rec.sine(0.3, 300) * (number == 5))
    (tmp_path / "l.jsonl").write_text(
        "".join(json.dumps({"id": f"c{n}", "video": f"{n}.mp4"}) + "\n" for n in range(6))
    )
    clips, store = load_clips(tmp_path / "l.jsonl"), open_store(tmp_path / "s", "a")
    expected = RuntimeError if isinstance(error, OwnError) else type(error)
    with pytest.raises(expected) as caught:
        extract(store, clips, {"loudness": Raising(error)}, workers=1, decode_in="processes")
    assert str(error) in str(caught.value)
    assert type(caught.value) is expected
    notes = "\n".join(caught.value.__notes__)
    assert 'clip "c5"' in notes
    assert "In a decode worker:\nTraceback" in notes
    assert "in preprocess\n    raise self.error" in notes
    assert list(open_store(tmp_path / "s")["loudness"].ids) == [f"c{number}" for number in range(5)]


def test_a_media_error_of_an_encoder_is_recorded(folder: Path, tmp_path: Path) -> None:
    encoders = {"loudness": Raising(MediaError("clip", expected="silence", got="a voice"))}
    processes = DecodeProcesses(encoders, 1, {}, None)
    inputs = processes.prepare(Clip("c", video=folder / "0.mp4"), encoders)
    processes.close()
    assert inputs.by_feature["loudness"].failed == "expected silence, got a voice"


def test_frames_of_all_workers_come_out_of_the_budget_of_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    memory = FrameMemory()

    def take(num_bytes: int) -> None:
        taken.append(num_bytes)
        FrameMemory._take(memory, num_bytes)

    monkeypatch.setattr(memory, "_take", take)
    monkeypatch.setattr(decode_processes, "FRAME_MEMORY", memory)
    encoders = {"colours": StubEncoder("colours", FramesView(4, "uniform", still=False))}
    processes = DecodeProcesses(encoders, 1, {}, None)
    array = processes.prepare(Clip("c", video=folder / "0.mp4"), encoders).by_feature["colours"].array
    processes.close()
    assert array is not None
    assert len(taken) == 1
    assert taken[0] % (4 * 3) == 0  # four frames of three bytes a pixel
    assert memory._held_bytes == 0


def test_a_list_that_is_short_is_decoded_in_threads_and_a_long_one_in_processes() -> None:
    encoders = stub_encoders()
    long = run.MIN_CLIPS_FOR_PROCESSES
    assert not run._in_processes("auto", 8, long - 1, encoders)
    assert run._in_processes("auto", 8, long, encoders)
    assert not run._in_processes("auto", 1, long, encoders)
    assert run._in_processes("processes", 1, 1, encoders)
    assert not run._in_processes("processes", 1, 0, encoders)
    assert not run._in_processes("threads", 8, long, encoders)


class Tied(StubEncoder):
    """An encoder without a copy for other processes, as one of another package that knows nothing of them."""

    def without_network(self) -> None:
        return None


def test_an_encoder_without_a_copy_is_decoded_for_in_threads_or_refused(folder: Path, tmp_path: Path) -> None:
    encoders: Mapping[str, Encoder] = {"tied": Tied("loudness", AudioView())}
    assert not run._in_processes("auto", 8, run.MIN_CLIPS_FOR_PROCESSES, encoders)
    clips = ClipList([Clip("c", video=folder / "0.mp4")])
    with pytest.raises(EncoderError, match=r"tied: expected encoders .* --decode-in threads"):
        extract(open_store(tmp_path / "s", "a"), clips, encoders, decode_in="processes")


def test_what_workers_get_of_an_encoder_is_small_and_knows_no_device(encoders: dict[str, Encoder]) -> None:
    import torch

    for encoder in encoders.values():
        copy = encoder.without_network()
        assert copy is not None
        assert not [name for name, value in vars(copy).items() if isinstance(value, (torch.Tensor, torch.nn.Module))]
        assert len(pickle.dumps(copy)) < 1_000_000
        assert encoder.spec("float16").fingerprint  # the encoder itself keeps its network


def test_a_template_that_cannot_start_ends_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode_processes, "PROGRAM", "raise SystemExit('no such program')")
    clips = ClipList([Clip("c", video=folder / "0.mp4")])
    with pytest.raises(RuntimeError, match="ended with 1; an error of its own is printed above"):
        extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), decode_in="processes")
    assert "no such program" in capfd.readouterr().err


def test_a_stop_ends_the_processes_at_once_and_keeps_what_is_finished(
    misbehaving: Callable[[dict[int, str]], ClipList], tmp_path: Path, descendants: Callable[[], set[int]]
) -> None:
    clips = misbehaving({6: "stuck", 7: "stuck"})
    done: list[int] = []
    store = open_store(tmp_path / "s", "a")
    how = {"workers": 2, "decode_in": "processes", "clip_limit_s": None}
    began = time.monotonic()
    with pytest.raises(Interrupted, match="clips that are finished are kept"):
        extract(
            store,
            clips,
            stub_encoders(),
            advance=lambda n, total: done.append(n),
            stop=lambda: done[-1] >= 4,
            **how,
        )
    assert time.monotonic() - began < 60
    assert len(open_store(tmp_path / "s")["loudness"].ids) == 4


COMMAND = """
import sys
sys.path[:0] = sys.argv[3:]
from featurecache import load_clips, open_store
from featurecache.console import CommandGroup
from featurecache.extract.run import extract
from featurecache.interrupt import StopRequest
from stub_encoders import stub_encoders

with StopRequest() as request:
    print("begins", flush=True)
    extract(
        open_store(sys.argv[2], "a"), load_clips(sys.argv[1]), stub_encoders(), workers=2, decode_in="processes",
        advance=lambda done, total: print(done, flush=True), stop=lambda: request.requested,
    )
"""


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_no_end_of_the_run_leaves_a_process_or_shared_memory(
    number: signal.Signals, misbehaving: Callable[[dict[int, str]], ClipList], folder: Path, tmp_path: Path
) -> None:
    """Also while a worker is in the middle of a clip, and when every process of the job is signalled."""
    misbehaving(dict.fromkeys(range(NUM_CLIPS), "slow") | {7: "stuck"})
    before = shared_memory()
    command = [sys.executable, "-c", COMMAND, str(folder / "clips.jsonl"), str(tmp_path / "s"), *sys.path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any(line.strip() == "3" for line in lines)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3  # the template and two workers
    assert shared_memory() == before
    if number is not signal.SIGKILL:
        for child in children:  # as a batch system does
            child.send_signal(number)
    process.send_signal(number)
    drained = threading.Thread(target=process.communicate)
    drained.start()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    drained.join(30)
    assert process.returncode == (-number if number is signal.SIGKILL else 1)
    assert shared_memory() == before
    kept = open_store(tmp_path / "s")
    assert not verify_store(kept).damage
    if number is not signal.SIGKILL:
        assert len(kept["loudness"].ids) >= 3
