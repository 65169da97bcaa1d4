"""The loss of a step: a mean over the supervised tokens of its global batch, or over its samples.

token     every supervised token has the same weight, so a reason of 60 tokens weighs as much as 30 labels of 2 tokens
sample    mean over the tokens of a sample, then over samples, so every answer has the same weight; the published set-up
          computes this (one sample per GPU, mean over its tokens, gradients averaged over GPUs)

Both are sums over micro-batches divided by one total, so they do not depend on micro-batches, packing, shared prefixes
or the number of processes. Source: released code, `train.py` with batch_size_train 1 (see docs/guides/training.md).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fusion_train.models.emotion_llama import ModelOutput
from fusion_train.models.host_copies import to_device

LossPer = Literal["sample", "token"]
LOSS_PER: tuple[LossPer, ...] = ("sample", "token")


def total_of(batch: Any, per: LossPer) -> int:
    """Return what a micro-batch adds to the total that its loss is divided by: supervised tokens, or samples."""
    return batch.num_supervised if per == "token" else len(batch.sample_stats)


def loss_of(output: ModelOutput, batch: Any, per: LossPer) -> Tensor:
    """Return a micro-batch's part of the loss, before division by the total: a scalar with its graph."""
    if per == "token":
        return output.loss_sum
    lengths = torch.tensor([max(stats.num_supervised, 1) for stats in batch.sample_stats], dtype=torch.float32)
    return (output.sample_losses / to_device(lengths, output.sample_losses.device)).sum()
