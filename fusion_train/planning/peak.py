"""The matrix peak of a device, measured: what utilisation is a share of, where nobody states one."""

from __future__ import annotations

import time

import torch

SIZES = {"cuda": 8192, "cpu": 512}
ROUNDS = {"cuda": 20, "cpu": 5}


def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the best of several square matrix products."""
    size = SIZES.get(device.type, SIZES["cpu"])
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(ROUNDS.get(device.type, ROUNDS["cpu"]) + 1):  # the first warms up
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
