"""The card and its limits, measured: matrix peaks in bf16 and fp8, and rates of copies."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.material import Material, versions
from featurecache.machine import memory_bytes, usable_cores
from fusion_train.models.fp8_linear import FP8
from fusion_train.planning.sizes import measured_peak_flops

SIDE = {"cuda": 8192, "cpu": 256}
SUSTAINED_S = {"cuda": 2.0, "cpu": 0.1}
COPY_BYTES = 4 << 30
"""On the device."""
HOST_COPY_BYTES = {"cuda": 1 << 30, "cpu": 16 << 20}
REPEATS = 5


def measure(material: Material, case: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the parts card, matrix_peak and copies."""
    yield "card", card(material.device) | versions()
    yield "matrix_peak", matrix_peaks(material)
    yield "copies", copy_rates(material)


def card(device: torch.device) -> dict[str, Any]:
    """Name, driver and memory of the card; cores and memory of the machine."""
    figures: dict[str, Any] = {"cores": usable_cores(), "host_memory_GiB": round(memory_bytes() / 2**30, 1)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        figures |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_GiB": round(properties.total_memory / 2**30, 2),
            "free_GiB": round(torch.cuda.mem_get_info(device)[0] / 2**30, 2),
            "driver": driver(),
        }
    return figures


def driver() -> str:
    """Version of the driver by nvidia-smi, which only reads it here."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def matrix_peaks(material: Material) -> dict[str, Any]:
    """TFLOP/s of the fastest product, and over two seconds of products; FP8 with one scale per row as in training."""
    device = material.device
    side = SIDE[device.type]
    left, right = (torch.randn(side, side, device=device) for _ in range(2))
    half = left.bfloat16(), right.bfloat16()
    figures: dict[str, Any] = {
        "bf16_tflops": round(measured_peak_flops(device, torch.bfloat16) / 1e12, 2),
        "bf16_sustained_tflops": sustained(material, lambda: half[0] @ half[1]),
    }
    scale = torch.ones(side, 1, device=device)
    eighths = left.to(FP8), right.to(FP8)
    for name, fast in (("fp8", False), ("fp8_fast", True)):

        def product(fast: bool = fast) -> Any:
            rows, columns = eighths[0], eighths[1].t()
            return torch._scaled_mm(rows, columns, scale, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=fast)

        try:
            figures[f"{name}_sustained_tflops"] = sustained(material, product)
        except RuntimeError as error:
            figures[f"{name}_not_measured"] = str(error).partition("\n")[0][:80]
    return figures


def sustained(material: Material, product: Callable[[], Any]) -> float:
    """TFLOP/s of products one after another."""
    kind = material.device.type
    for _ in range(3):
        product()
    material.settle()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SUSTAINED_S[kind]:
        for _ in range(10):
            product()
        material.settle()
        count += 10
    return round(2 * SIDE[kind] ** 3 * count / (time.perf_counter() - began) / 1e12, 2)


def copy_rates(material: Material) -> dict[str, Any]:
    """GB/s: on the device (bytes read and written), from pinned and pageable memory to it, back, and in main memory."""
    device = material.device
    num_bytes = HOST_COPY_BYTES[device.type]
    host, other = (torch.empty(num_bytes, dtype=torch.uint8).random_() for _ in range(2))
    figures = {"host_copy_GB_per_s": rate(material, lambda: other.copy_(host), num_bytes)}
    if device.type == "cuda":
        large, target = (torch.empty(COPY_BYTES, dtype=torch.uint8, device=device).random_() for _ in range(2))
        pinned, part = host.pin_memory(), large[:num_bytes]
        figures |= {
            "device_copy_GB_per_s": rate(material, lambda: target.copy_(large), 2 * COPY_BYTES),
            "pinned_to_device_GB_per_s": rate(material, lambda: part.copy_(pinned, non_blocking=True), num_bytes),
            "device_to_pinned_GB_per_s": rate(material, lambda: pinned.copy_(part, non_blocking=True), num_bytes),
            "pageable_to_device_GB_per_s": rate(material, lambda: part.copy_(host), num_bytes),
        }
    return figures


def rate(material: Material, copy: Callable[[], Any], num_bytes: int) -> float:
    """GB/s of the fastest of several copies."""
    best = float("inf")
    for _ in range(REPEATS + 1):  # the first one warms up
        material.settle()
        began = time.perf_counter()
        copy()
        material.settle()
        best = min(best, time.perf_counter() - began)
    return round(num_bytes / best / 1e9, 2)
