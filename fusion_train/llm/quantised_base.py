"""Quantise the matrices of a frozen language model's layers after LoRA was added: fp8, int8 or nf4.

Embeddings, head, norms and everything trained stay as they are. fp8 multiplies in FP8 where the card can
(`models/fp8_linear`); int8 (LLM.int8 without outlier columns) and nf4 (4 bits, doubly quantised scales) come from
bitsandbytes, an extra: `pip install featurecache[quantised]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from featurecache.extras import require
from fusion_train.errors import ConfigError
from fusion_train.models.fp8_linear import Fp8Linear

Quantised = Literal["fp8", "int8", "nf4"]


def quantise_base(llm: nn.Module, kind: Quantised, device: torch.device, compute: torch.dtype) -> None:
    """Replace the frozen linear layers of `llm` in place; each is quantised on `device`, where it then lies.

    Args:
        compute: dtype that nf4 is multiplied in.

    Raises:
        ConfigError: bitsandbytes is not installed, or the base has no linear layers (GPT-2).
    """
    make = {"fp8": _fp8, "int8": _int8, "nf4": _nf4}[kind]
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
        setattr(llm.get_submodule(parent), own, make(module, device, compute))


def _fp8(linear: nn.Linear, device: torch.device, compute: torch.dtype) -> nn.Module:
    return Fp8Linear(linear.to(device))


def _int8(linear: nn.Linear, device: torch.device, compute: torch.dtype) -> nn.Module:
    bnb = _bitsandbytes()
    made = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False, device="meta"
    )
    return _filled(made, linear, lambda w: bnb.nn.Int8Params(w, requires_grad=False, has_fp16_weights=False), device)


def _nf4(linear: nn.Linear, device: torch.device, compute: torch.dtype) -> nn.Module:
    bnb = _bitsandbytes()
    made = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=compute, device="meta"
    )
    return _filled(
        made,
        linear,
        lambda w: bnb.nn.Params4bit(w, requires_grad=False, quant_type="nf4", compress_statistics=True, module=made),
        device,
    )


def _filled(
    made: nn.Module, linear: nn.Linear, parameter: Callable[[torch.Tensor], nn.Parameter], device: torch.device
) -> nn.Module:
    made.weight = parameter(linear.weight.detach().cpu())
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    return made.to(device)  # bitsandbytes quantises on the way


def _bitsandbytes():  # type: ignore[no-untyped-def]  # an optional module
    require("quantised", "bitsandbytes", subject="model.quantised int8 or nf4")
    import bitsandbytes

    return bitsandbytes
