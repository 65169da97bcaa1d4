"""Quantise the frozen linear layers of a language model after LoRA was added: fp8, int8 or nf4.

Embeddings, head, norms and all trained parts stay as they are. fp8 multiplies in FP8 on cards that can
(`models/fp8_linear`). int8 (LLM.int8 without outlier columns) and nf4 (4 bits, doubly quantised scales) come from
bitsandbytes, an extra: `pip install featurecache[quantised]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from featurecache.extras import require
from fusion_train.errors import ConfigError
from fusion_train.models.fp8_linear import Fp8Linear, SharedInput

Quantised = Literal["fp8", "int8", "nf4"]
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that read the same tensor, in all families of transformers that have layers of these names."""


def quantise_base(llm: Any, kind: Quantised, device: torch.device, compute: torch.dtype) -> None:
    """Replace the frozen linear layers of `llm` by quantised ones on `device`.

    Args:
        compute: dtype of the products with nf4 weights.

    Raises:
        ConfigError: bitsandbytes is not installed, or the base has no linear layers (GPT-2).
    """
    quantise = {"fp8": _fp8, "int8": _int8, "nf4": _nf4}[kind]
    head = llm.get_output_embeddings()
    chosen = [
        (name, module)
        for name, module in llm.named_modules()
        if type(module) is nn.Linear and module is not head and ".lora_" not in name
    ]
    if not chosen:
        raise ConfigError(
            f"model.quantised={kind}",
            expected="a base with linear layers",
            got=f"none in {llm.config.get_text_config().model_type}",
            next_step="Use --set model.quantised=null.",
        )
    for name, module in chosen:
        parent, _, own = name.rpartition(".")
        setattr(llm.get_submodule(parent), own, quantise(module, device, compute))
    if kind == "fp8":
        _share_inputs(llm)


def _fp8(linear: nn.Linear, device: torch.device, compute: torch.dtype) -> nn.Module:
    return Fp8Linear(linear.to(device))


def _share_inputs(llm: Any) -> None:
    """Have the FP8 layers that read the same tensor quantise it once; adapters stay between a layer and its name."""
    for parent in llm.modules():
        for names in SAME_INPUT:
            children = [getattr(parent, name) for name in names if hasattr(parent, name)]
            layers = [getattr(child, "base_layer", child) for child in children]
            layers = [layer for layer in layers if isinstance(layer, Fp8Linear)]
            shared = SharedInput(len(layers))
            for layer in layers:
                layer.share_input(shared)


def _int8(linear: nn.Linear, device: torch.device, compute: torch.dtype) -> nn.Module:
    bnb = _bitsandbytes()
    quantised = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False, device="meta"
    )
    return _with_weights(
        quantised, linear, lambda w: bnb.nn.Int8Params(w, requires_grad=False, has_fp16_weights=False), device
    )


def _nf4(linear: nn.Linear, device: torch.device, compute: torch.dtype) -> nn.Module:
    bnb = _bitsandbytes()
    quantised = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=compute, device="meta"
    )
    return _with_weights(
        quantised,
        linear,
        lambda w: bnb.nn.Params4bit(
            w, requires_grad=False, quant_type="nf4", compress_statistics=True, module=quantised
        ),
        device,
    )


def _with_weights(
    quantised: Any, linear: nn.Linear, parameter: Callable[[torch.Tensor], nn.Parameter], device: torch.device
) -> nn.Module:
    """Give a layer of bitsandbytes the weights of `linear`; `parameter` wraps the weight."""
    quantised.weight = parameter(linear.weight.detach().cpu())
    if linear.bias is not None:
        quantised.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    moved: nn.Module = quantised.to(device)  # bitsandbytes quantises while it moves the weight
    return moved


def _bitsandbytes() -> Any:
    require("quantised", "bitsandbytes", subject="model.quantised int8 or nf4")
    import bitsandbytes

    return bitsandbytes
