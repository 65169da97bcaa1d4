"""Whole extractions of small clips by encoders without a network, in child processes that may be killed or stopped.

The children come from a fork server that has everything imported, so that an instant of their lives falls into the
work and not into Python's start. `wait` says how a child ended.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import recordings as rec

from featurecache import load_clips, open_store

NUM_CLIPS = 12
SHARD_CLIPS = 2
NUM_SHARDS = 2 * NUM_CLIPS // SHARD_CLIPS  # of two features

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["featurecache.extract.run", "stub_encoders", "av", __name__])


def make_clips(folder: Path) -> Path:
    """Twelve clips of four recordings; returns the clip list."""
    for number in range(4):
        rec.write_clip(folder / f"c{number}.mp4", num_frames=6 + number, sound=rec.sine(0.5, 200 + 60 * number))
    rows = [
        {"id": f"clip_{number:02d}", "video": f"c{number % 4}.mp4", "start_s": 0.02 * (number // 4), "end_s": 0.5}
        for number in range(NUM_CLIPS)
    ]
    clip_list = folder / "clips.jsonl"
    clip_list.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return clip_list


def extract_all(clip_list: Path, location: Path) -> int:
    """Bring every clip into a store, as `fcache extract` does; returns the clips that were prepared."""
    from stub_encoders import stub_encoders

    from featurecache.extract.run import extract

    store = open_store(location, "a")
    return extract(store, load_clips(clip_list), stub_encoders(), shard_clips=SHARD_CLIPS, workers=2).num_clips


def _extract_and_tell(clip_list: Path, location: Path, connection: object) -> None:
    connection.send(extract_all(clip_list, location))  # type: ignore[attr-defined]


@contextmanager
def extraction(clip_list: Path, location: Path) -> Iterator[tuple[BaseProcess, object]]:
    """A child that extracts; and the end of a pipe that tells how many clips it prepared."""
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_extract_and_tell, args=(clip_list, location, sender))
    process.start()
    sender.close()
    try:
        yield process, receiver
    finally:
        process.join()
        process.close()
        receiver.close()


def committed(location: Path) -> int:
    """How many commit records a store has."""
    return len(list(location.glob("*/.fcache/records/*"))) if location.is_dir() else 0
