"""The fusion variant of the model. The exporter writes this module anew, with the run's own variant imported."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fusion_train.models.fusions import build_fusion


def chosen_fusion(name: str, dims: Sequence[int], **options: object) -> nn.Module | None:
    """Build the variant `name` for modalities of these widths."""
    return build_fusion(name, dims, **options)
