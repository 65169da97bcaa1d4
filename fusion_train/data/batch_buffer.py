"""One block of memory a batch: the store writes into it, one copy brings it to the device.

arena = BatchBuffer({"audio": ((8, 64, 1280), torch.float16), …})   pinned where there is a GPU
feature.read(ids, out=arena["audio"].numpy())
on_device = arena.to(device)                                   views of one copy
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

ALIGNMENT = 256
Spec = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class BatchBuffer(dict[str, Tensor]):
    """Name -> tensor, all views of one block."""

    def __init__(self, spec: Spec, block: Tensor | None = None) -> None:
        """`block` holds the bytes already; None takes zeroed memory, pinned where there is a GPU."""
        super().__init__()
        self._spec = dict(spec)
        places, end = {}, 0
        for name, (shape, dtype) in self._spec.items():
            places[name] = end
            end += -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if block is None:
            block = torch.zeros(end, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        self.block = block
        for name, (shape, dtype) in self._spec.items():
            size = prod(shape) * dtype.itemsize
            self[name] = block[places[name] : places[name] + size].view(dtype).view(shape)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], more: Spec) -> BatchBuffer:
        """An arena with copies of `tensors`, and room for what `more` describes."""
        buffer = cls({name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} | dict(more))
        for name, tensor in tensors.items():
            buffer[name].copy_(tensor)
        return buffer

    def to(self, device: torch.device) -> BatchBuffer:
        """The same on a device, without waiting where the memory is pinned; itself where it is there already."""
        if self.block.device == device:
            return self
        return BatchBuffer(self._spec, self.block.to(device, non_blocking=True))
