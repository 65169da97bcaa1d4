"""The few averages of a clip's tokens that a probe reads: equal to the bit in training and in an exported probe.

Shapes: n clips, K_m tokens of width D_m of modality m, K averages.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fusion_train.models.fusion_inputs import resample


def kept_tokens(modality: str, tokens: Tensor) -> Tensor:
    """Return the tokens (n, K_m, D_m) that are averaged: of an image only the first, its CLS token."""
    return tokens[:, :1] if modality == "image" else tokens


def token_average(modality: str, tokens: Tensor, count: int) -> Tensor:
    """Average tokens (n, K_m, D_m) on the CPU to (n, K, D_m) float16; K is 1 for an image, else `count`."""
    kept = kept_tokens(modality, tokens.cpu())
    out = torch.empty((len(kept), 1 if modality == "image" else count, kept.shape[2]), dtype=torch.float16)
    average(kept, out)
    return out


def average(tokens: Tensor, out: Tensor) -> None:
    """Average tokens (n, K_m, D_m) into `out` (n, K, D_m)."""
    share, rest = divmod(tokens.shape[1], out.shape[1])
    if rest:
        out.copy_(resample(tokens.float(), out.shape[1]))
    elif share == 1:
        out.copy_(tokens)
    elif tokens.dtype == torch.float16 and share & (share - 1) == 0:
        out.copy_(_average_halves(tokens, share).view_as(out))
    else:
        out.copy_(tokens.unflatten(1, (out.shape[1], share)).float().mean(dim=2))


def _average_halves(tokens: Tensor, share: int) -> Tensor:
    """Average every `share` (a power of two) rows: (n, K_m, D_m) float16 -> (n · K, D_m).

    `embedding_bag` adds the rows in float32 while it reads them, which takes half the time of a conversion to float32.
    The result is equal to the bit: `1 / share` is exact, and the sum is rounded once.
    """
    rows = tokens.reshape(-1, tokens.shape[2])
    weights = torch.full((len(rows),), 1 / share, dtype=tokens.dtype)
    return functional.embedding_bag(
        torch.arange(len(rows)), rows, torch.arange(0, len(rows), share), mode="sum", per_sample_weights=weights
    )
