"""The probe stage beside the store's own read rate: features of (64, 1280) + (64, 1408) + (1, 1408) a clip.

Reading and averaging into memory (what the probe does once) against `feature.read` of the same rows in the same order
into one buffer. Every pass opens the store anew, so that every row is read for the first time and checked; with --cold
its files are dropped from the page cache before. Passes are interleaved and the best of each counts. Then training
steps from memory, at the published widths of the fusion.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import featurecache
from featurecache.importers.npy import unverified_spec
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.data.pooled_features import READ_BYTES, PooledFeatures
from fusion_train.models.conv_attention import ConvAttention
from fusion_train.models.probe import Probe

SHAPES = {"whisper": (64, 1280), "cls": (1, 1408), "eva-temporal": (64, 1408)}
MODALITIES = {"audio": "whisper", "image": "cls", "video": "eva-temporal"}
CLIP_BYTES = sum(2 * tokens * width for tokens, width in SHAPES.values())
NUM_TOKENS = 8
NUM_CLASSES = 6
BATCH = 128
SOURCE = "00" * 31 + "01"

OPTIONS = [
    click.Option(["--clips"], type=int, default=4000, show_default=True, help="34.7 GB for 100,000."),
    click.Option(["--passes"], type=int, default=3, show_default=True),
    click.Option(["--cold/--warm"], default=False, show_default=True, help="Drop the files from the page cache."),
    click.Option(["--steps"], type=int, default=20, show_default=True, help="Training steps that are timed."),
    click.Option(["--folder"], default=None, help="Where the store lies or is written; temporary by default."),
]


def measure(clips: int, passes: int, cold: bool, steps: int, folder: str | None) -> dict[str, Any]:
    """Rates in clips and bytes per second, and their ratio."""
    with tempfile.TemporaryDirectory(prefix="probe-") as temporary:
        store = Path(folder or temporary) / f"probe-{clips}.zarr"
        write_store(store, clips)
        ids = featurecache.open_store(store)["whisper"].ids
        plain: dict[str, list[float]] = {name: [] for name in SHAPES}
        pooled: dict[str, list[float]] = {name: [] for name in SHAPES}
        kept = 0
        for modality, name in list(MODALITIES.items()) * passes:
            if cold:
                drop_from_cache(store / name)
            plain[name].append(read_plainly(store, name, ids))
            if cold:
                drop_from_cache(store / name)
            seconds, num_bytes = read_for_the_probe(store, modality, ids)
            pooled[name].append(seconds)
            kept += num_bytes
        read_s, pooled_s = (sum(map(min, taken.values())) for taken in (plain, pooled))
        sizes = {name: clips * 2 * tokens * width / 1e9 for name, (tokens, width) in SHAPES.items()}
        return {
            "clips": clips,
            "clip_bytes": CLIP_BYTES,
            "cold": cold,
            "threads": torch.get_num_threads(),
            "read_clips_per_s": clips / read_s,
            "read_gb_per_s": clips * CLIP_BYTES / read_s / 1e9,
            "probe_read_clips_per_s": clips / pooled_s,
            "probe_read_over_read": read_s / pooled_s,
            **{f"{name}_read_gb_per_s": sizes[name] / min(taken) for name, taken in plain.items()},
            **{f"{name}_probe_read_gb_per_s": sizes[name] / min(taken) for name, taken in pooled.items()},
            "resident_bytes_per_clip": kept / clips / passes,
            "train_clips_per_s": train_rate(steps),
        }


def write_store(location: Path, count: int) -> None:
    """Write the features of `count` clips, unless they are there."""
    block = np.random.default_rng(0).standard_normal((64, 1408), np.float32).astype(np.float16)
    ids = [f"clip_{number:06d}" for number in range(count)]
    store = featurecache.open_store(location, "a")
    for name, shape in SHAPES.items():
        tokens = np.ascontiguousarray(block[: shape[0], : shape[1]])
        writer = store.writer(name, unverified_spec(name, shape, "float16"))
        writer.plan(ids)
        for shard in writer.pending():
            with writer.begin(shard) as open_shard:
                for slot in range(len(shard.ids)):
                    open_shard.put(slot, tokens, SOURCE)
                open_shard.commit()


def drop_from_cache(location: Path) -> None:
    """Have the kernel forget the pages of every file of a store."""
    os.sync()
    for path in location.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(location: Path, name: str, ids: Any) -> float:
    """Seconds that reading every row of a feature in order into one buffer takes."""
    feature, shape = featurecache.open_store(location)[name], SHAPES[name]
    step = READ_BYTES // (2 * shape[0] * shape[1])
    buffer = np.empty((min(step, len(ids)), *shape), np.float16)
    began = time.perf_counter()
    for start in range(0, len(ids), step):
        chunk = ids[start : start + step]
        feature.read(chunk, out=buffer[: len(chunk)])
    return time.perf_counter() - began


def read_for_the_probe(location: Path, modality: str, ids: Any) -> tuple[float, int]:
    """Seconds that reading and averaging a feature takes; and the bytes that stay."""
    pooled = PooledFeatures(FeatureReader.open(str(location), {modality: MODALITIES[modality]}), NUM_TOKENS)
    began = time.perf_counter()
    pooled.load(ids)
    return time.perf_counter() - began, pooled.num_bytes


def train_rate(steps: int) -> float:
    """Clips a second of forward, backward and optimizer at the published widths."""
    probe = Probe(ConvAttention(), fusion_width=256, fusion_tokens=NUM_TOKENS, num_classes=NUM_CLASSES)
    optimizer = torch.optim.AdamW(probe.parameters())
    features = {
        "audio": torch.randn(BATCH, NUM_TOKENS, 1280).half(),
        "image": torch.randn(BATCH, 1, 1408).half(),
        "video": torch.randn(BATCH, NUM_TOKENS, 1408).half(),
    }
    present, allowed = torch.ones(BATCH, 3, dtype=torch.bool), torch.ones(BATCH, NUM_CLASSES, dtype=torch.bool)
    targets = torch.randint(NUM_CLASSES, (BATCH,))
    began = time.perf_counter()
    for step in range(steps + 2):
        if step == 2:
            began = time.perf_counter()
        probe(features, present, allowed, targets).loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
    return steps * BATCH / (time.perf_counter() - began)
