"""Projection of a clip's tokens to the vector by which clips of one feature are compared: summary, then PCA whitening.

A summary is the mean and the standard deviation of a clip's tokens per channel. Both ignore the order of the tokens,
so a clip that was cut or slowed down stays similar to itself. Tokens are converted to float32 in one buffer that fits
into the processor's cache, which is several times faster than converting all clips at once. They are added element by
element in a fixed order, so the summary of a clip depends neither on its neighbours nor on the number of threads.

Encoder tokens share a large common component and a few channels of large amplitude, which dominate a plain cosine.
Therefore every channel of a summary is centred and divided by its deviation, and the result is projected on its first
principal axes. The index stores these coordinates. Three comparisons use the same coordinates:

- `overall`: the coordinates themselves. A few strong axes decide: arousal, speaker, loudness. For neighbours, maps and
  labels.
- `content`: the axes that are estimated from many clips, whitened (divided by their deviation), so weak axes that tell
  sentences or scenes apart count as much as strong ones. Emotion is weaker.
- `copies`: more axes, whitened too. They tell a recording from all others; emotion is nearly lost. For duplicates and
  leaks.

docs/guides/similarity.md has the results of each on acted speech.

Shapes: B clips, W width of a summary (2D), R axes (at most 128). The similarity of two clips is the dot product of
their unit vectors, −1 to 1; unrelated clips lie around 0.

Axes and coordinates are computed in double precision and rounded to half precision, so equal stores give equal bytes
for any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

BUFFER_BYTES = 5 << 20
"""Size of the float32 buffer; it fits into the processor's cache."""


def summarise(tokens: np.ndarray) -> np.ndarray:
    """Summarise tokens: (B, K, D) -> (B, 2D) float32, the mean over the tokens, then their standard deviation."""
    import torch  # converts half precision several times as fast as NumPy

    if tokens.dtype.name == "bfloat16":
        stored = torch.from_numpy(tokens.view(np.int16)).view(torch.bfloat16)
    else:
        stored = torch.from_numpy(tokens)
    count, num_tokens, width = stored.shape
    batch = max(1, BUFFER_BYTES // (4 * num_tokens * width))
    with torch.inference_mode():
        out = torch.empty(count, 2 * width)
        buffer = torch.empty(min(batch, count), num_tokens, width)
        for begin in range(0, count, batch):
            clips = stored[begin : begin + batch]
            values = buffer[: len(clips)].copy_(clips)
            mean = _total(values.clone()) / num_tokens  # [b, d]
            square = _total(values.sub_(mean[:, None]).square_()) / num_tokens
            out[begin : begin + batch, :width] = mean
            out[begin : begin + batch, width:] = square.sqrt_()
        return out.numpy()


def _total(values: torch.Tensor) -> torch.Tensor:
    """Sum over K by halves: (b, K, D) -> (b, D). Overwrites `values`."""
    length = values.shape[1]
    while length > 1:
        half = length // 2
        values[:, :half] += values[:, length - half : length]
        length -= half
    return values[:, 0]


OVERALL, CONTENT, COPIES = "overall", "content", "copies"

MAX_AXES = 128
CLIPS_PER_AXIS = {CONTENT: 16, COPIES: 4}
"""Whitening uses one axis per so many clips, and leaves out the rest: their deviations are poor estimates."""
SMALLEST_DEVIATION = 1e-3
"""Relative to the first axis; smaller deviations are rounding errors of half precision."""
NUM_FITTED = 2048
"""Largest number of clips that a projection is fitted to: 16 per axis."""
MAX_EXACT = 512
"""Smaller side of a matrix up to which the exact singular value decomposition is used."""
OVERSAMPLED, NUM_ITERATIONS = 32, 6
"""Extra directions and steps of the subspace iteration for larger matrices."""
MANTISSA_BITS = 11
LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Projection:
    """Fitted principal axes."""

    mean: np.ndarray
    """(W,) float32."""
    axes: np.ndarray
    """(W, R) float32; the coordinates of a clip are (summary − mean) @ axes."""
    deviations: np.ndarray
    """(R,) float32, standard deviations of the coordinates, largest first."""
    num_fitted: int
    """Number of clips that the axes were fitted to."""

    @classmethod
    def fit(cls, summaries: np.ndarray) -> Projection:
        """Fit the axes to (B, W) summaries of at least two clips.

        Raises:
            ValueError: fewer than two clips, or all clips are equal.
        """
        count = len(summaries)
        if count < 2:
            raise ValueError("expected at least two clips")
        exact = summaries.astype(np.float64)
        mean = exact.mean(0)
        scale = np.sqrt(np.square(exact - mean).mean(0))
        scale = np.where(scale > 0, scale, 1)
        deviations, directions = _principal_axes((exact - mean) / scale, MAX_AXES)
        if deviations[0] < 1e-6:
            raise ValueError("expected clips that differ")
        num_axes = int((deviations > SMALLEST_DEVIATION * deviations[0]).sum())
        axes = _rounded(directions[:, :num_axes] / scale[:, None])
        return cls(_rounded(mean), np.ascontiguousarray(axes), _rounded(deviations[:num_axes]), count)

    @property
    def num_axes(self) -> int:
        return self.axes.shape[1]

    def num_whitened(self, comparison: str) -> int:
        """Return the number of leading axes that `content` or `copies` uses."""
        return min(max(1, self.num_fitted // CLIPS_PER_AXIS[comparison]), self.num_axes)

    def scale(self, comparison: str) -> np.ndarray:
        """Return the (R,) float32 factors of the coordinates for a comparison."""
        if comparison == OVERALL:
            return np.ones(self.num_axes, np.float32)
        used = np.arange(self.num_axes) < self.num_whitened(comparison)
        return np.where(used, 1 / self.deviations, 0).astype(np.float32)

    def coordinates(self, summaries: np.ndarray) -> np.ndarray:
        """Project summaries: (B, W) float32 -> (B, R) float32, rounded to float16 precision."""
        exact = (summaries.astype(np.float64) - self.mean) @ self.axes.astype(np.float64)
        return exact.clip(-LARGEST_HALF, LARGEST_HALF).astype(np.float16).astype(np.float32)

    def unit(self, coordinates: np.ndarray, comparison: str) -> np.ndarray:
        """Scale coordinates (B, R) for a comparison and normalise them to (B, R) float32 unit vectors."""
        scaled = coordinates * self.scale(comparison)
        return scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)

    def project(self, summaries: np.ndarray, comparison: str) -> np.ndarray:
        """Project summaries (B, W) to (B, R) float32 unit vectors for a comparison."""
        return self.unit(self.coordinates(summaries), comparison)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Round to 11 mantissa bits, as float32: differences in the last bits of a sum disappear."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.round(mantissa * 2**MANTISSA_BITS) / 2**MANTISSA_BITS, exponent).astype(np.float32)


def _principal_axes(centred: np.ndarray, max_axes: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, W) -> deviations (n,) along the first n <= `max_axes` principal axes, largest first, and the axes (W, n).

    The largest component of every axis is positive.
    """
    count, width = centred.shape
    if min(count, width) <= MAX_EXACT:
        _, values, right = np.linalg.svd(centred, full_matrices=False)
        axes = right[:max_axes].T
    else:  # subspace iteration gives only the leading axes of a large matrix
        basis = np.random.default_rng(0).standard_normal((width, max_axes + OVERSAMPLED))
        for _ in range(NUM_ITERATIONS):
            basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
        _, values, right = np.linalg.svd(centred @ basis, full_matrices=False)
        axes = basis @ right[:max_axes].T
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return values[:max_axes] / np.sqrt(count), axes * signs
