"""AdamW over the trained parts: groups, schedule, gradient norms.

Published: AdamW, betas 0.9/0.999, weight decay 0.05 (0 for biases and norms); linear warm-up 1e-6→1e-4 over 1,000
steps, cosine to 1e-6. Each part (fusion, projectors, lora) has its own groups; their rate is the schedule's rate times
the part's factor. A frozen part has no group and no gradient. The rate depends only on the step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fusion_train.config import OptimConfig
from fusion_train.errors import ConfigError
from fusion_train.models.parts import PARTS, learning_parameters, part_of


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW with two groups per part: matrices with weight decay, biases and norms (one dimension) without.

    On a GPU it is the fused AdamW: one kernel for many parameters, and a gradient scaler skips a step on the device,
    where it would otherwise wait for the device.

    Raises:
        ConfigError: every part is frozen.
    """
    learning = learning_parameters(model)
    if not learning:
        raise ConfigError("model.frozen", expected="a part that learns", got="every part frozen")
    groups = []
    for part in PARTS:
        parameters = [parameter for name, parameter in learning.items() if part_of(name) == part]
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        for chosen, decay in ((matrices, optim.weight_decay), (vectors, 0.0)):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "part": part})
    fused = True if all(parameter.is_cuda for parameter in learning.values()) else None  # None: torch chooses
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused)


def learning_rate(step: int, optim: OptimConfig) -> float:
    """Linear warm-up, then a cosine to `min_lr` at the last step; it begins after the warm-up, or at step 0."""
    if step < optim.warmup_steps:
        return optim.warmup_lr + (optim.lr - optim.warmup_lr) * step / optim.warmup_steps
    begin = optim.warmup_steps if optim.cosine_from == "warmup" else 0
    progress = (step - begin) / max(1, optim.steps - begin)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, optim: OptimConfig) -> dict[str, float]:
    """Set the rate of every group for this step; returns part -> rate."""
    rate = learning_rate(step, optim)
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["part"]] = rate * getattr(optim.lr_factors, group["part"])
    return rates


def gradient_norms(model: nn.Module, max_norm: float | None = None) -> dict[str, Tensor]:
    """Norm of the gradients by part, and of all as "all", scalars on the device; clip all together to `max_norm`.

    Gradients must be unscaled. Parts without a gradient are left out.
    """
    by_part: dict[str, list[Tensor]] = {}
    learning = learning_parameters(model)
    for name, parameter in learning.items():
        if parameter.grad is not None:
            by_part.setdefault(part_of(name) or "", []).append(parameter.grad)
    norms = {part: _whole(get_total_norm(gradients)) for part, gradients in by_part.items()}
    device = next(iter(learning.values())).device
    total = torch.stack(list(norms.values())).norm() if norms else torch.zeros((), device=device)
    if max_norm is not None:
        clip_grads_with_norm_([p for p in model.parameters() if p.requires_grad], max_norm, total)
    return {**norms, "all": total}


def _whole(norm: Tensor) -> Tensor:
    """The norm over all shards of a sharded gradient."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
