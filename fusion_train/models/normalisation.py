"""Mean and standard deviation of features, by which a probe normalises its tokens.

Encoders give values of very different sizes: of whisper-base, the standard deviations of the 512 values of a token lie
between 0.09 and 8. A linear classifier is commonly fitted on normalised values; a fusion learns faster from them too.

Shapes: N clips, K tokens of width D; statistics (D,) are over clips and tokens. A value that is constant has the scale
1. Knows no clip and no store.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CONSTANT = 1e-6
"""A standard deviation below this share of the largest absolute value is rounding of a constant."""


def statistics_of(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and the standard deviation (D,) of tokens (N, K, D) as float32, computed in float64."""
    rows = tokens.flatten(0, 1).double()
    mean = rows.mean(dim=0)
    scale = rows.sub_(mean).square_().mean(dim=0).sqrt()
    constant = scale <= CONSTANT * mean.abs()
    return mean.float(), torch.where(constant, 1.0, scale).float()


class Normalisation(nn.ModuleDict):
    """Modality -> mean and scale; parameters that do not learn, so that they are saved with the weights."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__({modality: _Statistics(width) for modality, width in widths.items()})

    @torch.no_grad()
    def fit(self, features: Mapping[str, Tensor]) -> None:
        """Take the statistics of features: modality -> (N, K, D); a modality without a clip keeps mean 0, scale 1."""
        for modality, tokens in features.items():
            if len(tokens):
                for parameter, value in zip(self[modality].parameters(), statistics_of(tokens), strict=True):
                    parameter.copy_(value)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalise modality -> (B, K, D) of any float dtype; the result is float32."""
        return {modality: self[modality](tokens) for modality, tokens in features.items()}


class _Statistics(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens.to(self.mean.dtype) - self.mean) / self.scale


@torch.no_grad()
def fold_into(fusion: nn.Module, normalisation: Mapping[str, tuple[Tensor, Tensor]]) -> bool:
    """Change the first layers of a fusion so that it computes from plain features what it did from normalised ones.

    Args:
        normalisation: modality -> mean and scale (D,), in the order in which the fusion takes the modalities.

    Returns:
        False for a fusion that does not begin with one linear layer per modality; it is unchanged then.
    """
    networks = getattr(fusion, "prepare", None)
    firsts = [network[0] for network in networks if isinstance(network, nn.Sequential)] if networks is not None else []
    layers = [first for first in firsts if isinstance(first, nn.Linear)]
    if len(layers) != len(normalisation):
        return False
    for first, (mean, scale) in zip(layers, normalisation.values(), strict=True):
        first.weight.div_(scale.to(first.weight))
        first.bias.sub_(first.weight @ mean.to(first.weight))
    return True
