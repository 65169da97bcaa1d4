"""One optimizer step of the models that train on the same batches: forward and backward of micro-batches, then AdamW.

    micro-batch -> every model's loss -> gradients -> average over processes -> clip -> AdamW -> moving average

The loss of a step is a mean over its global batch (see `loss`), whatever the number of devices and micro-batches.
Dropout is a pure function of (seed, step, process).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from fusion_train.config import Config
from fusion_train.data.batches import Batch
from fusion_train.errors import DivergedError
from fusion_train.models.emotion_llama import ModelOutput
from fusion_train.models.model_group import ModelGroup, OneModel
from fusion_train.models.parts import learning_parameters
from fusion_train.seeding import derive
from fusion_train.training.averaging import Averaged
from fusion_train.training.loss import LossPer, loss_of, total_of
from fusion_train.training.optimizer import gradient_norms, set_learning_rates
from fusion_train.training.parallel import average_gradients
from fusion_train.training.step_metrics import Counts, MetricsAccumulator


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
    device, num_processes = accelerator.device, accelerator.num_processes
    totals = {per: _total(accelerator, batches, per) for per in {learner.config.optim.loss_per for learner in learners}}
    by_place = dict(zip(places, learners, strict=True))
    losses = {place: torch.zeros((), device=device) for place in places}
    for place, learner in by_place.items():
        learner.rates = set_learning_rates(learner.optimizer, step, learner.config.optim)
        models.seed(place, derive(learner.config.seed, "dropout", step, accelerator.process_index))
    for batch in batches:

        def scaled_loss(place: int, output: ModelOutput, batch: Batch = batch) -> Tensor:
            learner = by_place[place]
            per, scaler = learner.config.optim.loss_per, learner.accelerator.scaler
            # Gradients are averaged over processes; the loss is a mean over the samples of all of them.
            loss = loss_of(output, batch, per) * (num_processes / totals[per])
            return loss if scaler is None else scaler.scale(loss)

        outputs = models.learn(batch.to(device).tensors(), scaled_loss, accelerator.autocast)
        for place, output in zip(places, outputs, strict=True):
            learner = by_place[place]
            per = learner.config.optim.loss_per
            learner.metrics.count(batch.sample_stats, output.sample_losses)
            losses[place] += loss_of(output, batch, per) / totals[per]
    for place, learner in by_place.items():
        learner.loss = float(accelerator.reduce(losses[place], reduction="sum"))
        learner.problem = _update(learner, step)


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


def _total(accelerator: Accelerator, batches: Sequence[Batch], per: LossPer) -> int:
    """What the loss of the step is divided by, over all processes."""
    total = torch.tensor(sum(total_of(batch, per) for batch in batches), device=accelerator.device)
    return int(accelerator.reduce(total, reduction="sum"))


def _update(learner: Learner, step: int) -> str | None:
    """Clip the gradients, step and average; returns what is not finite, in which case the weights stay."""
    problem = None
    if math.isfinite(learner.loss):
        average_gradients(learning_parameters(learner.model).values())
        learner.accelerator.unscale_gradients(learner.optimizer)
        learner.norms = gradient_norms(learner.model, learner.config.optim.max_grad_norm)
        # A gradient scaler skips a step whose gradients are not finite, and lowers its scale.
        if math.isfinite(learner.norms["all"]) or learner.accelerator.scaler is not None:
            learner.optimizer.step()
            if learner.averaged is not None:
                learner.averaged.update(step)
        else:
            problem = "gradient"
    else:
        problem = "loss"
    learner.optimizer.zero_grad(set_to_none=True)
    return problem
