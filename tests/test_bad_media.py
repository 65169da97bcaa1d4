"""Damaged, absurd and merely unusual media: no crash, no hang, no zeros, bounded memory, and a reason for a person."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import mutations
import numpy as np
import pytest
import recordings as rec
from stub_encoders import stub_encoders

from featurecache import load_clips, open_store
from featurecache.clips.clip_list import Clip
from featurecache.errors import MediaError
from featurecache.extract.run import extract
from featurecache.media.decode import decode, decode_each, header_problem
from featurecache.media.frames import FrameMemory, FramePicker
from featurecache.store.protocols import Status
from featurecache.views import AudioView, FramesView

SIXTEEN = FramesView(16, "uniform", still=False)
PEAK = FramesView(1, "peak", still=True)
FIELDS = {".wav": "audio", ".mp3": "audio", ".flac": "audio", ".png": "image"}
MEGABYTES = 700
UNREADABLE = re.compile(r"Error:|Traceback|0x[0-9a-f]{6}|\b[Ee]rrno\b|/")

PROGRAM = """
import faulthandler, sys
from pathlib import Path
faulthandler.enable()
from featurecache import load_clips, open_store
from featurecache.extract.run import extract
from stub_encoders import stub_encoders
clips, store = load_clips(sys.argv[1]), open_store(sys.argv[2], "a")
summary = extract(store, clips, stub_encoders(), shard_clips=50, workers=2, clip_limit_s=20)
peak_kb = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(summary.num_clips, summary.decode_s, peak_kb)
"""


def mutated_list(folder: Path, sources: list[Path], seed: int, count: int) -> Path:
    """Write `count` mutated files and their clip list."""
    rows = []
    for number, (kind, suffix, data) in enumerate(mutations.mutate(sources, seed, count)):
        path = folder / f"{number:05d}{suffix}"
        path.write_bytes(data)
        rows.append({"id": f"{number:05d}-{kind}", FIELDS.get(suffix, "video"): path.name})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "clips.jsonl"


def extracted_in_a_process(clip_list: Path, store: Path) -> int:
    """Extract, hold the run to its bounds, and return how many clips failed; every clip must be decided soundly."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(clip_list), str(store)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    clips = load_clips(clip_list)
    num_clips, _, peak_kb = done.stdout.split()
    assert int(num_clips) == len(clips)
    assert time.monotonic() - began < 30 + len(clips) * 0.2
    assert int(peak_kb) < MEGABYTES * 1024
    failed = 0
    for feature in (open_store(store)[name] for name in ("loudness", "colours")):
        for clip in clips:
            record = feature.record(clip.id)
            assert record is not None, clip.id
            if record.status is Status.OK:
                assert np.isfinite(feature[clip.id]).all()
                if clip.audio is None:  # silence is sound, but no frame of ours is black
                    assert feature.name == "loudness" or feature[clip.id].any(), clip.id
            else:
                assert len(record.reason) > 8, clip.id
                assert not UNREADABLE.search(record.reason), (clip.id, record.reason)
                failed += record.status is Status.FAILED
    return failed


def test_mutated_files_neither_crash_nor_hang_and_each_has_tokens_or_a_reason(tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    clip_list = mutated_list(tmp_path, mutations.sources(tmp_path / "sound"), seed=11, count=60)
    assert extracted_in_a_process(clip_list, tmp_path / "s") > 20


@pytest.mark.slow
def test_a_thousand_mutated_files_neither_crash_nor_hang_and_each_has_tokens_or_a_reason(
    tmp_path: Path, recordings: Path
) -> None:
    (tmp_path / "sound").mkdir()
    sources = mutations.sources(tmp_path / "sound")
    sources += sorted(path for path in recordings.iterdir() if path.suffix in (".mp4", ".mkv", ".flac", ".wav"))
    clip_list = mutated_list(tmp_path, sources, seed=12, count=1000)
    assert extracted_in_a_process(clip_list, tmp_path / "s") > 400


def test_the_same_seed_gives_the_same_mutations(tmp_path: Path) -> None:
    source = rec.write_clip(tmp_path / "a.wav", num_frames=0, sound=rec.sine(0.3), audio_codec="pcm_s16le")
    first, second = (list(mutations.mutate([source], 3, 40)) for _ in range(2))
    assert first == second
    assert {kind for kind, _, _ in first} == {mutation.__name__ for mutation in mutations.MUTATIONS}


def test_unusual_files_that_are_sound_give_their_frames(tmp_path: Path) -> None:
    for name, (path, has_frames) in mutations.awkward(tmp_path).items():
        result = decode_each(Clip("a", video=path), [PEAK if name == "8k" else SIXTEEN])[0]
        if has_frames:
            assert isinstance(result, np.ndarray), (name, result)
            assert result.any(), name
        else:
            assert isinstance(result, MediaError), name


def test_pictures_that_begin_late_are_not_taken_for_a_file_cut_short(tmp_path: Path) -> None:
    path = rec.write_clip(tmp_path / "a.mkv", times=[3000 + 100 * n for n in range(20)], sound=rec.sine(5.0))
    assert rec.frame_numbers(decode(Clip("a", video=path), [FramesView(20, "uniform", False)])[0]) == list(range(20))


def test_a_file_of_hours_is_decoded_no_further_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hours.wav"
    seconds = 6 * 3600
    header = b"RIFF" + (36 + 32_000 * seconds).to_bytes(4, "little") + b"WAVEfmt \x10\0\0\0\x01\0\x01\0"
    header += (16_000).to_bytes(4, "little") + (32_000).to_bytes(4, "little") + b"\x02\0\x10\0data"
    with path.open("wb") as file:
        file.write(header + (32_000 * seconds).to_bytes(4, "little"))
        file.truncate(44 + 32_000 * seconds)  # a sparse file: hours of silence
    real, read = os.pread, []

    def counted(descriptor: int, num_bytes: int, place: int) -> bytes:
        read.append(num_bytes)
        return real(descriptor, num_bytes, place)

    monkeypatch.setattr("featurecache.media.container.os.pread", counted)
    assert decode(Clip("a", audio=path), [AudioView()])[0].shape == (480_000,)
    assert 480_000 * 2 <= sum(read) < 480_000 * 8  # of 691 MB


def test_a_clip_that_takes_too_long_fails_with_the_limit_as_its_reason(tmp_path: Path) -> None:
    rec.write_clip(tmp_path / "a.mp4", sound=rec.sine(1.0))
    (tmp_path / "clips.jsonl").write_text('{"id": "a", "video": "a.mp4"}\n')
    clips = load_clips(tmp_path / "clips.jsonl")
    summary = extract(open_store(tmp_path / "s", "a"), clips, stub_encoders(), clip_limit_s=1e-9)
    assert summary.failed == 2
    reason = open_store(tmp_path / "s")["colours"].record("a").reason
    assert reason.startswith("expected decoding to take at most 1e-09 s")


def test_a_playlist_reaches_neither_other_files_nor_the_network(tmp_path: Path) -> None:
    for number, text in enumerate((mutations.PLAYLIST, mutations.CONCAT)):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(text)
        result = decode_each(Clip("a", video=path), [SIXTEEN])[0]
        assert isinstance(result, MediaError)


def test_frames_nobody_asks_for_are_left_out_without_changing_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rec.write_clip(tmp_path / "a.mp4", num_frames=40, marked=True, options={"crf": "20", "bf": "3"})
    add, seen = FramePicker.add, []
    monkeypatch.setattr(FramePicker, "add", lambda self, frame: (seen.append(frame.pts), add(self, frame)))
    view = FramesView(4, "uniform", still=False)
    skipping = decode(Clip("a", video=path), [view])[0]
    num_skipping = len(seen)
    monkeypatch.setattr("featurecache.media.recording.SKIPPING_CODECS", frozenset())
    whole = decode(Clip("a", video=path), [view])[0]
    assert np.array_equal(skipping, whole)
    assert num_skipping < (len(seen) - num_skipping) * 0.8


def test_headers_alone_tell_files_that_cannot_be_opened(tmp_path: Path) -> None:
    rec.write_clip(tmp_path / "a.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"nonsense" * 100)
    rec.write_clip(tmp_path / "mute.mp4")
    assert header_problem(Clip("a", video=tmp_path / "a.mp4")) is None
    assert header_problem(Clip("a", text="Words.")) is None
    for clip in (
        Clip("a", video=tmp_path / "bad.mp4"),
        Clip("a", video=tmp_path / "gone.mp4"),
        Clip("a", audio=tmp_path / "mute.mp4"),
        Clip("a", image=tmp_path / "a.mp4"),
    ):
        assert isinstance(header_problem(clip), MediaError), clip


def test_clips_wait_for_each_others_frames_but_a_lone_one_never_waits() -> None:
    memory, order = FrameMemory(100), []

    def second() -> None:
        with memory.reserve() as held:
            held.take(60)
            order.append("second")

    with memory.reserve() as held:
        held.take(500)  # alone, so also beyond the budget
        other = threading.Thread(target=second)
        other.start()
        other.join(0.2)
        order.append("first")
    other.join(5)
    assert order == ["first", "second"]


def test_more_frames_than_a_clip_may_have_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurecache.media.recording.MAX_CLIP_BYTES", 1000)
    path = rec.write_clip(tmp_path / "a.mp4", sound=rec.sine(1.0))
    sound, frames = decode_each(Clip("a", video=path), [AudioView(), SIXTEEN])
    assert "GB of frames" in str(frames)
    assert isinstance(sound, np.ndarray)
