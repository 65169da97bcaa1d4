"""Where the time of a prediction went, in seconds, by stage.

decode      media -> the encoders' inputs, summed over threads
encode      inputs -> features
prefix      features and prompt through the language model, once a clip
text        everything after the prefix: labels scored or tokens generated
Stages overlap, so their sum may exceed `wall`.
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
    """From the start of the prediction, the model being loaded, to its first answer."""
    num_clips: int = 0
    """Answered."""
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.stages[stage] += seconds

    @contextmanager
    def spent(self, stage: str) -> Iterator[None]:
        """Count the block's duration towards a stage."""
        began = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - began)

    def line(self) -> str:
        """One line for a person."""
        rate = self.num_clips / self.wall_s if self.wall_s else 0.0
        parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.stages.items())
        clips = "1 clip" if self.num_clips == 1 else f"{self.num_clips} clips"
        first = "" if self.first_answer_s is None else f", first answer after {self.first_answer_s:.2f} s"
        return f"{clips} in {self.wall_s:.2f} s ({rate:.2f} clips/s){first}: {parts}; loading {self.load_s:.2f} s"


@contextmanager
def timing_answers(llm: nn.Module, timings: Timings) -> Iterator[None]:
    """Split the block's duration in `prefix`, the language model's first forward pass, and `text`, the rest."""
    began = time.perf_counter()
    first: list[float] = []

    def leave(*_: Any) -> None:
        if not first:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            first.append(time.perf_counter())

    hook = llm.register_forward_hook(leave)
    try:
        yield
    finally:
        hook.remove()
        ended = time.perf_counter()
        # What comes before the first pass is the fusion and the splice, part of the prefix.
        prefix_s = (first[0] - began) if first else 0.0
        timings.add("prefix", prefix_s)
        timings.add("text", ended - began - prefix_s)
