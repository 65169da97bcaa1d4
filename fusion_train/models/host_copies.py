"""Copy small tensors that the host made to a device without waiting for the device.

cudaMemcpyAsync from ordinary memory first waits for all earlier work of the stream (CUDA runtime API, "API
synchronization behavior"), so that a list of a few numbers would end the overlap of host and GPU. Source: also
`torch.cuda.set_sync_debug_mode`, under which the tests run a step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU through pinned memory, which torch keeps until the copy is done."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
