"""Extraction: the encoders alone on batches in memory, and the whole pipeline from recordings to a store.

Whisper-large-v3 and EVA-ViT-g have random weights, made on the device: a checkpoint of 5 GB would have to be saved and
hashed first. The recordings are drawn faces of 720p with grain and sound, 4 s each, read again and again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extract_material import EVA_SIZES, WHISPER_SIZES, forward_tflop
from transformers import Blip2VisionConfig, Blip2VisionModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder as WhisperNetwork

import featurecache
from benchmarks.gpu.material import RECORDINGS, Material
from featurecache.clips.clip_list import Clip, ClipList
from featurecache.encoders import Encoder
from featurecache.encoders.eva import EvaGlobalEncoder, EvaTemporalEncoder
from featurecache.encoders.network import FrozenNetwork, LoadedNetwork, resolve_compute_dtype
from featurecache.encoders.whisper import WhisperEncoder
from featurecache.errors import FeatureCacheError
from featurecache.extract.pipeline import pool_tokens
from featurecache.extract.prepare import DecodeIn
from featurecache.extract.run import default_workers, extract
from featurecache.extract.stats import ExtractionStats
from featurecache.files.jsonl import require_objects
from fusion_train.planning.sizes import measured_peak_flops

WEIGHTS = {"random": "00" * 32}
GUESSED_CLIPS_PER_S = {"cuda": 30.0, "cpu": 2.0}
"""Before anything is measured: decides how many clips the first pass of the pipeline has."""


def measure(material: Material, case: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield clips per second of each encoder alone, or of the pipeline."""
    encoders = random_encoders(material)
    if case == "encoders":
        for name, encoder in encoders.items():
            yield name, alone(material, name, encoder)
    else:
        guess = GUESSED_CLIPS_PER_S[material.device.type] * material.measured_s / 4
        warm_rate, _ = run_extract(material, encoders, guess, "threads")
        ways: tuple[DecodeIn, ...] = ("processes", "threads")
        for decode_in in ways:
            yield decode_in, pipeline(material, encoders, decode_in, warm_rate * material.measured_s)


def random_encoders(material: Material) -> dict[str, Encoder]:
    """The three encoders at the published sizes, or tiny ones; both EVA encoders share one network."""
    size = "tiny" if material.tiny else "full"
    device = material.device
    compute = resolve_compute_dtype("auto", device)
    bins = 80 if material.tiny else 128
    shape = WHISPER_SIZES[size]
    of_whisper = WhisperConfig(
        **shape,
        decoder_layers=1,
        decoder_attention_heads=shape["encoder_attention_heads"],
        decoder_ffn_dim=64,
        num_mel_bins=bins,
        max_source_positions=1500,
        attn_implementation="sdpa",
    )
    of_eva = Blip2VisionConfig(**EVA_SIZES[size], image_size=224, patch_size=14, attn_implementation="sdpa")
    with torch.device(device):
        whisper, eva = WhisperNetwork(of_whisper), Blip2VisionModel(of_eva)
    tower = LoadedNetwork(FrozenNetwork(eva, device, compute), of_eva, WEIGHTS, {})
    return {
        "whisper": WhisperEncoder(
            of_whisper,
            WhisperFeatureExtractor(feature_size=bins),
            FrozenNetwork(whisper, device, compute),
            tokens=64,
            weights=WEIGHTS,
            provenance={},
        ),
        "eva-global": EvaGlobalEncoder(tower, "peak"),
        "eva-temporal": EvaTemporalEncoder(tower, frames=16, grid=2),
    }


def alone(material: Material, name: str, encoder: Encoder) -> dict[str, Any]:
    """Forward and pooling of a batch that is in memory, its copy to the device and that of the tokens back included."""
    random = np.random.default_rng(0)
    if name == "whisper":
        view: np.ndarray = random.normal(0, 0.1, 4 * 16_000).astype(np.float32)
    else:
        frames = 1 if name == "eva-global" else 16
        view = random.integers(0, 256, (frames, 720, 1280, 3), dtype=np.uint8)
    batch = np.stack([encoder.preprocess(view)] * encoder.batch_size)
    rate, seconds = clips_per_s(
        material, lambda: pool_tokens(encoder, encoder.forward(batch), (), {}).cpu(), encoder.batch_size
    )
    tflop = forward_tflop("tiny" if material.tiny else "full")[name]
    peak = measured_peak_flops(material.device, torch.float32 if material.tiny else torch.float16) / 1e12
    return {
        "clips_per_s": round(rate, 2),
        "tflop_per_clip": round(tflop, 4),
        "tflops": round(rate * tflop, 2),
        "utilisation": round(rate * tflop / peak, 3),
        "batch": encoder.batch_size,
        "seconds": round(seconds, 1),
    }


def clips_per_s(material: Material, forward: Callable[[], Any], batch_size: int) -> tuple[float, float]:
    """Clips per second of forwards one after another, and how long they were measured."""
    for _ in range(3):
        forward()
    material.settle()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < material.measured_s / 2:
        forward()
        count += batch_size
    material.settle()
    seconds = time.perf_counter() - began
    return count / seconds, seconds


def pipeline(material: Material, encoders: dict[str, Encoder], decode_in: DecodeIn, num_clips: float) -> dict[str, Any]:
    """`extract` with as many workers as `fcache extract` has.

    Starting the workers is left out: the rate is that of the clips after the first quarter.
    """
    rate, stats = run_extract(material, encoders, num_clips, decode_in)
    tflop = sum(forward_tflop("tiny" if material.tiny else "full").values())
    summary = stats.to_dict()
    return {
        "clips_per_s": round(rate, 2),
        "clips": stats.num_clips,
        "failed": sum(counts.failed for counts in stats.by_feature.values()),
        "workers": stats.workers,
        "tflops": round(rate * tflop, 2),
        "bottleneck": summary["bottleneck"],
        **{f"{part}_busy": round(busy["share"], 3) for part, busy in summary["parts"].items()},
        "seconds": round(stats.wall_s, 1),
    }


def run_extract(
    material: Material, encoders: dict[str, Encoder], num_clips: float, decode_in: DecodeIn
) -> tuple[float, ExtractionStats]:
    """Extract into a store of its own; returns clips per second after the first quarter, and the statistics."""
    count = max(2 * max(encoder.batch_size for encoder in encoders.values()), round(num_clips))
    first = count // 4
    moments: list[float] = []

    def advance(done: int, total: int) -> None:
        if done == first:
            moments.append(time.perf_counter())

    store = featurecache.open_store(tempfile.mkdtemp(dir=material.root, suffix=".zarr"), "a")
    clips = clip_list(material.recordings, count)
    stats = extract(store, clips, encoders, workers=default_workers(), decode_in=decode_in, advance=advance)
    return (count - first) / (time.perf_counter() - moments[-1]), stats


def clip_list(folder: Path, count: int) -> ClipList:
    """`count` clips over the recordings."""
    rows = require_objects(folder / RECORDINGS, FeatureCacheError)
    return ClipList(
        Clip(f"c{number:06d}", video=folder / row["video"], peak_frame=row["peak_frame"])
        for number in range(count)
        for row in [rows[number % len(rows)]]
    )
