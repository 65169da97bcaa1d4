"""Encode tokens for storage: check that they are finite, round them to the stored dtype, or quantise them.

Quantised tokens have one byte per number, int8 or float8 (e4m3), and one scale per channel and group of tokens.

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

from featurecache.spec import Spec
from featurecache.store.layout import LOGICAL_DTYPES
from featurecache.store.protocols import NotFiniteError

GROUP_TOKENS = 32
LARGEST = {"int8": 127.0, "float8": 448.0}
MAX_MAGNITUDE = max(LARGEST.values())
FLOAT16_MAX = 65504.0

_FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
_VALUE_OF_BITS = np.arange(256, dtype=np.uint8).view(_FLOAT8).astype(np.float32)


def encode_tokens(tokens: np.ndarray, spec: Spec) -> tuple[list[np.ndarray], dict[str, float]]:
    """Return the stored arrays of (K, D) tokens, one per part, and their absmax and quantisation errors.

    Raises:
        NotFiniteError: NaN, infinity, or a value too large for the stored dtype.
        ValueError: another shape or dtype.
    """
    tokens = np.asarray(tokens)
    if tokens.shape != spec.shape:
        raise ValueError(f"tokens: expected shape {spec.shape}, got {tokens.shape}")
    logical = LOGICAL_DTYPES[spec.stored_dtype]
    exact = np.ascontiguousarray(tokens)
    if tokens.dtype != logical:
        if tokens.dtype != np.float32:
            raise ValueError(f"tokens: expected float32 or {logical}, got {tokens.dtype}")
        with np.errstate(over="ignore"):
            tokens = tokens.astype(logical)
    row = np.ascontiguousarray(tokens)
    absmax, finite = magnitude(row)
    if not finite:
        raise NotFiniteError(f"tokens: expected finite numbers of {logical}, got NaN or infinity")
    if spec.stored_dtype in LARGEST:
        q, scales = quantise(exact, spec.stored_dtype)
        return [q, scales], {"absmax": absmax, **measured_error(exact, dequantise(q, scales))}
    return [row.view(np.uint16) if logical.kind == "V" else row], {"absmax": absmax}


def magnitude(row: np.ndarray) -> tuple[float, bool]:
    """Return (largest absolute value, whether all values are finite), computed from the bits of the floats.

    This is much faster than arithmetic on half floats. Magnitudes of floats order like their bits as integers: read as
    unsigned integers, the maximum belongs to the largest negative magnitude if any value is negative; read as signed
    integers, to the largest positive one.
    """
    unsigned = row.view(np.uint32 if row.itemsize == 4 else np.uint16)
    sign = 1 << (8 * row.itemsize - 1)
    negative = int(unsigned.max())
    positive = int(unsigned.view(np.int32 if row.itemsize == 4 else np.int16).max())
    largest = max(negative - sign, positive)
    infinity = int(np.array(np.inf, row.dtype).view(unsigned.dtype))
    return float(np.array(largest, unsigned.dtype).view(row.dtype)), largest < infinity


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
