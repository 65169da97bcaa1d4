"""Choose how many tokens a row may have, and give advice when a step does not fit into memory.

`optim.micro_batch_size: auto` packs rows up to a token budget: on a GPU the number that fits into its memory by the
memory model (`costs`), elsewhere `CPU_TOKENS`. Activation checkpointing is used if fewer than `COMFORTABLE_TOKENS` fit
without it. Both depend only on the configuration and the GPU, so a resumed run has the same budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fusion_train.config import Config
from fusion_train.errors import DeviceMemoryError
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.parts import learning_parameters, trained_parameters
from fusion_train.planning import costs
from fusion_train.planning.sizes import llm_shape, lora_shape

CPU_TOKENS = 4096
COMFORTABLE_TOKENS = 2048
MOST_TOKENS = 65_536
"""Largest budget that is considered."""
SUPERVISED_SHARE = 8
"""A row of T tokens is assumed to have T / 8 supervised tokens."""
SAFETY = 0.94
"""Share of the memory of a GPU that the budget uses."""
COMPUTE = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""`optim.precision` -> dtype of the activations."""


@dataclass(frozen=True)
class TokenBudget:
    """Largest number of tokens of a row, and whether activation checkpointing makes room for them."""

    tokens: int
    checkpointing: bool


def choose_budget(config: Config, model: torch.nn.Module, device: torch.device) -> TokenBudget:
    """Choose by the memory model; `optim.micro_batch_tokens` and `optim.activation_checkpointing` override it."""
    optim = config.optim
    wanted = optim.activation_checkpointing
    if device.type != "cuda" or not isinstance(model, EmotionLlama):
        return TokenBudget(optim.micro_batch_tokens or CPU_TOKENS, wanted is True)
    limit = int(torch.cuda.get_device_properties(device).total_memory * SAFETY)
    return within(config, model, limit)


def within(config: Config, model: EmotionLlama, limit: int) -> TokenBudget:
    """Return the budget for a limit in bytes."""
    optim = config.optim
    wanted = optim.activation_checkpointing
    plain = most_tokens(config, model, limit, checkpointing=False)
    tokens = optim.micro_batch_tokens or (
        plain if optim.micro_batch_size == "auto" else optim.micro_batch_size * COMFORTABLE_TOKENS // 2
    )
    if wanted == "auto":
        wanted = plain < min(tokens, COMFORTABLE_TOKENS) or plain < COMFORTABLE_TOKENS // 2
    if optim.micro_batch_tokens is None and optim.micro_batch_size == "auto" and wanted:
        tokens = most_tokens(config, model, limit, checkpointing=True)
    return TokenBudget(max(tokens, 1), bool(wanted))


def most_tokens(config: Config, model: EmotionLlama, limit: int, *, checkpointing: bool) -> int:
    """Return the tokens of the longest row that fits into `limit` bytes, by bisection; 0 if none fits."""
    memory_for = memory_by_tokens(config, model, checkpointing=checkpointing)
    low, high = 0, MOST_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        if memory_for(middle).total <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def memory_by_tokens(config: Config, model: EmotionLlama, *, checkpointing: bool) -> Callable[[int], costs.Memory]:
    """Return a function from the tokens of a row to the memory of a step; the model is inspected once."""
    soft = max(sum(model.soft_counts.values()), 1)
    shapes = [shape for name in model.shapes.used if (shape := getattr(model.shapes, name))]
    llm, lora = llm_shape(model.llm), lora_shape(model.llm)
    trained = sum(p.numel() for p in trained_parameters(model).values())
    learning = sum(p.numel() for p in learning_parameters(model).values())

    def memory_for(tokens: int) -> costs.Memory:
        return costs.memory(
            llm,
            lora,
            trained=trained,
            learning=learning,
            tokens=tokens,
            supervised=tokens // SUPERVISED_SHARE,
            feature_values=(tokens // soft + 1) * sum(k * d for k, d in shapes),
            base=config.model.quantised or config.model.llm_dtype,
            compute=COMPUTE[config.optim.precision],
            checkpointing=checkpointing,
            ema=config.optim.ema_decay is not None,
        )

    return memory_for


@contextmanager
def fitting(subject: str, next_step: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error in the block into DeviceMemoryError with advice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            subject,
            expected="to fit into the device's memory",
            got=str(error).partition(".")[0],
            next_step=f"{next_step()} A run keeps its settings: name another folder with --out.",
        ) from error


def advise(config: Config, model: torch.nn.Module, tokens: int, *, checkpointing: bool) -> str:
    """Return advice for a row that did not fit: the largest kind of memory, and the setting to change."""
    smaller = smaller_rows(config, tokens)
    if not isinstance(model, EmotionLlama):
        return f"Set {smaller or 'a smaller optim.batch_size'}."
    return costs.advice(
        memory_by_tokens(config, model, checkpointing=checkpointing)(tokens),
        checkpointing=checkpointing,
        base=config.model.quantised or config.model.llm_dtype,
        smaller=smaller,
    )


def smaller_rows(config: Config, tokens: int) -> str | None:
    """Return the setting that halves rows of `tokens` tokens; None if a row has one sample."""
    micro = config.optim.micro_batch_size
    if micro == "auto":
        return f"optim.micro_batch_tokens={max(1, tokens // 2)}"
    return f"optim.micro_batch_size={micro // 2}" if micro > 1 else None
