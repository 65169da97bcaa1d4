"""Find the decoder layers of a causal language model of transformers, whatever the family calls them."""

from __future__ import annotations

from torch import nn


def without_adapters(llm: nn.Module) -> nn.Module:
    """Return the model of transformers inside peft's wrapper, or `llm` itself."""
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm


def decoder_layers(llm: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the list of decoder layers and its name in the model without adapters.

    The list is that of the text decoder with the most parameters, such as `model.layers` (Llama), `transformer.h`
    (GPT-2) or `model.language_model.layers` (Gemma 3 with its vision tower).

    Raises:
        LookupError: the model has no list of layers.
    """
    base = without_adapters(llm)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise LookupError(f"{type(base).__name__}: no list of layers")
    layers = max(lists, key=lambda module: sum(p.numel() for p in module.parameters()))  # the outermost comes first
    return next(name for name, module in base.named_modules() if module is layers), layers
