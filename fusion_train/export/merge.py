"""Fold LoRA into the weights it adapts, so that an exported model needs no peft.

W' = cast(float32(W) + scale · B A): computed in float32 and cast once. Adding in float16 would round twice.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from fusion_train.errors import ExportError


@torch.no_grad()
def merge_lora(llm: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Return the language model with its adapters folded in, changed in place; without adapters, as it is.

    Args:
        dtype: of the result; None keeps that of the base.

    Raises:
        ExportError: a merged weight does not fit the dtype.
    """
    if isinstance(llm, PeftModel):
        for name, layer in llm.named_modules():
            if isinstance(layer, LoraLayer):
                _merge(name, layer, dtype)
        llm = llm.unload()
    if dtype is not None:
        for parameter in llm.parameters():  # not llm.to(dtype): buffers, such as rotary frequencies, stay float32
            parameter.data = parameter.data.to(dtype)
        llm.config.dtype = dtype
    return llm


def _merge(name: str, layer: LoraLayer, dtype: torch.dtype | None) -> None:
    weight = layer.get_base_layer().weight
    whole = weight.float()
    for adapter in layer.active_adapters:
        whole = whole + layer.get_delta_weight(adapter).float()
    merged = whole.to(dtype or weight.dtype)
    if not torch.isfinite(merged).all():
        raise ExportError(
            name,
            expected=f"merged weights that {merged.dtype} can hold",
            got="infinite ones",
            next_step="Use --dtype bfloat16 or float32.",
        )
    weight.data = merged
