"""Stores without an encoder in which it is known which clips are alike, doubled or mislabelled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import featurecache
from featurecache.clips.clip_list import Clip, ClipList
from featurecache.spec import Spec
from featurecache.store.local import LocalStore

LABELS = ("angry", "happy", "sad")
SOUND, PICTURE = {"sampling_rate": 16_000}, {"frame_rule": "uniform", "frames": 4}
SHAPES = {"voice": (6, 24), "face": (8, 32)}
CLASS_STRENGTH = 0.9


def spec_of(name: str, **changes: object) -> Spec:
    fields: dict = {
        "encoder": name,
        "implementation": 1,
        "weights": {},
        "architecture": {},
        "tap": {},
        "preprocessing": SOUND if name == "voice" else PICTURE,
        "pooling": {},
        "compute_dtype": "float32",
        "stored_dtype": "float16",
        "shape": SHAPES[name],
    }
    return Spec(**(fields | changes))


def tokens(clip_id: str, name: str, label: str) -> np.ndarray:
    """Tokens with a part of the class, a part of the clip, and a loud channel that all share."""
    count, width = SHAPES[name]
    of_class = np.random.default_rng([LABELS.index(label), width]).standard_normal(width)
    random = np.random.default_rng([*clip_id.encode(), width])
    values = CLASS_STRENGTH * of_class + random.standard_normal(width) + 0.3 * random.standard_normal((count, width))
    values[:, 0] += 40
    return values.astype(np.float32)


def label_of(number: int) -> str:
    return LABELS[number % len(LABELS)]


def planted_clips(count: int) -> list[Clip]:
    return [
        Clip(
            f"c{n:03d}",
            video=Path(f"c{n:03d}.mp4"),
            text=f"sentence {n}",
            split="train" if n % 4 else "test",
            dataset="planted",
            labels={"emotion": label_of(n)},
        )
        for n in range(count)
    ]


def write_store(
    location: Path, clips: list[Clip], like: Mapping[str, tuple[str, float]] = {}, silent: tuple[str, ...] = ()
) -> LocalStore:
    """Extract `clips`; `like` gives a clip the tokens of another, with noise of that strength; 0 is a copy."""
    store = featurecache.open_store(location, mode="a")
    for name in SHAPES:
        writer = store.writer(name, spec_of(name), shard_rows=16)
        writer.plan([clip.id for clip in clips])
        for shard in writer.pending():
            with writer.begin(shard) as open_shard:
                for slot, clip_id in enumerate(shard.ids):
                    if name == "voice" and clip_id in silent:
                        open_shard.absent(slot, "no audio stream")
                        continue
                    origin, noise = like.get(clip_id, (clip_id, 0.0))
                    clip_tokens = tokens(origin, name, label_of(int(origin[1:])))
                    added = noise * np.random.default_rng(list(clip_id.encode())).standard_normal(clip_tokens.shape)
                    open_shard.put(slot, (clip_tokens + added).astype(np.float32), f"{int(clip_id[1:]) + 1:064x}")
                open_shard.commit()
    return featurecache.open_store(location)


def write_list(path: Path, clips: list[Clip]) -> ClipList:
    """Write a clip list and read it back."""
    import json

    rows = [
        {
            "id": clip.id,
            "video": f"{clip.id}.mp4",
            "text": clip.text,
            "split": clip.split,
            "dataset": clip.dataset,
            "labels": dict(clip.labels),
        }
        for clip in clips
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return featurecache.load_clips(path)
