"""Choose how the samples of a step are divided into rows, and give advice when a step does not fit into memory.

`optim.micro_batch_size: auto`, the default on a GPU, packs rows up to a budget: on a GPU what fits into its memory by
the memory model (`costs`), elsewhere `CPU_TOKENS`. A row is weighed by what it costs: its tokens, a shared prefix once,
the logits of its supervised tokens and the features of its clips. Activation checkpointing is used if fewer than
`COMFORTABLE_TOKENS` fit without it. A run records its budget, so that it goes on with the same rows on another device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fusion_train.config import Config
from fusion_train.data.loader import TokenBudget
from fusion_train.errors import DeviceMemoryError
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.kernels import compiles
from fusion_train.models.parts import learning_parameters, trained_parameters
from fusion_train.planning import costs
from fusion_train.planning.sizes import llm_shape, lora_shape

CPU_TOKENS = 4096
COMFORTABLE_TOKENS = 2048
MOST_TOKENS = 65_536
"""Largest budget that is considered."""
SUPERVISED_SHARE = 8
"""Where lengths are not known, a row of T tokens is assumed to have T / 8 supervised tokens."""
SAFETY = 0.94
"""Share of the memory of a GPU that the budget uses."""
COMPUTE = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""`optim.precision` -> dtype of the activations."""


def choose_budget(config: Config, model: torch.nn.Module, device: torch.device, *, num_models: int = 1) -> TokenBudget:
    """Choose by the memory model; settings of `optim` override it.

    Args:
        num_models: models whose rows pass the base together.
    """
    optim = config.optim
    if device.type != "cuda" or not isinstance(model, EmotionLlama):
        size = optim.micro_batch_size or ("auto" if device.type == "cuda" else 1)
        tokens = optim.micro_batch_tokens or max(CPU_TOKENS // num_models, 1)
        return TokenBudget(tokens, optim.activation_checkpointing is True, size)
    limit = int(torch.cuda.get_device_properties(device).total_memory * SAFETY)
    return within(config, model, limit, num_models=num_models)


def within(config: Config, model: EmotionLlama, limit: int, *, num_models: int = 1) -> TokenBudget:
    """Return the budget of a GPU for a limit in bytes."""
    optim = config.optim
    size = optim.micro_batch_size or "auto"
    plain = row_cost(config, model, checkpointing=False, num_models=num_models)
    most = plain.most_tokens(limit)
    wanted = optim.activation_checkpointing
    if wanted == "auto":
        tokens = optim.micro_batch_tokens or (most if size == "auto" else size * COMFORTABLE_TOKENS // 2)
        wanted = most < min(tokens, COMFORTABLE_TOKENS) or most < COMFORTABLE_TOKENS // 2
    cost = row_cost(config, model, checkpointing=True, num_models=num_models) if wanted else plain
    if optim.micro_batch_tokens is not None:
        return TokenBudget(max(optim.micro_batch_tokens // (1 if wanted else num_models), 1), wanted, size)
    return TokenBudget(
        max(cost.most_tokens(limit), 1), wanted, size, cost.supervised / cost.token, cost.clip / cost.token
    )


@dataclass(frozen=True)
class RowCost:
    """Memory of a step in bytes, as a linear function of its row."""

    fixed: int
    """Weights, gradients, moments, and what does not depend on the row."""
    token: int
    """Activations of one token."""
    supervised: int
    """Logits of one supervised token."""
    clip: int
    """Features of one clip."""

    def most_tokens(self, limit: int) -> int:
        """Return the weight of the heaviest row that fits into `limit` bytes, in tokens; 0 if none fits."""
        return min(max((limit - self.fixed) // self.token, 0), MOST_TOKENS)


def row_cost(config: Config, model: EmotionLlama, *, checkpointing: bool, num_models: int = 1) -> RowCost:
    """Return the memory of a step of `num_models` models like `model`, by the memory model."""
    memory_for = memory_by_row(config, model, checkpointing=checkpointing)
    empty = memory_for(0, 0, 0)
    own = empty.trained + empty.gradients + empty.optimizer + empty.ema
    at_once = 1 if checkpointing else num_models  # with checkpointing the models of a group take turns
    token, supervised, clip = (
        at_once * (memory_for(*row).total - empty.total) for row in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    )
    return RowCost(empty.total + (num_models - 1) * own, token, supervised, clip)


def memory_by_row(
    config: Config, model: EmotionLlama, *, checkpointing: bool
) -> Callable[[int, int, int], costs.Memory]:
    """Return a function from tokens, supervised tokens and clips of a row to the memory of a step; the model is
    inspected once."""
    shapes = [shape for name in model.shapes.used if (shape := getattr(model.shapes, name))]
    llm, lora = llm_shape(model.llm), lora_shape(model.llm)
    trained = sum(p.numel() for p in trained_parameters(model).values())
    learning = sum(p.numel() for p in learning_parameters(model).values())
    fused = compiles(config.optim.compile, "cuda")

    def memory_for(tokens: int, supervised: int, clips: int) -> costs.Memory:
        return costs.memory(
            llm,
            lora,
            trained=trained,
            learning=learning,
            tokens=tokens,
            supervised=supervised,
            feature_values=clips * sum(k * d for k, d in shapes),
            base=config.model.quantised or config.model.llm_dtype,
            compute=COMPUTE[config.optim.precision],
            checkpointing=checkpointing,
            fused=fused,
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


def advise(config: Config, model: torch.nn.Module, tokens: int, budget: TokenBudget) -> str:
    """Return advice for a row that did not fit: the largest kind of memory, and the setting to change."""
    smaller = smaller_rows(budget, tokens)
    if not isinstance(model, EmotionLlama):
        return f"Set {smaller or 'a smaller optim.batch_size'}."
    clips = tokens // max(sum(model.soft_counts.values()), 1) + 1
    return costs.advice(
        memory_by_row(config, model, checkpointing=budget.checkpointing)(tokens, tokens // SUPERVISED_SHARE, clips),
        checkpointing=budget.checkpointing,
        base=config.model.quantised or config.model.llm_dtype,
        smaller=smaller,
    )


def smaller_rows(budget: TokenBudget, tokens: int) -> str | None:
    """Return the setting that halves rows of `tokens` tokens; None if a row has one sample."""
    size = budget.micro_batch_size
    if size == "auto":
        return f"optim.micro_batch_tokens={max(1, tokens // 2)}"
    return f"optim.micro_batch_size={size // 2}" if size is not None and size > 1 else None
