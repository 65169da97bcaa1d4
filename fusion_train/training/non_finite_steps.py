"""Non-finite steps: a step whose loss or gradient is not finite is saved, and replayed sample by sample.

    runs/perception/diverged/
        model.safetensors   trained parts before the step
        batch.json          step, its clips, sha256 of the weights

Samples are a pure function of (seed, index), so weights and a step number are all that a replay needs.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from featurecache.files.publish import make_folder, replace_bytes
from fusion_train.checkpoint import copy_strictly
from fusion_train.data.samples import Sample
from fusion_train.documents import read_document, write_document
from fusion_train.errors import CheckpointError
from fusion_train.models.parts import learning_parameters, trained_parameters
from fusion_train.run import Run, absolute
from fusion_train.run_context import RunContext, build_context
from fusion_train.training.resume import refuse_other_draws
from fusion_train.training.sample_stream import make_stream

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Replayed:
    """One sample of the step, computed alone and without dropout."""

    sample: Sample
    loss: float
    """Mean loss per supervised token."""
    gradient_norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def keep_for_replay(run: Run, context: RunContext, step: int, clip_ids: list[str]) -> None:
    """Save the weights and the clips of a step for its replay."""
    make_folder(run.diverged)
    tensors = {name: p.detach().cpu().contiguous() for name, p in trained_parameters(context.model).items()}
    replace_bytes(run.diverged / WEIGHTS, save(tensors))
    about = {"step": step, "clips": clip_ids, "sha256": _sha256(run.diverged / WEIGHTS)}
    write_document(run.diverged / "batch.json", about)


def replay(run: Run, *, store: str | None = None, clips: str | None = None) -> tuple[int, list[Replayed]]:
    """Compute every sample of the saved step alone; returns the step and one result per sample.

    Raises:
        CheckpointError: the run did not diverge, or damaged files.
    """
    description, weights = run.diverged / "batch.json", run.diverged / WEIGHTS
    if not description.is_file():
        raise CheckpointError(str(run.folder), expected="a step kept for replay", got="no diverged/batch.json")
    about = read_document(description, CheckpointError, "a step kept for replay")
    step, digest = about.get("step"), about.get("sha256")
    if type(step) is not int or not weights.is_file() or (digest is not None and _sha256(weights) != digest):
        raise CheckpointError(
            str(run.diverged),
            expected="the step and the weights that were kept",
            got="others",
            next_step=f"Train on to meet the step again: fusion-train resume {run.folder}.",
        )
    record, config = run.record(), run.config()
    refuse_other_draws(run, record)
    context = build_context(
        config,
        store or absolute(record.store, run.folder),
        clips or absolute(record.clips, run.folder),
        fingerprints=record.fingerprints,
        sets=record.label_sets,
    )
    copy_strictly(load_file(weights), trained_parameters(context.model), str(run.diverged))
    context.model.eval()
    stream = make_stream(context, lambda text: None, kept=run.pool)
    first, size = step * config.optim.batch_size, config.optim.batch_size
    return step, [_alone(context, stream.draw(first + number)) for number in range(size)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _alone(context: RunContext, sample: Sample) -> Replayed:
    batch: Any = context.collator([sample])
    context.model.zero_grad()
    loss = context.model(**batch.to(context.device).tensors()).loss_sum / batch.num_supervised
    loss.backward()
    gradients = [p.grad for p in learning_parameters(context.model).values() if p.grad is not None]
    norm = float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
    return Replayed(sample, float(loss.detach()), norm)
