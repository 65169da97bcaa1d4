"""MISA: each modality as a part that all share and a part of its own, held apart by three losses.

    u_m = LayerNorm(ReLU(Linear(H→H)(MLP_m)))       p_m = σ(Linear_m(u_m))  private      s_m = σ(Linear(u_m))  shared
    [p_1 … p_M s_1 … s_M] (2M vectors) -> one transformer layer of 2 heads -> concatenation (2M·H) -> Linear(→ M·H),
    dropout, ReLU -> Linear(M·H→256)

Losses, added in training: similarity 1.0 · CMD of five moments between the shared parts, mean over pairs; difference
0.3 · ‖AᵀB‖² of each private part with its shared part and of the private parts; reconstruction 1.0 · squared error of
Linear_m(p_m + s_m) to u_m, mean over modalities. Similarity and difference compare the clips of a batch; a clip without
a modality does not count for it.
Source: Hazarika et al., ACM Multimedia 2020 (arXiv 2005.03545) section 3. Widths and weights of the losses were not
compared with the released code (declare-lab/MISA). It reads one vector per modality and clip (`num_tokens: 1`); with
more tokens, each is such a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from fusion_train.models.fusion_inputs import ModalityMLPs

NUM_HEADS = 2
FEED_FORWARD = 2048
"""Width inside the transformer layer: the default of PyTorch, which the released code takes."""
NUM_MOMENTS = 5
SIMILARITY, DIFFERENCE, RECONSTRUCTION = 1.0, 0.3, 1.0
"""Weights of the three losses."""
TINY = 1e-12


@dataclass(frozen=True)
class Spaces:
    """Vectors (B, K, H) of each modality."""

    unified: list[Tensor]
    private: list[Tensor]
    shared: list[Tensor]


class Misa(nn.Module):
    """Modality-invariant and modality-specific parts."""

    def __init__(
        self, dims: Sequence[int], hidden: Sequence[int] = (512, 128), out_dim: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        dim, count = hidden[-1], len(dims)
        self.prepare = ModalityMLPs(dims, hidden, dropout)
        self.unify = nn.ModuleList(nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim)) for _ in dims)
        self.private = nn.ModuleList(nn.Sequential(nn.Linear(dim, dim), nn.Sigmoid()) for _ in dims)
        self.shared = nn.Sequential(nn.Linear(dim, dim), nn.Sigmoid())
        self.reconstruct = nn.ModuleList(nn.Linear(dim, dim) for _ in dims)
        self.mix = nn.TransformerEncoderLayer(
            dim, NUM_HEADS, dim_feedforward=FEED_FORWARD, dropout=dropout, batch_first=True
        )
        self.fuse = nn.Sequential(
            nn.Linear(2 * count * dim, count * dim), nn.Dropout(dropout), nn.ReLU(), nn.Linear(count * dim, out_dim)
        )

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Sequence of (B, K, D_m), `present` (B, M) bool -> (B, K, out_dim)."""
        return self._fused(self._spaces(features, present), present)

    def with_loss(self, features: Sequence[Tensor], present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens of `forward`, and the weighted sum of the three losses, a scalar."""
        spaces = self._spaces(features, present)
        clips = features[0].shape[0]
        has = torch.ones(clips, len(features), device=features[0].device) if present is None else present.float()
        rows = has.repeat_interleave(features[0].shape[1], dim=0)  # [b * k, m]
        similarity = self._similarity(spaces, rows)
        difference = self._difference(spaces, rows)
        errors = [
            _weighted_mean((decode(private + shared) - unified).square().mean(dim=-1).flatten(), rows[:, m])
            for m, (decode, private, shared, unified) in enumerate(
                zip(self.reconstruct, spaces.private, spaces.shared, spaces.unified, strict=True)
            )
        ]
        reconstruction = torch.stack(errors).mean()
        loss = SIMILARITY * similarity + DIFFERENCE * difference + RECONSTRUCTION * reconstruction
        return self._fused(spaces, present), loss

    def _spaces(self, features: Sequence[Tensor], present: Tensor | None) -> Spaces:
        prepared = self.prepare(features, present)
        unified = [layer(tokens) for layer, tokens in zip(self.unify, prepared, strict=True)]
        private = [layer(tokens) for layer, tokens in zip(self.private, unified, strict=True)]
        return Spaces(unified, private, [self.shared(tokens) for tokens in unified])

    def _fused(self, spaces: Spaces, present: Tensor | None) -> Tensor:
        vectors = torch.stack([*spaces.private, *spaces.shared], dim=2)  # [b, k, 2m, h]
        clips, count = vectors.shape[:2]
        if present is None:
            mixed = self.mix(vectors.flatten(0, 1))  # [b * k, 2m, h]
        else:
            absent = ~present.repeat(1, 2).repeat_interleave(count, dim=0)  # [b * k, 2m]
            unread = absent & ~absent.all(dim=1, keepdim=True)  # a clip without any modality reads zeros
            vectors = torch.where(absent[:, :, None], 0, vectors.flatten(0, 1))
            mixed = torch.where(absent[:, :, None], 0, self.mix(vectors, src_key_padding_mask=unread))
        return self.fuse(mixed.reshape(clips, count, -1))  # [b, k, out]

    def _similarity(self, spaces: Spaces, rows: Tensor) -> Tensor:
        """Mean over pairs of modalities of the CMD of their shared parts; 0 with one modality."""
        pairs = [
            central_moment_discrepancy(
                spaces.shared[m].flatten(0, 1), spaces.shared[n].flatten(0, 1), rows[:, m] * rows[:, n]
            )
            for m, n in combinations(range(len(spaces.shared)), 2)
        ]
        return torch.stack(pairs).mean() if pairs else rows.new_zeros(())

    def _difference(self, spaces: Spaces, rows: Tensor) -> Tensor:
        """Sum of the overlap of each private part with its shared part, and with the other private parts."""
        total = rows.new_zeros(())
        for m, (private, shared) in enumerate(zip(spaces.private, spaces.shared, strict=True)):
            total = total + overlap(private.flatten(0, 1), shared.flatten(0, 1), rows[:, m])
        for m, n in combinations(range(len(spaces.private)), 2):
            total = total + overlap(
                spaces.private[m].flatten(0, 1), spaces.private[n].flatten(0, 1), rows[:, m] * rows[:, n]
            )
        return total


def central_moment_discrepancy(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Return the distance of the means plus those of the central moments 2 to 5 of rows (n, H) with weights (n,)."""
    mean_x, mean_y = _weighted_mean(x, weights), _weighted_mean(y, weights)
    total = _length(mean_x - mean_y)
    x, y = x - mean_x, y - mean_y
    for moment in range(2, NUM_MOMENTS + 1):
        total = total + _length(_weighted_mean(x**moment, weights) - _weighted_mean(y**moment, weights))
    return total


def overlap(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Return the mean square of the entries of XᵀY, of centred rows (n, H) divided by their lengths, weights (n,)."""
    x, y = (side - _weighted_mean(side, weights) for side in (x, y))
    x, y = (side / (side.norm(dim=1, keepdim=True).detach() + 1e-6) * weights[:, None] for side in (x, y))
    return (x.T @ y).square().mean()


def _weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean over the rows (n, …) with weights (n,); 0 if all weights are 0."""
    return torch.tensordot(weights, rows, dims=1) / weights.sum().clamp(min=1)


def _length(vector: Tensor) -> Tensor:
    return (vector.square().sum() + TINY).sqrt()  # the root of 0 has no gradient
