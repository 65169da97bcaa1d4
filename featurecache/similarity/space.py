"""The space in which clips of one feature are compared: summaries, centred, whitened, of length 1.

Encoder tokens share a large common part and a few loud channels; a plain cosine sees little else. Principal axes of the
store's own summaries, each divided by its deviation, make every independent way in which clips differ count alike.

Shapes: B clips, W width of a summary (2D), R axes kept (at most 128). Similarity of two clips is the product of their
vectors, −1 to 1; clips that have nothing to do with one another lie around 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_AXES = 128
CLIPS_AN_AXIS = 4
"""Axes that rest on fewer clips than this are noise."""
SMALLEST_DEVIATION = 1e-3
"""Of the largest axis; below it lies the rounding of half precision."""
NUM_FITTED = 2048
"""Clips that a space is fitted on, at most: 16 an axis."""
MAX_EXACT = 512
OVERSAMPLED, NUM_ITERATIONS = 32, 4


@dataclass(frozen=True)
class Space:
    """A fitted projection."""

    mean: np.ndarray
    """(W,) float32."""
    axes: np.ndarray
    """(W, R) float32; projecting on them whitens."""
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
        mean = summaries.mean(0, dtype=np.float64)
        scale = np.sqrt(np.square(summaries - mean.astype(np.float32)).mean(0, dtype=np.float64))
        scale = np.where(scale > 0, scale, 1)
        centred = (summaries - mean.astype(np.float32)) / scale.astype(np.float32)
        deviations, directions = _principal(centred, MAX_AXES)
        if deviations[0] < 1e-6:
            raise ValueError("expected clips that differ")
        kept = min(max(1, count // CLIPS_AN_AXIS), int((deviations > SMALLEST_DEVIATION * deviations[0]).sum()))
        axes = directions[:, :kept] / deviations[:kept] / scale[:, None]
        return cls(mean.astype(np.float32), np.ascontiguousarray(axes, np.float32), count)

    @property
    def num_axes(self) -> int:
        return self.axes.shape[1]

    def project(self, summaries: np.ndarray) -> np.ndarray:
        """(B, W) -> (B, R) float32 vectors of length 1."""
        import torch

        with torch.inference_mode():
            vectors = (torch.from_numpy(summaries) - torch.from_numpy(self.mean)) @ torch.from_numpy(self.axes)
            return torch.nn.functional.normalize(vectors).numpy()


def _principal(centred: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, W) -> deviations (n,) along the first n <= `most` principal axes, largest first, and the axes (W, n)."""
    count, width = centred.shape
    if min(count, width) <= MAX_EXACT:
        _, values, right = np.linalg.svd(centred, full_matrices=False)
        return values[:most] / np.sqrt(count), right[:most].T
    # Subspace iteration: the leading axes of a large matrix, without the rest of its spectrum.
    import torch  # its linear algebra is several times as fast as NumPy's on some processors

    matrix = torch.from_numpy(centred)
    basis = torch.from_numpy(np.random.default_rng(0).standard_normal((width, most + OVERSAMPLED)).astype(np.float32))
    with torch.inference_mode():
        for _ in range(NUM_ITERATIONS):
            basis = torch.linalg.qr(matrix.T @ (matrix @ basis))[0]
        _, values, right = torch.linalg.svd(matrix @ basis, full_matrices=False)
        return values[:most].numpy() / np.sqrt(count), (basis @ right[:most].T).numpy()
