"""A run trained on features of tiny encoders from tiny recordings, ready to be exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recordings import sine, write_clip
from toy import LABELS, make_config

import featurecache
from featurecache.encoders import Encoder, open_encoder
from featurecache.explore.search import update_indices
from featurecache.extract.run import extract
from fusion_train.export.encoders import make_zero_image
from fusion_train.run import Run
from fusion_train.training.trainer import train

SILENT = "v2"
"""A clip without a sound track."""
ENCODERS = ("whisper", "eva-global", "eva-temporal")


@dataclass(frozen=True)
class Trained:
    """A run, what it read, and the encoders that made it."""

    folder: Path
    run: Run
    weights: dict[str, str]

    @property
    def clips(self) -> featurecache.ClipList:
        return featurecache.load_clips(self.folder / "clips.jsonl")

    def video(self, clip_id: str) -> str:
        return str(self.folder / "clips" / f"{clip_id}.mp4")


def write_clips(folder: Path) -> None:
    """Six training and four held-out recordings of different lengths and pitch."""
    (folder / "clips").mkdir(parents=True)
    lines = []
    for split, count in (("train", 6), ("val", 4)):
        for number in range(count):
            clip_id, label = f"{split[0]}{number}", LABELS[number % len(LABELS)]
            sound = None if clip_id == SILENT else sine(1.0, 200.0 + 50 * number)
            write_clip(folder / "clips" / f"{clip_id}.mp4", num_frames=6 + number, sound=sound)
            entry = {
                "id": clip_id,
                "video": f"clips/{clip_id}.mp4",
                "split": split,
                "dataset": "toy",
                "labels": {"emotion": label},
                "responses": {"reason": f"The person is {label}."},
            }
            lines.append(json.dumps(entry | ({} if number == 1 else {"text": f"Number {number}!"})))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")


def train_run(
    folder: Path,
    whisper: Path,
    eva: Path,
    llama: Path | None,
    *overrides: str,
    compute_dtype: str = "float32",
    stored_dtype: str = "float16",
) -> Trained:
    """Train on features of Whisper and both EVA encoders, whose tiny checkpoints lie in these folders."""
    weights = dict(zip(ENCODERS, map(str, (whisper, eva, eva)), strict=True))
    encoders = {name: open_encoder(name, weights=path, compute_dtype=compute_dtype) for name, path in weights.items()}
    return train_on(folder, encoders, weights, llama, *overrides, stored_dtype=stored_dtype)


def train_on(
    folder: Path,
    encoders: dict[str, Encoder],
    weights: dict[str, str],
    llama: Path | None,
    *overrides: str,
    stored_dtype: str = "float16",
    say: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Write clips, extract, train a few steps at a rate that moves every part.

    Args:
        encoders: feature -> encoder.
        weights: encoder name or modality -> checkpoint, for the export.
        llama: the language model; None trains a probe.
    """
    write_clips(folder)
    store = featurecache.open_store(folder / "features.zarr", mode="a")
    extract(store, featurecache.load_clips(folder / "clips.jsonl"), encoders, stored_dtype=stored_dtype, workers=2)
    if any(override.startswith("retrieval.") for override in overrides):
        update_indices(featurecache.open_store(folder / "features.zarr"))
    if "features.absent=visible" in overrides:
        overrides += ("features.zero_image=zero-image.safetensors",)  # found beside the clip list
        out = folder / "zero-image.safetensors"
        make_zero_image(
            str(folder / "features.zarr"),
            "eva-global",
            out,
            weights=weights["eva-global"],
            device="cpu",
            say=lambda _: None,
        )
    tasks = "[emotion, sentiment, reason]" if llama else "[emotion]"
    config = make_config(
        llama or Path("unused"),
        *(() if llama else ("model.llm=null",)),
        "optim.steps=8",
        "optim.lr=0.02",
        f"data.tasks={tasks}",
        "checkpoint.every=8",
        *overrides,
        stage="perception" if llama else "probe",
    )
    run = Run(folder / "run")
    train(config, store=str(folder / "features.zarr"), clips=str(folder / "clips.jsonl"), run=run, say=say)
    return Trained(folder, run, weights)
