"""Add low-rank adapters to the language model through peft.

Published: r 64, alpha 16, dropout 0.05, on `q_proj` and `v_proj` of all 32 layers, no bias: 33,554,432 parameters,
fp32 over a base of any dtype. The targets are given to peft as a regular expression over the decoder's own layers:
encoders that are attached to the same model, such as Whisper and a vision tower, have `q_proj` modules too.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fusion_train.errors import ConfigError
from fusion_train.models.parts import decoder_layers

FIRST_CHOICES = (("q_proj", "v_proj"), ("query_key_value",), ("c_attn",), ("qkv_proj",), ("Wqkv",), ("in_proj",))
"""Names of the query and value projections in the families of transformers; the advice of an error names one."""


def add_lora(llm: Any, *, r: int, alpha: float, dropout: float, targets: Sequence[str]) -> PeftModel:
    """Freeze `llm` and add LoRA to its `targets`.

    Raises:
        ConfigError: no layer has the name of a target, or peft refuses a layer of this family.
    """
    prefix, layers = decoder_layers(llm)
    linear = {
        name.rsplit(".", 1)[-1]: module
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    family = llm.config.get_text_config().model_type
    unknown = [target for target in targets if target not in linear]
    if unknown:
        usual = next((names for names in FIRST_CHOICES if all(name in linear for name in names)), ())
        raise ConfigError(
            "model.lora.targets",
            expected=f"among the layers of {family}: " + ", ".join(sorted(linear)),
            got=", ".join(unknown),
            next_step=f"Use --set 'model.lora.targets=[{', '.join(usual)}]'." if usual else None,
        )
    if family == "mpt":
        raise ConfigError(
            "model.lora.r",
            expected="0 for mpt, since peft passes no embeddings on to it",
            got=str(r),
            next_step="Use --set model.lora.r=0, or a base of another family.",
        )
    pattern = re.escape(prefix) + r"\.\d+\.(?:.*\.)?(?:" + "|".join(map(re.escape, targets)) + ")"
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by r: a float works too
        lora_dropout=dropout,
        target_modules=pattern,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=all(isinstance(linear[target], Conv1D) for target in targets),
    )
    with warnings.catch_warnings():
        # peft 0.21 reads a name of transformers 5.23 that is deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        warnings.filterwarnings(
            "ignore", message="fan_in_fan_out is set to"
        )  # models with Linear and Conv1D: peft sets it per layer
        try:
            adapted = get_peft_model(llm, config)
        except ValueError as error:  # such as `out_proj` of Mamba: its kernel bypasses the layer
            raise ConfigError(
                "model.lora.targets",
                expected=f"layers of {family} that peft adapts",
                got=" ".join(str(error).split()),
                next_step="Choose others of: " + ", ".join(sorted(linear)) + ".",
            ) from error
    layer: Any
    for layer in adapted.modules():
        if hasattr(layer, "lora_A"):
            layer._cast_input_dtype = adapter_input
    return adapted


def adapter_input(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the input of an adapter whose weights have `dtype`; every LoRA layer calls it in place of peft's own cast.

    Under autocast x stays as it is: peft would copy it to float32, drop out of the copy, and the first product would
    cast the copy back.
    """
    return x if torch.is_autocast_enabled(x.device.type) else x.to(dtype)
