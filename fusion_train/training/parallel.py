"""Several processes: average the gradients of trained parts once per step, and shard the frozen base on request.

Every process holds all trained parts (72 M of 6.8 B parameters). One all-reduce after the last micro-batch adds up
their gradients; overlapping it with computation would gain too little. A part that a step does not use has no gradient,
on one process as on several. `shard_base` distributes the frozen layers by FSDP2, which gathers a layer when it is
needed; checkpoints hold the trained parts whole in both cases. `fusion_train/processes.py` describes how to start
processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from fusion_train.errors import ConfigError
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.host_copies import to_device
from fusion_train.models.parts import decoder_layers, trained_parameters


def average_gradients(parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """Replace gradients by their mean over all processes; one that only other processes have counts as zeros.

    Returns:
        (P,) float32 on the device: how many processes used each parameter, for `drop_unused`; None for one process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    chosen = list(parameters)
    used = to_device(torch.tensor([float(p.grad is not None) for p in chosen]), chosen[0].device)
    for parameter in chosen:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in chosen if parameter.grad is not None]
    flat = torch.cat([used, *(gradient.flatten() for gradient in gradients)])
    dist.all_reduce(flat)
    used, *parts = flat.split([len(chosen), *(gradient.numel() for gradient in gradients)])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient)).div_(dist.get_world_size())
    return used


def drop_unused(parameters: Iterable[nn.Parameter], used: Sequence[float]) -> None:
    """Remove the gradients of parameters that no process used, as on one process."""
    for parameter, count in zip(parameters, used, strict=True):
        if not count:
            parameter.grad = None


def any_process(accelerator: Accelerator, value: bool) -> bool:
    """Whether `value` is true on at least one process."""
    if accelerator.num_processes == 1:
        return value
    return bool(accelerator.reduce(torch.tensor(int(value), device=accelerator.device), reduction="sum"))


def equal_on_all(parameters: Iterable[nn.Parameter]) -> None:
    """Broadcast the values of the first process to all processes."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for parameter in parameters:
            dist.broadcast(parameter.detach(), src=0)


def shard_base(model: EmotionLlama, accelerator: Accelerator) -> None:
    """Shard the frozen weights of the language model's layers over the processes (FSDP2).

    Embeddings and head stay whole: the splice looks embeddings up outside of the language model's forward pass.

    Raises:
        ConfigError: one process alone, or a base whose weights are quantised.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if accelerator.num_processes == 1:
        raise ConfigError(
            "optim.shard_base",
            expected="several processes",
            got="one",
            next_step="Start with: accelerate launch --multi_gpu --num_processes N -m fusion_train.cli …",
        )
    trained = set(trained_parameters(model).values())
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in decoder_layers(model.llm)[1]:
        frozen = [p for p in layer.parameters() if p not in trained]
        if any(not p.is_floating_point() or p.dtype.itemsize < 2 for p in frozen):
            raise ConfigError(
                "optim.shard_base", expected="a base in float32, float16 or bfloat16", got="a quantised one"
            )
        fully_shard(layer, mesh=mesh, ignored_params=trained)
