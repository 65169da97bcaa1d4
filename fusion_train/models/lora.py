"""Low-rank adapters on the language model, through peft.

Published: r 64, alpha 16, dropout 0.05, on `q_proj` and `v_proj` of all 32 layers, no bias: 33,554,432 parameters,
fp32 over a base of any dtype. The target is a regular expression that cannot reach an encoder attached to the same
model: a Whisper encoder has `q_proj` modules too.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from fusion_train.errors import ConfigError


def add_lora(llm: nn.Module, *, r: int, alpha: float, dropout: float, targets: Sequence[str]) -> PeftModel:
    """Freeze `llm` and add LoRA to its `targets`.

    Raises:
        ConfigError: no layer of that name; the names of the linear layers there are, are listed.
    """
    linear = {name.rsplit(".", 1)[-1] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    unknown = [target for target in targets if target not in linear]
    if unknown:
        raise ConfigError("model.lora.targets", expected="among " + ", ".join(sorted(linear)), got=", ".join(unknown))
    pattern = r".*\.layers\.\d+\..*\.(" + "|".join(map(re.escape, targets)) + ")"
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern, bias="none", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for checkpointing by a name that it has deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(llm, config)
