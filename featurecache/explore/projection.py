"""Vectors that clips of one feature are compared by: summaries of tokens, then principal axes of the summaries.

A summary is the mean and the standard deviation of a clip's tokens per channel. Neither depends on the order of tokens,
so a clip that was cut or slowed down stays near itself. Clips are widened into one buffer that stays in the processor's
cache, which is several times as fast as widening all of them. Tokens are added element by element in a fixed order, so
that the summary of a clip depends neither on its neighbours nor on the number of threads.

Encoder tokens share a large common part and a few loud channels; a plain cosine sees little else. So every channel of
a summary is centred and divided by its deviation, and the result is projected on its first principal axes. What is kept
of a clip are its coordinates on them. Three comparisons are made of the same coordinates, each for its purpose:

- `overall`: the coordinates as they are. How clips sound or look as a whole; a few strong axes decide (how aroused,
  who speaks, how loud). For neighbours, maps and labels.
- `content`: axes that rest on many clips, each divided by its deviation, so that what tells one sentence or scene from
  another counts as much as what is strong. Emotion is weaker in it.
- `copies`: all axes that rest on some clips, divided likewise. What makes a recording unlike all others; emotion is all
  but lost. For duplicates and leaks.

docs/guides/similarity.md has what each finds on acted speech.

Shapes: B clips, W width of a summary (2D), R axes kept (at most 128). Similarity of two clips is the product of their
vectors of length 1, −1 to 1; clips that have nothing to do with one another lie around 0.

Axes and coordinates are computed in double precision and rounded to half precision, so that equal stores give equal
bytes whatever the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

BUFFER_BYTES = 5 << 20


def summarise(tokens: np.ndarray) -> np.ndarray:
    """(B, K, D) -> (B, 2D) float32: the mean over the tokens, then their standard deviation."""
    import torch  # converts half precision several times as fast as NumPy

    if tokens.dtype.name == "bfloat16":
        stored = torch.from_numpy(tokens.view(np.int16)).view(torch.bfloat16)
    else:
        stored = torch.from_numpy(tokens)
    count, num_tokens, width = stored.shape
    at_once = max(1, BUFFER_BYTES // (4 * num_tokens * width))
    with torch.inference_mode():
        out = torch.empty(count, 2 * width)
        buffer = torch.empty(min(at_once, count), num_tokens, width)
        for begin in range(0, count, at_once):
            some = stored[begin : begin + at_once]
            values = buffer[: len(some)].copy_(some)
            mean = _total(values.clone()) / num_tokens  # [b, d]
            square = _total(values.sub_(mean[:, None]).square_()) / num_tokens
            out[begin : begin + at_once, :width] = mean
            out[begin : begin + at_once, width:] = square.sqrt_()
        return out.numpy()


def _total(values: torch.Tensor) -> torch.Tensor:
    """(b, K, D) -> (b, D), the sum over K by halves; overwrites `values`."""
    length = values.shape[1]
    while length > 1:
        half = length // 2
        values[:, :half] += values[:, length - half : length]
        length -= half
    return values[:, 0]


OVERALL, CONTENT, COPIES = "overall", "content", "copies"

MAX_AXES = 128
CLIPS_AN_AXIS = {CONTENT: 16, COPIES: 4}
"""Axes that rest on fewer clips than this are not divided by their deviation, but left out."""
SMALLEST_DEVIATION = 1e-3
"""Of the largest axis; below it lies the rounding of half precision."""
NUM_FITTED = 2048
"""Clips that a space is fitted on, at most: 16 an axis."""
MAX_EXACT = 512
OVERSAMPLED, NUM_ITERATIONS = 32, 6
KEPT_BITS = 11
LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Space:
    """Fitted axes."""

    mean: np.ndarray
    """(W,) float32."""
    axes: np.ndarray
    """(W, R) float32; a summary less the mean, projected on them, gives a clip's coordinates."""
    deviations: np.ndarray
    """(R,) float32 of the coordinates, largest first."""
    num_fitted: int

    @classmethod
    def fit(cls, summaries: np.ndarray) -> Space:
        """Fit to (B, W) summaries of at least two clips.

        Raises:
            ValueError: fewer than two clips, or clips that are all equal.
        """
        count = len(summaries)
        if count < 2:
            raise ValueError("expected at least two clips")
        wide = summaries.astype(np.float64)
        mean = wide.mean(0)
        scale = np.sqrt(np.square(wide - mean).mean(0))
        scale = np.where(scale > 0, scale, 1)
        deviations, directions = _principal((wide - mean) / scale, MAX_AXES)
        if deviations[0] < 1e-6:
            raise ValueError("expected clips that differ")
        kept = int((deviations > SMALLEST_DEVIATION * deviations[0]).sum())
        axes = _rounded(directions[:, :kept] / scale[:, None])
        return cls(_rounded(mean), np.ascontiguousarray(axes), _rounded(deviations[:kept]), count)

    @property
    def num_axes(self) -> int:
        return self.axes.shape[1]

    def num_whitened(self, comparison: str) -> int:
        """How many of the first axes `content` or `copies` compare."""
        return min(max(1, self.num_fitted // CLIPS_AN_AXIS[comparison]), self.num_axes)

    def scale(self, comparison: str) -> np.ndarray:
        """(R,) float32: what coordinates are multiplied by before they are compared."""
        if comparison == OVERALL:
            return np.ones(self.num_axes, np.float32)
        counted = np.arange(self.num_axes) < self.num_whitened(comparison)
        return np.where(counted, 1 / self.deviations, 0).astype(np.float32)

    def coordinates(self, summaries: np.ndarray) -> np.ndarray:
        """(B, W) float32 -> (B, R) float32, numbers that float16 holds exactly."""
        exact = (summaries.astype(np.float64) - self.mean) @ self.axes.astype(np.float64)
        return exact.clip(-LARGEST_HALF, LARGEST_HALF).astype(np.float16).astype(np.float32)

    def unit(self, coordinates: np.ndarray, comparison: str) -> np.ndarray:
        """(B, R) coordinates -> (B, R) float32 vectors of length 1."""
        scaled = coordinates * self.scale(comparison)
        return scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)

    def project(self, summaries: np.ndarray, comparison: str) -> np.ndarray:
        """(B, W) -> (B, R) float32 vectors of length 1."""
        return self.unit(self.coordinates(summaries), comparison)


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 of the nearest numbers of 11 bits: differences in the last bits of a sum do not show."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.round(mantissa * 2**KEPT_BITS) / 2**KEPT_BITS, exponent).astype(np.float32)


def _principal(centred: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, W) -> deviations (n,) along the first n <= `most` principal axes, largest first, and the axes (W, n).

    The largest component of every axis is positive.
    """
    count, width = centred.shape
    if min(count, width) <= MAX_EXACT:
        _, values, right = np.linalg.svd(centred, full_matrices=False)
        axes = right[:most].T
    else:  # subspace iteration: the leading axes of a large matrix, without the rest of its spectrum
        basis = np.random.default_rng(0).standard_normal((width, most + OVERSAMPLED))
        for _ in range(NUM_ITERATIONS):
            basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
        _, values, right = np.linalg.svd(centred @ basis, full_matrices=False)
        axes = basis @ right[:most].T
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return values[:most] / np.sqrt(count), axes * signs
