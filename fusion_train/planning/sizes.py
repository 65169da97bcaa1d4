"""Read the sizes that decide costs from a model; a model on the meta device, without weights, is enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
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
    """Build the whole model of a configuration on the meta device: all names and shapes, but no weights.

    Raises:
        ModelError: neither the files nor the sizes of the language model are available.
        ConfigError: conflicting settings.
    """
    if config.model.llm is None:
        raise ConfigError(
            "model.llm",
            expected="a language model, whose costs can be predicted",
            got="null: a probe",
            next_step="A probe takes minutes on a CPU; run it: fusion-train --stage probe.",
        )
    with torch.device("meta"):
        return build_model(config, skeleton(llm_config(config.model.llm)), shapes)


def llm_shape(llm: Any) -> LlmShape:
    """Return the sizes of a causal LM of transformers, with or without LoRA."""
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
    other_parameters = sum(
        parameter.numel()
        for name, parameter in llm.named_parameters()
        if id(parameter) not in counted and ".lora_" not in name
    )
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
        other_parameters=other_parameters,
    )


def _sides(matrix: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a linear layer, or of GPT-2's Conv1D."""
    return (matrix.nx, matrix.nf) if isinstance(matrix, Conv1D) else (matrix.in_features, matrix.out_features)


def _size(config: Any, *names: str) -> int | None:
    """Return the first of these sizes that a configuration states, the largest if it has one per layer."""
    for name in names:
        value = getattr(config, name, None)
        sizes = [size for size in (value if isinstance(value, list | tuple) else [value]) if isinstance(size, int)]
        if sizes and max(sizes) > 0:
            return max(sizes)
    return None


def lora_shape(llm: Any) -> LoraShape:
    """Return the sizes of the adapters in a language model; zeros without adapters."""
    downs = [module for name, module in llm.named_modules() if name.endswith(".lora_A.default")]
    ups = [module for name, module in llm.named_modules() if name.endswith(".lora_B.default")]
    return LoraShape(
        parameters=sum(module.weight.numel() for module in (*downs, *ups)),
        input_width=sum(module.in_features for module in downs),
        modules=len(downs),
        r=downs[0].out_features if downs else 0,
    )


def work_of(model: Any) -> Callable[[SampleStats], float]:
    """Return a function from a sample's lengths to the FLOPs of training on it."""
    if isinstance(model, Probe):
        probe_flops = 6.0 * sum(p.numel() for p in model.fusion.parameters()) * model.fusion_tokens
        return lambda stats: probe_flops
    llm, lora, adapter = llm_shape(model.llm), lora_shape(model.llm), adapter_work(model)
    return lambda stats: (
        sample_flops(llm, lora, tokens=stats.num_tokens, supervised=stats.num_supervised, adapter=adapter).model
    )


def adapter_work(model: EmotionLlama) -> int:
    """Return the parameters of fusion and projectors, each multiplied with its soft tokens for a clip with all
    modalities."""
    counts = model.soft_counts
    parts = count_by_part(model)
    work = parts.get("fusion", 0) * model.fusion_tokens
    return work + sum(parts.get(f"projectors.{stream}", 0) * count for stream, count in counts.items())


SIDES = {"cuda": 8192, "cpu": 512}
"""Device type -> rows and columns of the measured matrices."""
REPEATS = {"cuda": 20, "cpu": 5}


def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP per second of the fastest of several square matrix products."""
    size = SIDES.get(device.type, SIDES["cpu"])
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(REPEATS.get(device.type, REPEATS["cpu"]) + 1):  # the first one warms up
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
