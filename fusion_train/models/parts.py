"""The trained parts of a model and the decoder layers of its language model, by name.

Trained parts are fusion, projectors, lora, head (the linear head of the probe) and normalisation (means and scales of
the probe's features, computed once from the training clips); everything else is the frozen base. A stage may freeze a
part: it stays a trained part and stays in checkpoints, but does not learn. The normalisation never learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

PARTS = ("fusion", "projectors", "lora", "head", "normalisation")


def part_of(name: str) -> str | None:
    """Return the part that a parameter belongs to; None for the frozen base."""
    if ".lora_" in name:
        return "lora"
    first = name.partition(".")[0]
    return first if first in PARTS else None


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter of all trained parts, also of those that the stage freezes, in module order."""
    return {name: parameter for name, parameter in model.named_parameters() if part_of(name) is not None}


def learning_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter of the trained parts that the stage does not freeze."""
    return {name: parameter for name, parameter in trained_parameters(model).items() if parameter.requires_grad}


def count_by_part(model: nn.Module) -> dict[str, int]:
    """Return the number of trained parameters of the fusion, each projector, LoRA and the head."""
    counts: dict[str, int] = {}
    for name, parameter in trained_parameters(model).items():
        part = part_of(name) or ""
        key = ".".join(name.split(".")[:2]) if part == "projectors" else part
        counts[key] = counts.get(key, 0) + parameter.numel()
    return counts


def freeze(module: nn.Module) -> None:
    """Exclude a module's weights from training."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def freeze_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Exclude parts from training."""
    for name, parameter in trained_parameters(model).items():
        if part_of(name) in parts:
            parameter.requires_grad_(False)


def without_adapters(llm: Any) -> Any:
    """Return the model of transformers inside the wrapper of peft, or `llm` itself."""
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm


def decoder_layers(llm: Any) -> tuple[str, nn.ModuleList]:
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
    layers = max(lists, key=lambda module: sum(p.numel() for p in module.parameters()))  # of equals, the outermost
    return next(name for name, module in base.named_modules() if module is layers), layers
