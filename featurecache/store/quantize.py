"""Quantise tokens to one byte per number: int8 or float8 (e4m3), with one scale per channel and group of tokens.

Shapes: K tokens, D width, G = ceil(K / 32) groups. q (K, D); scales (G, D) float16, rounded up so that no value clips:
    int8      x ≈ q × scale,            scale = largest magnitude / 127
    float8    x ≈ e4m3(q) × scale,      scale = largest magnitude / 448
Each channel has its own scales because the outliers of encoders occur in fixed channels: with one scale per row, the
other channels would lose their precision (relative RMS error 0.38 with five channels of ×100, here below 0.01). Scales
take 2 / 32 byte per value. The error of every clip is measured when it is written and kept in its commit record.
"""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np

GROUP_TOKENS = 32
LARGEST = {"int8": 127.0, "float8": 448.0}
MAX_MAGNITUDE = max(LARGEST.values())
FLOAT16_MAX = 65504.0

_FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
_VALUE_OF_BITS = np.arange(256, dtype=np.uint8).view(_FLOAT8).astype(np.float32)


def scales_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape (G, D) of the scales of (K, D) tokens."""
    return -(-shape[0] // GROUP_TOKENS), shape[1]


def quantise(tokens: np.ndarray, stored_dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (K, D) int8 or the bits of float8 (uint8), and (G, D) float16 scales, of finite (K, D) tokens."""
    values = np.asarray(tokens, np.float32)
    starts = np.arange(0, values.shape[0], GROUP_TOKENS)
    exact_scales = np.maximum.reduceat(np.abs(values), starts, axis=0) / np.float32(LARGEST[stored_dtype])
    scales = exact_scales.astype(np.float16)
    too_small = scales.astype(np.float32) < exact_scales
    scales[too_small] = np.nextafter(scales[too_small], np.float16(np.inf))
    divisors = scales.astype(np.float32)
    divisors[divisors == 0] = 1
    scaled = values / _by_token(divisors, values.shape[0])
    if stored_dtype == "int8":
        return np.rint(scaled).astype(np.int8), scales
    return scaled.astype(_FLOAT8).view(np.uint8), scales


def dequantise(q: np.ndarray, scales: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return quantised tokens as (K, D) float16, in `out` if given."""
    values = q.astype(np.float32) if q.dtype == np.int8 else _VALUE_OF_BITS[q]
    scales = scales.astype(np.float32)
    for group, start in enumerate(range(0, q.shape[0], GROUP_TOKENS)):
        values[start : start + GROUP_TOKENS] *= scales[group]
    if scales.max() * MAX_MAGNITUDE > FLOAT16_MAX:  # scales are rounded up, so products may exceed float16
        np.clip(values, -FLOAT16_MAX, FLOAT16_MAX, out=values)
    if out is None:
        out = np.empty(values.shape, np.float16)
    _round_to_float16(values, out)
    return out


def measured_error(tokens: np.ndarray, restored: np.ndarray) -> dict[str, float]:
    """Return the quantisation error of a clip: relative RMS, largest absolute difference, cosine similarity."""
    exact = np.asarray(tokens, np.float64).reshape(-1)
    decoded = np.asarray(restored, np.float64).reshape(-1)
    difference = decoded - exact
    norm, decoded_norm = float(np.linalg.norm(exact)), float(np.linalg.norm(decoded))
    return {
        "error_rms": float(np.linalg.norm(difference)) / norm if norm else 0.0,
        "error_max": float(np.abs(difference).max()),
        "error_cosine": float(exact @ decoded) / (norm * decoded_norm)
        if norm and decoded_norm
        else float(norm == decoded_norm),
    }


def _round_to_float16(values: np.ndarray, out: np.ndarray) -> None:
    """Round to nearest, ties to even. NumPy converts one number at a time; torch, if loaded, eight."""
    if (torch := sys.modules.get("torch")) is not None and out.flags.writeable:
        torch.from_numpy(out).copy_(torch.from_numpy(values))
    else:
        out[...] = values


def _by_token(scales: np.ndarray, num_tokens: int) -> np.ndarray:
    """Repeat the scales (G, D) for every token: (K, D)."""
    return np.repeat(scales, GROUP_TOKENS, axis=0)[:num_tokens]
