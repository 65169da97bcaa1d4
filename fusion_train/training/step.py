"""One optimizer step: forward and backward of its micro-batches, one average over processes, AdamW.

The loss of a step is a mean over its global batch (see `loss`), whatever the number of devices and micro-batches.
Dropout is a pure function of (seed, step, process).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from fusion_train.config import Config
from fusion_train.data.batches import Batch
from fusion_train.errors import DivergedError
from fusion_train.models.parts import learning_parameters
from fusion_train.seeding import derive
from fusion_train.training.loss import loss_of, total_of
from fusion_train.training.optimizer import gradient_norms
from fusion_train.training.parallel import average_gradients
from fusion_train.training.step_metrics import Counts, Tally


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    tally: Tally,
    accelerator: Accelerator,
    config: Config,
    step: int,
) -> tuple[float, dict[str, float]]:
    """Train on the micro-batches of a step; returns the loss, gradient norms by part.

    Raises:
        DivergedError: loss or gradient is not finite; the weights are those before the step.
    """
    torch.manual_seed(derive(config.seed, "dropout", step, accelerator.process_index))
    per = config.optim.loss_per
    parts = torch.tensor(sum(total_of(batch, per) for batch in batches), device=accelerator.device)
    total = int(accelerator.reduce(parts, reduction="sum"))
    loss = torch.zeros((), device=accelerator.device)
    for batch in batches:
        with accelerator.autocast():
            output = model(**batch.to(accelerator.device).tensors())
        part = loss_of(output, batch, per)
        # Gradients are averaged over processes; the loss is a mean over what all of them have.
        accelerator.backward(part * (accelerator.num_processes / total))
        tally.count(batch.asked, output.sample_losses)
        loss += part.detach() / total
    mean_loss = float(accelerator.reduce(loss, reduction="sum"))
    _refuse_not_finite("loss", mean_loss, step, batches)
    average_gradients(learning_parameters(model).values())
    accelerator.unscale_gradients(optimizer)
    norms = gradient_norms(model, config.optim.max_grad_norm)
    if accelerator.scaler is None:  # a scaler skips such steps and lowers its scale
        _refuse_not_finite("gradient", norms["all"], step, batches)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return mean_loss, norms


def _refuse_not_finite(what: str, value: float, step: int, batches: Sequence[Batch]) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"step {step}",
            expected=f"a finite {what}",
            got=str(value),
            next_step="Lower optim.lr or set optim.precision=bf16. The clips of this step:",
            problems=gather_object([clip for batch in batches for clip in batch.clip_ids]),
        )


def over_processes(counts: Counts) -> Counts:
    """Add up what all processes counted."""
    whole = Counts()
    for mine in gather_object([counts]):
        whole.add(mine)
    return whole
