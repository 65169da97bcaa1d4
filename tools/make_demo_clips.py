"""Make the demo's clips: real mp4 files (H.264, AAC) of drawn faces that speak, and their clip list.

Every clip is 1.6 to 2.4 s, 320×240 at 25 fps, 24 kHz mono, about 39 kB. It is a pure function of (seed, number): the
first 100 of 480 clips are the clips of a run of 100. Emotions take turns, so that every split is balanced; of every 60
clips 30 are for training, 6 for validation and 24 for testing, and no person and no sentence is in two splits.
What each emotion looks and sounds like: demo_cues.py. This module knows no model.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from demo_cues import EMOTIONS, LOOK_OF, VOICE_OF, sentences
from demo_face import FPS, HEIGHT, LOOKS, WIDTH, Person, film
from demo_voice import SAMPLING_RATE, VOICES, Speaker, speak

from featurecache.console import say
from featurecache.files.jsonl import dump_lines

SPLITS = ("train",) * 5 + ("val",) + ("test",) * 4
"""Split of the rounds of six emotions, in turn."""
PEOPLE = {"train": range(60), "val": range(60, 75), "test": range(75, 105)}
VOICE_STRENGTH = (0.6, 1.0)
"""The weakest and the strongest voice, between the mean of all (0) and those of `demo_voice` (1)."""
AWKWARD = ("silent", "one-second", "corrupt")

# Macroblock trees, with assembly, make x264 write other bytes in about one run of three; without them it is exact.
X264 = {"preset": "veryfast", "crf": "26", "x264-params": "threads=1:lookahead-threads=1:mbtree=0"}

Row = dict[str, Any]


def make_clips(
    folder: str | Path, num_clips: int = 480, seed: int = 0, workers: int = 2, awkward: bool = False
) -> Path:
    """Write `num_clips` clips under `folder`/clips and return the path of their list, `folder`/clips.jsonl.

    `awkward` adds three more to the training split: one without a sound track, one of one second, one corrupt file.
    """
    folder = Path(folder)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    jobs = [(str(folder), seed, number, "") for number in range(num_clips)]
    if awkward:
        jobs += [(str(folder), seed, num_clips + k, kind) for k, kind in enumerate(AWKWARD)]
    if workers > 1:
        # Spawned, not forked: the caller may already hold threads, of torch for one.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(_make_clip, jobs, chunksize=8))
    else:
        rows = [_make_clip(job) for job in jobs]
    path = folder / "clips.jsonl"
    path.write_bytes(dump_lines(rows))
    return path


def describe(seed: int, number: int) -> Row:
    """Return the clip list's row for one clip, without the peak frame, which the film decides."""
    emotion = EMOTIONS[number % len(EMOTIONS)]
    split = SPLITS[number // len(EMOTIONS) % len(SPLITS)]
    said = sentences(emotion, split, np.random.default_rng([seed, number, 0]))
    return {
        "id": f"demo_{number:04d}",
        "video": f"clips/demo_{number:04d}.mp4",
        "text": said.subtitle,
        "split": split,
        "dataset": "demo",
        "labels": {"emotion": emotion},
        "responses": {"reason": said.reason, "think": said.think},
    }


def render(seed: int, number: int, duration_s: float | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    """Return frames (F, HEIGHT, WIDTH, 3) uint8, sound (S,) float32 at SAMPLING_RATE, index of the peak frame."""
    row = describe(seed, number)
    emotion, people = row["labels"]["emotion"], PEOPLE[row["split"]]
    rng = np.random.default_rng([seed, number, 1])
    who = [seed, int(rng.integers(people.start, people.stop)), 2]
    num_frames = round(FPS * (duration_s or rng.uniform(1.6, 2.4)))
    person = Person.draw(np.random.default_rng(who), rng)
    frames, peak = film(LOOKS[LOOK_OF[emotion]], person, num_frames, rng)
    speaker = Speaker.draw(np.random.default_rng(who))
    sound = speak(VOICES[VOICE_OF[emotion]].weakened(rng.uniform(*VOICE_STRENGTH)), speaker, num_frames / FPS, rng)
    return frames, sound, peak


def _make_clip(job: tuple[str, int, int, str]) -> Row:
    folder, seed, number, kind = job
    row = describe(seed, number)
    frames, sound, row["peak_frame"] = render(seed, number, 1.0 if kind == "one-second" else None)
    if kind:
        row["split"] = "train"
    path = Path(folder, row["video"])
    write_mp4(path, frames, None if kind == "silent" else sound)
    if kind == "corrupt":
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3])  # its index, at the end of the file, is lost
    return row


def write_mp4(path: Path, frames: np.ndarray, sound: np.ndarray | None) -> None:
    """Write frames (F, H, W, 3) uint8 at FPS and sound (S,) float32 at SAMPLING_RATE as H.264 and AAC.

    The same arrays give the same bytes: one encoder thread, no macroblock tree (see X264), and no date in the file.
    """
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=FPS, options=X264)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = None
        if sound is not None:
            audio = container.add_stream("aac", rate=SAMPLING_RATE, layout="mono")
            audio.bit_rate = 48_000
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None]), format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = SAMPLING_RATE, 0, Fraction(1, SAMPLING_RATE)
            container.mux(audio.encode(block))
            container.mux(audio.encode(None))


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder for clips/ and clips.jsonl.")
@click.option("--clips", "num_clips", default=480, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option("--awkward", is_flag=True, help="Add a silent, a one-second and a corrupt clip.")
def main(out: str, num_clips: int, seed: int, workers: int, awkward: bool) -> None:
    path = make_clips(out, num_clips, seed, workers, awkward)
    size_bytes = sum(file.stat().st_size for file in (path.parent / "clips").iterdir())
    say(f"{path}: {num_clips + len(AWKWARD) * awkward} clips, {size_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
