"""The fusion variant of a model. The exporter replaces this module by one that imports only the run's variant."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fusion_train.models.fusions import build_fusion


def chosen_fusion(name: str, dims: Sequence[int], **options: object) -> nn.Module | None:
    """Build the variant `name` for modalities of these feature widths."""
    return build_fusion(name, dims, **options)
