"""Read the sizes that decide costs off a model; one on the meta device, without any weights, will do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fusion_train.config import Config
from fusion_train.data.samples import SampleStats
from fusion_train.errors import ConfigError
from fusion_train.llm.loading import build_model, llm_config, skeleton
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.parts import count_by_part, decoder_layers
from fusion_train.models.probe import Probe
from fusion_train.models.token_streams import FeatureShapes
from fusion_train.planning.costs import LlmShape, LoraShape, sample_flops


def model_skeleton(config: Config, shapes: FeatureShapes) -> EmotionLlama:
    """Build the whole model of a configuration on the meta device: every name and shape, no memory, no weights.

    Raises:
        ModelError: neither the files nor the sizes of the language model are at hand.
        ConfigError: settings that do not go together.
    """
    if config.model.llm is None:
        raise ConfigError(
            "model.llm",
            expected="a language model, whose costs can be told before",
            got="null: a probe",
            next_step="A probe takes minutes on a CPU; run it: fusion-train --stage probe.",
        )
    with torch.device("meta"):
        return build_model(config, skeleton(llm_config(config.model.llm)), shapes)


def llm_shape(llm: nn.Module) -> LlmShape:
    """Sizes of a causal LM of transformers, with or without LoRA around it."""
    config = llm.config.get_text_config()
    width = llm.get_input_embeddings().embedding_dim
    heads = _size(config, "num_attention_heads") or 0  # none in a recurrent model
    head_width = _size(config, "head_dim") or (width // heads if heads else 0)
    head = llm.get_output_embeddings()
    matrices = {
        name: module
        for name, module in llm.named_modules()
        if (isinstance(module, Conv1D) or (hasattr(module, "weight") and hasattr(module, "in_features")))
        and ".lora_" not in name
        and module is not head
    }
    layer_parameters = sum(
        math.prod(_sides(module)) for module in matrices.values() if not hasattr(module, "base_layer")
    )
    widest = max((max(_sides(module)) for module in matrices.values()), default=width)
    counted = {id(module.weight) for module in (*matrices.values(), head)}
    others = sum(p.numel() for name, p in llm.named_parameters() if id(p) not in counted and ".lora_" not in name)
    return LlmShape(
        width=width,
        layers=len(decoder_layers(llm)[1]),
        intermediate=_size(config, "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner") or widest,
        query_width=heads * head_width,
        key_width=(_size(config, "num_key_value_heads", "num_kv_heads") or heads) * head_width,
        heads=heads,
        vocabulary=head.weight.shape[0],
        layer_parameters=layer_parameters,
        head_parameters=head.weight.numel(),
        other_parameters=others,
    )


def _sides(matrix: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer or of GPT-2's Conv1D, whatever its weight is stored as."""
    return (matrix.nx, matrix.nf) if isinstance(matrix, Conv1D) else (matrix.in_features, matrix.out_features)


def _size(config: Any, *names: str) -> int | None:
    """The first of these sizes that a configuration states; the largest where it has one per layer."""
    for name in names:
        value = getattr(config, name, None)
        sizes = [size for size in (value if isinstance(value, list | tuple) else [value]) if isinstance(size, int)]
        if sizes and max(sizes) > 0:
            return max(sizes)
    return None


def lora_shape(llm: nn.Module) -> LoraShape:
    """Sizes of the adapters that `add_lora` put into a language model; empty where there are none."""
    downs = [module for name, module in llm.named_modules() if name.endswith(".lora_A.default")]
    ups = [module for name, module in llm.named_modules() if name.endswith(".lora_B.default")]
    return LoraShape(
        parameters=sum(module.weight.numel() for module in (*downs, *ups)),
        input_width=sum(module.in_features for module in downs),
        modules=len(downs),
        r=downs[0].out_features if downs else 0,
    )


def work_of(model: nn.Module) -> Callable[[SampleStats], float]:
    """What a sample costs to train on, in floating-point operations."""
    if isinstance(model, Probe):
        each = 6.0 * sum(p.numel() for p in model.fusion.parameters()) * model.fusion_tokens
        return lambda stats: each
    llm, lora, adapter = llm_shape(model.llm), lora_shape(model.llm), adapter_work(model)
    return lambda stats: (
        sample_flops(llm, lora, tokens=stats.num_tokens, supervised=stats.num_supervised, adapter=adapter).model
    )


def adapter_work(model: EmotionLlama) -> int:
    """Parameters of fusion and projectors, each times the soft tokens it gives for a clip with every modality."""
    counts = model.soft_counts
    parts = count_by_part(model)
    work = parts.get("fusion", 0) * model.fusion_tokens
    return work + sum(parts.get(f"projectors.{stream}", 0) * count for stream, count in counts.items())


SIZES = {"cuda": 8192, "cpu": 512}
ROUNDS = {"cuda": 20, "cpu": 5}


def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the best of several square matrix products."""
    size = SIZES.get(device.type, SIZES["cpu"])
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(ROUNDS.get(device.type, ROUNDS["cpu"]) + 1):  # the first warms up
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
