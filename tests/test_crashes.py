"""A crash inside a native decoder costs one clip: found by the next start, and never laid to an innocent one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import recordings as rec
from stored_rows import rows_of
from stub_encoders import stub_encoders

from featurecache import load_clips, open_store
from featurecache.clips.clip_list import Clip
from featurecache.clips.crop import Crop
from featurecache.errors import MediaError
from featurecache.extract.run import extract
from featurecache.maintenance.verify import verify_store
from featurecache.media.crash_guard import InFlightFile, clips_of_dead_processes
from featurecache.media.decode import Absent, decode_each
from featurecache.media.isolated_decoding import IsolatedDecoder
from featurecache.views import AudioView, FramesView

NUM_CLIPS = 10
CRASHING = """
# Loaded by every interpreter that is started with this folder on its path, so by the child that decodes apart too.
import ctypes, os, signal, time
try:
    from featurecache.media import recording
except ImportError:
    pass
else:
    decode = recording.Recording.decode

    def crashing(self, views, *rest):
        name = self.path.name
        sound = any(type(view).__name__ == "AudioView" for view in views)
        if name.startswith("crash") or (name.startswith("sound") and sound):
            ctypes.string_at(0)
        if name.startswith("abort"):
            os.abort()
        if name.startswith("greedy"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("slow"):
            time.sleep(0.5)
        return decode(self, views, *rest)

    recording.Recording.decode = crashing
"""
PROGRAM = """
import sys
from featurecache import load_clips, open_store
from featurecache.extract.run import extract
from stub_encoders import stub_encoders

clips, store = load_clips(sys.argv[1]), open_store(sys.argv[2], "a")
summary = extract(store, clips, stub_encoders(), shard_clips=4, workers=3)
print(summary.num_clips, summary.by_feature["loudness"].failed)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(NUM_CLIPS):
        rec.write_clip(tmp_path / f"{number}.mp4", num_frames=4, sound=rec.sine(0.3, 200 + 30 * number))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHING)
    return tmp_path


def write_list(folder: Path, bad: dict[int, str]) -> Path:
    """Ten clips, those of `bad` under a name that decides what becomes of them."""
    rows = []
    for number in range(NUM_CLIPS):
        name = f"{bad.get(number, '')}{number}.mp4"
        if number in bad:
            (folder / name).write_bytes((folder / f"{number}.mp4").read_bytes())
        rows.append({"id": f"c{number}", "video": name})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "clips.jsonl"


def start(folder: Path, clip_list: Path, store: Path) -> subprocess.Popen[str]:
    path = [str(folder / "site"), str(Path(__file__).parent), *sys.path]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(clip_list), str(store)],
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(folder: Path, clip_list: Path, store: Path) -> int:
    process = start(folder, clip_list, store)
    process.communicate()
    return process.returncode


SIGNALS = [("crash", signal.SIGSEGV), pytest.param("abort", signal.SIGABRT, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("kind", "signal_number"), SIGNALS)
def test_the_next_start_marks_the_clip_that_crashed_and_no_other(
    kind: str, signal_number: signal.Signals, folder: Path
) -> None:
    clip_list, store = write_list(folder, {5: kind}), folder / "s.zarr"
    assert run(folder, clip_list, store) == -signal_number
    assert run(folder, clip_list, store) == 0
    for feature in (open_store(store)[name] for name in ("loudness", "colours")):
        assert sorted(feature.ids) == [f"c{number}" for number in range(NUM_CLIPS) if number != 5]
        assert feature.record("c5").reason == f"the decoder crashed ({signal_number.name})"
        assert feature.record("c5").source
    assert not verify_store(open_store(store)).damage
    assert not list(left_names(store))
    whole = folder / "whole.zarr"
    extract(open_store(whole, "a"), load_clips(write_list(folder, {})), stub_encoders(), shard_clips=4)
    for name, rows in rows_of(store).items():
        assert {clip_id: row for clip_id, row in rows.items() if clip_id != "c5"} == {
            clip_id: row for clip_id, row in rows_of(whole)[name].items() if clip_id != "c5"
        }


@pytest.mark.slow
def test_two_crashing_clips_cost_two_starts_at_most(folder: Path) -> None:
    clip_list, store = write_list(folder, {2: "crash", 8: "abort"}), folder / "s.zarr"
    codes = []
    while (code := run(folder, clip_list, store)) and len(codes) < 4:
        codes.append(code)
    assert 1 <= len(codes) <= 2
    feature = open_store(store)["loudness"]
    assert len(feature.ids) == NUM_CLIPS - 2
    assert [feature.record(clip_id).reason.partition(" (")[0] for clip_id in ("c2", "c8")] == [
        "the decoder crashed"
    ] * 2


def test_a_crash_of_the_sound_leaves_the_frames_usable(folder: Path) -> None:
    clip_list, store = write_list(folder, {5: "sound"}), folder / "s.zarr"
    assert run(folder, clip_list, store) == -signal.SIGSEGV
    assert run(folder, clip_list, store) == 0
    assert "c5" in open_store(store)["colours"]
    assert open_store(store)["loudness"].record("c5").reason == "the decoder crashed (SIGSEGV)"


@pytest.mark.slow
def test_a_clip_for_which_the_decoder_is_killed_again_and_again_is_marked(folder: Path) -> None:
    """As the system kills what asks for too much memory."""
    clip_list, store = write_list(folder, {5: "greedy"}), folder / "s.zarr"
    assert run(folder, clip_list, store) == -signal.SIGKILL
    assert run(folder, clip_list, store) == 0
    assert "killed twice (SIGKILL)" in open_store(store)["loudness"].record("c5").reason


def test_a_run_that_a_person_kills_marks_no_clip(folder: Path) -> None:
    clip_list, store = write_list(folder, dict.fromkeys(range(NUM_CLIPS), "slow")), folder / "s.zarr"
    for _ in range(2):
        process = start(folder, clip_list, store)
        deadline = time.monotonic() + 60
        while not any(path.read_bytes().strip(b"\0") for path in left_names(store)) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        assert any(ids for folder in store.glob("*/.fcache/leases") for ids in clips_of_dead_processes(folder).values())
    assert run(folder, clip_list, store) == 0
    assert len(open_store(store)["loudness"].ids) == NUM_CLIPS
    assert not verify_store(open_store(store)).damage
    assert not list(left_names(store))


def left_names(store: Path):  # type: ignore[no-untyped-def]
    return store.glob("*/.fcache/leases/decoding-*")


def test_what_is_decoded_apart_is_what_is_decoded_here(folder: Path) -> None:
    views = [AudioView(), FramesView(4, "uniform", still=False), FramesView(1, "peak", still=True), AudioView()]
    clips = [
        Clip("c0", video=folder / "0.mp4", start_s=0.05, end_s=0.25, peak_frame=2, crop=Crop(right=0.5)),
        Clip("words", text="Nothing else."),
        Clip("seen", video=folder / "0.mp4", mute=True),
        Clip("gone", video=folder / "gone.mp4"),
    ]
    apart = IsolatedDecoder()
    for clip in clips:
        here, there = decode_each(clip, views, 60.0), apart.decode_each(clip, views, 60.0)
        for mine, other in zip(here, there, strict=True):
            assert type(mine) is type(other)
            if isinstance(mine, np.ndarray):
                assert np.array_equal(mine, other)
                assert mine.dtype == other.dtype
            else:
                assert str(mine) == str(other) if isinstance(mine, MediaError) else mine == other
    assert isinstance(there[0], MediaError)
    assert isinstance(apart.decode_each(clips[1], views)[0], Absent)
    apart.close()


PREDICTING = """
import sys
from pathlib import Path
from types import SimpleNamespace
from featurecache.clips.clip_list import Clip
from featurecache.views import AudioView, FramesView
from fusion_train.predict.pipeline import Prediction, PredictionLimits, crash_guard, prepare
from fusion_train.predict.timing import Timings

VIEWS = [AudioView(), FramesView(4, "uniform", still=False)]

def decode_views(clip, task, words, labels, limit_s, decode):
    found = decode(clip, VIEWS, limit_s)
    for result in found:
        if isinstance(result, Exception):
            raise result
    return SimpleNamespace(inputs=found)

opened = SimpleNamespace(processor=SimpleNamespace(prepare=decode_views))
task = SimpleNamespace(name="emotion", full_name="emotion", modalities=("audio",))
request = SimpleNamespace(task=task, words=None)
with crash_guard(1) as guard:
    prediction = Prediction(opened, request, PredictionLimits(), Timings(), guard)
    for path in sys.argv[1:]:
        clip = Clip(Path(path).name, video=Path(path))
        print(type(prepare(prediction, clip, ()).result).__name__, flush=True)
"""


@pytest.mark.slow
def test_predicting_goes_on_after_a_clip_that_crashed_it(folder: Path) -> None:
    bad = folder / "crash.mp4"
    bad.write_bytes((folder / "0.mp4").read_bytes())
    path = os.pathsep.join([str(folder / "site"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-c", PREDICTING, *map(str, [folder / "1.mp4", bad, folder / "2.mp4"])]
    said = []
    for _ in range(3):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        said.append((done.returncode, done.stdout.split()))
    assert said[0] == (-signal.SIGSEGV, ["SimpleNamespace"])
    assert said[1] == (0, ["SimpleNamespace", "MediaError", "SimpleNamespace"])
    assert said[2] == said[1]
    bad.write_bytes((folder / "1.mp4").read_bytes())
    (folder / "site" / "sitecustomize.py").write_text("")  # as a release that mends the decoder
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split() == said[1][1][:1] * 3
    assert not list((folder / "cache").rglob("decoding-*"))


def test_threads_hold_their_clips_and_an_orderly_end_leaves_nothing(tmp_path: Path) -> None:
    in_flight = InFlightFile(tmp_path / "leases", 4)
    ids = ["a", "ä" * 127, "x/y", "d"]
    ready, done = threading.Barrier(5), threading.Event()

    def hold(clip_id: str) -> None:
        with in_flight.holding(clip_id):
            ready.wait()
            done.wait()

    threads = [threading.Thread(target=hold, args=(clip_id,)) for clip_id in ids]
    for thread in threads:
        thread.start()
    ready.wait()
    assert clips_of_dead_processes(tmp_path / "leases") == {}  # its process lives
    (copy := tmp_path / "leases" / "decoding-dead").write_bytes(next(left_names_in(tmp_path)).read_bytes())
    assert clips_of_dead_processes(tmp_path / "leases") == {copy: set(ids)}
    done.set()
    for thread in threads:
        thread.join()
    in_flight.close()
    assert [path.name for path in left_names_in(tmp_path)] == ["decoding-dead"]


def left_names_in(folder: Path):  # type: ignore[no-untyped-def]
    return (folder / "leases").glob("decoding-*")
