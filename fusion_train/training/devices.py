"""Place a model on its device as the configuration says: autocast, sharding, activation checkpointing, compilation."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from fusion_train.config import Config, OptimConfig
from fusion_train.errors import ConfigError
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.fused_layers import fuse_layers
from fusion_train.models.kernels import compiles, missing_for_kernels
from fusion_train.models.parts import trained_parameters
from fusion_train.planning.memory_budget import TokenBudget, fitting
from fusion_train.planning.sizes import measured_peak_flops
from fusion_train.processes import this_process
from fusion_train.training.parallel import equal_on_all, shard_base

SMALLER_BASE = "Set model.quantised=nf4; fusion-train plan --gpu NAME says what fits."


def make_accelerator(optim: OptimConfig) -> Accelerator:
    """Device and autocast by accelerate.

    Raises:
        ConfigError: a precision that the device does not have, or fewer processes than the launcher was told to start.
    """
    this_process()
    try:
        return Accelerator(mixed_precision="no" if optim.precision == "fp32" else optim.precision)
    except ValueError as error:
        raise ConfigError(
            "optim.precision",
            expected="one that this machine has",
            got=f"{optim.precision} ({error})",
            next_step="Use --set optim.precision=bf16 or fp32.",
        ) from error


def use_deterministic_kernels() -> None:
    """Choose deterministic kernels; call before the first kernel runs, since cuBLAS reads its setting only then."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # With warn_only the backward passes of flash and memory-efficient attention add up in any order, with a warning.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # one more pass a tensor


@contextmanager
def refusing_other_kernels() -> Iterator[None]:
    """Turn torch's refusal of an operator without a deterministic kernel, in the block, into a ConfigError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error)
        if "does not have a deterministic implementation" not in reason:
            raise
        raise ConfigError(
            "optim.deterministic",
            expected="operators with deterministic kernels on this device",
            got=reason.partition(" does not have")[0],
            next_step="Use --set optim.deterministic=false; a resumed run then equals an uninterrupted one up to "
            "rounding. A run keeps its settings: name another folder with --out.",
        ) from error


def device_name(accelerator: Accelerator) -> str:
    """Such as `cuda`, or `2 × cpu` for two processes."""
    kind = accelerator.device.type
    return kind if accelerator.num_processes == 1 else f"{accelerator.num_processes} × {kind}"


def place(model: nn.Module, config: Config, accelerator: Accelerator, budget: TokenBudget) -> None:
    """Bring a model to the device of this process, ready to be trained.

    Raises:
        ConfigError: settings that the device or the base does not allow.
        DeviceMemoryError: the model alone is larger than the device's memory.
    """
    optim = config.optim
    kind = accelerator.device.type
    missing = missing_for_kernels(kind) if optim.compile else None
    if missing is not None:
        raise ConfigError(
            "optim.compile",
            expected=f"what torch.compile needs for {kind}: {missing}",
            got="none",
            next_step="Install it, or use --set optim.compile=false.",
        )
    with fitting("the model", lambda: SMALLER_BASE):
        model.to(accelerator.device)
    model.train()  # transformers loads in evaluation mode, where checkpointing does nothing
    equal_on_all(trained_parameters(model).values())
    if not isinstance(model, EmotionLlama):
        return
    if optim.shard_base:
        shard_base(model, accelerator)
    if budget.checkpointing:
        llm: Any = model.llm
        base = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
        if hasattr(base, "activation_checkpointing_enable"):  # transformers 5.24
            base.activation_checkpointing_enable({"use_reentrant": False})
        else:
            base.gradient_checkpointing_enable({"use_reentrant": False})
    if compiles(optim.compile, kind):
        fuse_layers(model.llm)


def peak_flops(accelerator: Accelerator, config: Config) -> float:
    """Matrix peak of all devices together: as stated in the configuration, else measured."""
    if config.log.peak_tflops is not None:
        return config.log.peak_tflops * 1e12 * accelerator.num_processes
    return matrix_peak(accelerator.device, config.optim.precision) * accelerator.num_processes


@functools.cache
def matrix_peak(device: torch.device, precision: str) -> float:
    """The matrix peak of one device, measured once per process."""
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return measured_peak_flops(device, dtypes[precision])
