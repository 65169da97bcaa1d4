"""The trained parts of a model, by the names of their parameters.

fusion · projectors · lora · head (the linear head of the probe). Everything else is the frozen base. A part may itself
be frozen for a stage: it stays a trained part, kept in checkpoints, and learns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

PARTS = ("fusion", "projectors", "lora", "head")


def part_of(name: str) -> str | None:
    """Part that a parameter belongs to; None for the frozen base."""
    if ".lora_" in name:
        return "lora"
    first = name.partition(".")[0]
    return first if first in PARTS else None


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of the trained parts, those that are frozen for a stage included, in module order."""
    return {name: parameter for name, parameter in model.named_parameters() if part_of(name) is not None}


def learning_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of the trained parts that are not frozen."""
    return {name: parameter for name, parameter in trained_parameters(model).items() if parameter.requires_grad}


def count_by_part(model: nn.Module) -> dict[str, int]:
    """Trained parameters of the fusion, each projector, LoRA and head."""
    counts: dict[str, int] = {}
    for name, parameter in trained_parameters(model).items():
        part = part_of(name) or ""
        named = ".".join(name.split(".")[:2]) if part == "projectors" else part
        counts[named] = counts.get(named, 0) + parameter.numel()
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
