"""MMIM: a fusion that keeps mutual information, between the modalities and between each of them and the fused vector.

    H_m = MLP_m (B, K, 128); z = tanh(Linear(tanh(Linear(dropout [H_1 … H_M])))) (B, K, 128) -> Linear(128→256)

Losses, added in training, on the means h_m and z̄ over the tokens of a clip: 0.1 · the contrastive prediction (CPC) of
every h_m from z̄ among the clips of the batch, and −0.1 · the log-likelihood of h_n under a Gaussian whose mean and log
variance two MLPs predict from h_m, for every pair m < n. A clip without a modality does not count for it.
Source: Han et al., EMNLP 2021 (arXiv 2109.00412) sections 3.3 and 3.4; released code declare-lab/Multimodal-Infomax, in
the form of MERTools at fb8dda0 (toolkit/models/mmim.py): one optimiser, no estimate of the entropy from a memory of
labels. Theirs predicts sound and picture from the text; the likelihood here has its normaliser, and the log variance
lies between −1 and 1 (tanh), so that neither can grow without bound. `num_tokens: 1` is their one vector per clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion_train.models.fusion_inputs import ModalityMLPs

CONTRAST, LIKELIHOOD = 0.1, 0.1
"""Weights of the two losses."""


class Mmim(nn.Module):
    """Concatenation with two losses on mutual information."""

    def __init__(
        self, dims: Sequence[int], hidden: Sequence[int] = (512, 128), out_dim: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        dim, count = hidden[-1], len(dims)
        self.prepare = ModalityMLPs(dims, hidden, dropout)
        self.fuse = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(count * dim, dim), nn.Tanh(), nn.Linear(dim, dim), nn.Tanh()
        )
        self.output = nn.Linear(dim, out_dim)
        self.predict = nn.ModuleList(nn.Linear(dim, dim) for _ in dims)
        self.pairs = list(combinations(range(count), 2))
        self.means = nn.ModuleList(_two_layers(dim) for _ in self.pairs)
        self.log_variances = nn.ModuleList(nn.Sequential(_two_layers(dim), nn.Tanh()) for _ in self.pairs)

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Sequence of (B, K, D_m), `present` (B, M) bool -> (B, K, out_dim)."""
        return self.output(self.fuse(torch.cat(self.prepare(features, present), dim=-1)))

    def with_loss(self, features: Sequence[Tensor], present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens of `forward`, and the weighted sum of the losses, a scalar."""
        prepared = self.prepare(features, present)
        fused = self.fuse(torch.cat(prepared, dim=-1))  # [b, k, h]
        clips, vectors = fused.mean(dim=1), [tokens.mean(dim=1) for tokens in prepared]  # [b, h]
        has = torch.ones(len(clips), len(vectors), device=clips.device) if present is None else present.float()
        loss = clips.new_zeros(())
        for m, vector in enumerate(vectors):
            loss = loss + CONTRAST * contrastive_loss(vector, self.predict[m](clips), has[:, m])
        for number, (m, n) in enumerate(self.pairs):
            mean, log_variance = self.means[number](vectors[m]), self.log_variances[number](vectors[m])
            likelihood = -((vectors[n] - mean).square() / log_variance.exp() + log_variance).sum(dim=1) / 2
            both = has[:, m] * has[:, n]
            loss = loss - LIKELIHOOD * (likelihood @ both) / both.sum().clamp(min=1)
        return self.output(fused), loss


def contrastive_loss(vectors: Tensor, predicted: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of −log softmax of each vector's own prediction: (n, H) twice, weights (n,) of 0 or 1.

    Vectors and predictions have length 1; those of weight 0 take no part.
    """
    scores = F.normalize(vectors, dim=1) @ F.normalize(predicted, dim=1).T  # [n, n]
    scores = scores.masked_fill(weights[None] == 0, -1e9)  # finite: rows of weight 0 may see no other
    losses = scores.logsumexp(dim=1) - scores.diagonal()
    return torch.where(weights > 0, losses, 0).sum() / weights.sum().clamp(min=1)


def _two_layers(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
