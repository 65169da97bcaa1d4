"""Measure the time of a prediction in seconds, by stage.

decode      media -> inputs of the encoders, summed over threads
encode      inputs -> features
prefix      features and prompt through the language model, once per clip
text        everything after the prefix: scoring labels or generating tokens
Stages overlap, so their sum may exceed the wall time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

STAGES = ("decode", "encode", "prefix", "text")


@dataclass
class Timings:
    """Seconds by stage; safe to add to from several threads."""

    load_s: float = 0.0
    wall_s: float = 0.0
    first_answer_s: float | None = None
    """From the start of the prediction to its first answer, without loading the model."""
    num_clips: int = 0
    """Number of answered clips."""
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        with self._lock:
            self.stages[stage] += seconds

    @contextmanager
    def spent(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        began = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - began)

    def line(self) -> str:
        """Return a summary on one line."""
        rate = self.num_clips / self.wall_s if self.wall_s else 0.0
        parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.stages.items())
        clips = "1 clip" if self.num_clips == 1 else f"{self.num_clips} clips"
        first = "" if self.first_answer_s is None else f", first answer after {self.first_answer_s:.2f} s"
        return f"{clips} in {self.wall_s:.2f} s ({rate:.2f} clips/s){first}: {parts}; loading {self.load_s:.2f} s"


@contextmanager
def timing_answers(llm: nn.Module, timings: Timings) -> Iterator[None]:
    """Divide the duration of the block into `prefix`, up to the end of the first forward pass of `llm`, and `text`."""
    began = time.perf_counter()
    first_pass_ended: list[float] = []

    def record_end(*_: Any) -> None:
        if not first_pass_ended:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            first_pass_ended.append(time.perf_counter())

    hook = llm.register_forward_hook(record_end)
    try:
        yield
    finally:
        hook.remove()
        ended = time.perf_counter()
        # Fusion and splice run before the first pass; they count as prefix.
        prefix_s = (first_pass_ended[0] - began) if first_pass_ended else 0.0
        timings.add("prefix", prefix_s)
        timings.add("text", ended - began - prefix_s)
