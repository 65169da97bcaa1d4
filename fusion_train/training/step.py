"""One optimizer step of the models that train on the same batches: forward and backward of micro-batches, then AdamW.

    micro-batch -> every model's loss -> gradients -> average over processes -> clip -> AdamW -> moving average

The loss of a step is a mean over its global batch (see `loss`), whatever the number of devices and micro-batches.
Dropout is a pure function of (seed, step, process). The host waits for the device once per step, in `read`: losses and
gradient norms of all models come back together and decide which of them are updated. Until then a GPU has its kernels
queued.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from fusion_train.config import Config
from fusion_train.data.batches import Batch
from fusion_train.errors import DivergedError
from fusion_train.models.emotion_llama import ModelOutput
from fusion_train.models.model_group import ModelGroup, OneModel
from fusion_train.models.parts import learning_parameters, part_of
from fusion_train.seeding import derive
from fusion_train.training.averaging import Averaged
from fusion_train.training.loss import LossPer, loss_of, total_of
from fusion_train.training.optimizer import gradient_norms, set_learning_rates
from fusion_train.training.parallel import average_gradients, drop_unused
from fusion_train.training.step_metrics import Counts, MetricsAccumulator

LOSS, USED = "loss", "used"
"""Beside the names of the parts in what a step measures: its loss, and which parameters had a gradient."""


@dataclass
class Learner:
    """What a step changes of one model, and what it reports."""

    config: Config
    model: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    metrics: MetricsAccumulator
    averaged: Averaged | None = None
    rates: dict[str, float] = field(default_factory=dict)
    """Learning rate by part, of the last step."""
    norms: dict[str, float] = field(default_factory=dict)
    """Gradient norm by part, of the last step."""
    loss: float = math.nan
    """Of the last step, over all processes."""
    problem: str | None = None
    """`loss` or `gradient`, where that was not finite in the last step: the weights are those before the step."""


def train_step(
    models: OneModel | ModelGroup,
    learners: Sequence[Learner],
    places: Sequence[int],
    batches: Sequence[Batch],
    step: int,
) -> None:
    """Train all models that are present on the micro-batches of a step; each learner then holds its loss and norms.

    Args:
        learners: one per present model.
        places: the places of these models in `models`.
        batches: micro-batches of this process.
    """
    accelerator = learners[0].accelerator
    totals = {per: _total(accelerator, batches, per) for per in {learner.config.optim.loss_per for learner in learners}}
    by_place = dict(zip(places, learners, strict=True))
    losses = {place: torch.zeros((), device=accelerator.device) for place in places}
    for place, learner in by_place.items():
        learner.rates = set_learning_rates(learner.optimizer, step, learner.config.optim)
        models.seed(place, derive(learner.config.seed, "dropout", step, accelerator.process_index))
    for batch in batches:

        def scaled_loss(place: int, output: ModelOutput, batch: Batch = batch) -> Tensor:
            learner = by_place[place]
            per, scaler = learner.config.optim.loss_per, learner.accelerator.scaler
            part = loss_of(output, batch, per)
            losses[place] += part.detach() / totals[per]
            # Gradients are averaged over processes; the loss is a mean over the samples of all of them.
            loss = part * (accelerator.num_processes / totals[per])
            return loss if scaler is None else scaler.scale(loss)

        outputs = models.learn(batch.to(accelerator.device).tensors(), scaled_loss, accelerator.autocast)
        for place, output in zip(places, outputs, strict=True):
            by_place[place].metrics.count(batch.sample_stats, output.sample_losses)
    measured = [_measure(by_place[place], accelerator.reduce(losses[place], reduction="sum")) for place in places]
    for learner, of_step in zip(learners, read(measured), strict=True):
        learner.problem = _update(learner, of_step, step)


def diverged(learner: Learner, subject: str, batches: Sequence[Batch], next_step: str) -> DivergedError:
    """The error for a learner with a `problem`; it names the clips of the step on all processes."""
    value = learner.loss if learner.problem == "loss" else learner.norms["all"]
    return DivergedError(
        subject,
        expected=f"a finite {learner.problem}",
        got=str(value),
        next_step=f"Lower optim.lr or set optim.precision=bf16. {next_step}The clips of this step:",
        problems=gather_object([clip for batch in batches for clip in batch.clip_ids]),
    )


def over_processes(counts: Counts) -> Counts:
    """Add up the counts of all processes."""
    total = Counts()
    for counts_of_process in gather_object([counts]):
        total.add(counts_of_process)
    return total


def read(tensors: Sequence[Mapping[str, Tensor]]) -> list[dict[str, list[float]]]:
    """Copy named float32 tensors of any shape to the host, all in one copy: the one point at which a step waits."""
    flat = torch.cat([tensor.flatten() for named in tensors for tensor in named.values()])
    values = iter(flat.tolist())
    return [{name: list(islice(values, tensor.numel())) for name, tensor in named.items()} for named in tensors]


def _total(accelerator: Accelerator, batches: Sequence[Batch], per: LossPer) -> Tensor:
    """What the loss of the step is divided by, over all processes: a float32 scalar on the device."""
    total = torch.full((), sum(total_of(batch, per) for batch in batches), device=accelerator.device)
    reduced: Tensor = accelerator.reduce(total, reduction="sum")
    return reduced.float()


def _measure(learner: Learner, loss: Tensor) -> dict[str, Tensor]:
    """Average and clip the gradients; returns the loss and the norms by part, on the device."""
    used = average_gradients(learning_parameters(learner.model).values())
    learner.accelerator.unscale_gradients(learner.optimizer)
    norms = gradient_norms(learner.model, learner.config.optim.max_grad_norm)
    return {LOSS: loss, **norms} | ({} if used is None else {USED: used})


def _update(learner: Learner, measured: Mapping[str, Sequence[float]], step: int) -> str | None:
    """Step and average; returns what is not finite, in which case the weights stay."""
    (learner.loss,) = measured[LOSS]
    learner.norms = {part: values[0] for part, values in measured.items() if part not in (LOSS, USED)}
    if USED in measured:
        learning = learning_parameters(learner.model)
        drop_unused(learning.values(), measured[USED])
        unused = set(learner.norms) - {part_of(name) for name, p in learning.items() if p.grad is not None} - {"all"}
        for part in unused:
            del learner.norms[part]
    problem = None
    if not math.isfinite(learner.loss):
        problem = "loss"
    # A gradient scaler skips a step whose gradients are not finite, and lowers its scale.
    elif math.isfinite(learner.norms["all"]) or learner.accelerator.scaler is not None:
        learner.optimizer.step()
        if learner.averaged is not None:
            learner.averaged.update(step)
    else:
        problem = "gradient"
    learner.optimizer.zero_grad(set_to_none=True)
    return problem
