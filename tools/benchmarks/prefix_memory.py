"""Time and memory of what shares a prefix: label scores, and training rows with several questions on one clip.

    python tools/bench.py prefix-memory --llm MODEL --count 26                     # 26 labels for each of 8 clips
    python tools/bench.py prefix-memory --what questions --llm MODEL --count 4     # forward and backward of one row

MODEL is a folder of transformers; fusion and projectors are untrained, and features are random, of the published shapes
(448 soft tokens). The figures: processor seconds, tokens of the row, bytes that autograd keeps for the backward pass
(weights not counted), and the growth of the resident memory of the process at its peak. It runs on earlier commits
too, so that two of them can be compared by PYTHONPATH.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import click
import torch

from fusion_train.data.packing import Encoded, pack
from fusion_train.llm.loading import build_model, load_llm
from fusion_train.models.answering import label_log_probabilities
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.token_streams import SOFT_TOKEN, FeatureShapes
from fusion_train.presets import load_config

CLIPS = 8
PROMPT_TEXT = 120
"""Tokens of a prompt beside the soft tokens."""
LABEL_TOKENS = 3
ANSWER_TOKENS = 32
PAGE_BYTES = 4096
POLL_S = 0.002


class PeakMemory:
    """Growth of the resident memory of this process inside the block, in bytes."""

    def __enter__(self) -> PeakMemory:
        self._start = self._peak = _resident()
        self._running = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            self._peak = max(self._peak, _resident())
            time.sleep(POLL_S)

    @property
    def growth(self) -> int:
        return self._peak - self._start


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def random_features(shapes: FeatureShapes, clips: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return {name: torch.randn(clips, *getattr(shapes, name), generator=made) for name in shapes.used}


def measure_labels(model: EmotionLlama, count: int) -> dict[str, Any]:
    """Score `count` labels for every clip."""
    model.eval()
    soft = [SOFT_TOKEN] * sum(model.soft_counts.values())
    prompts = [[1, *soft, *range(100 + clip, 100 + clip + PROMPT_TEXT)] for clip in range(CLIPS)]
    labels = [[1000 + LABEL_TOKENS * label + place for place in range(LABEL_TOKENS)] for label in range(count)]
    features, present = random_features(model.shapes, CLIPS), torch.ones(CLIPS, 3, dtype=torch.bool)
    with PeakMemory() as memory:
        began = time.process_time()
        label_log_probabilities(model, prompts, features, present, labels)
        seconds = time.process_time() - began
    return {"processor_s": round(seconds, 2), "peak_MiB": round(memory.growth / 2**20)}


def measure_questions(model: EmotionLlama, count: int) -> dict[str, Any]:
    """Train on one row of `count` questions on a clip, without an optimizer step."""
    model.train()
    prefix = [1, *[SOFT_TOKEN] * sum(model.soft_counts.values()), *range(100, 180)]
    samples = [
        Encoded([*prefix, *range(300 + 40 * n, 332 + 40 * n)], list(range(1000 + 40 * n, 1032 + 40 * n)), "clip")
        for n in range(count)
    ]
    packed = pack(samples)
    row = {
        "token_ids": packed.token_ids,
        "position_ids": packed.layout.position_ids(),
        "kept": packed.kept,
        "targets": packed.targets,
        "owners": packed.owners,
        "layout": packed.layout,
        "num_samples": count,
        "features": random_features(model.shapes, 1),
        "present": torch.ones(1, 3, dtype=torch.bool),
    }
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model(**row).loss_sum.backward()  # warms up
    with PeakMemory() as memory:
        began = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(**row)
        output.loss_sum.backward()
        seconds = time.process_time() - began
    return {
        "processor_s": round(seconds, 2),
        "tokens": packed.layout.length,
        "kept_MiB": round(sum(kept.values()) / 2**20),
        "peak_MiB": round(memory.growth / 2**20),
    }


MEASURES = {"labels": measure_labels, "questions": measure_questions}
OPTIONS = [
    click.Option(["--what"], type=click.Choice(list(MEASURES)), default="labels", show_default=True),
    click.Option(["--llm"], required=True, help="Folder of a causal language model of transformers."),
    click.Option(["--count"], type=int, default=4, show_default=True, help="Labels, or questions on the clip."),
]


def measure(what: str, llm: str, count: int) -> dict[str, Any]:
    """Measure one kind on an untrained fusion."""
    torch.set_num_threads(1)
    settings = [f"model.llm={llm}", "model.llm_dtype=float32", "optim.precision=fp32", "data.mixture=null"]
    config = load_config(overrides=settings)
    model = build_model(config, load_llm(llm, "float32"), FeatureShapes())
    return {"what": what, "count": count} | MEASURES[what](model, count)
