"""Figures of closed labels from confusion counts, for many models or many resamples at once.

They equal those of `fusion_train.metrics` (tested): WAR (accuracy), UAR, weighted F1, macro F1. Classes without a
reference enter no mean; without any clip a figure is 0.
Shapes: … any, C classes; counts[…, r, a] of references r answered a. Shares, not per cent.
"""

from __future__ import annotations

import numpy as np

FIGURES = ("UAR", "WAR", "weighted F1", "macro F1")


def confusions(references: np.ndarray, answers: np.ndarray, num_classes: int) -> np.ndarray:
    """Count (C, C) from classes (n,) and answers (n,)."""
    counts = np.bincount(references * num_classes + answers, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def figure(name: str, counts: np.ndarray) -> np.ndarray:
    """Compute a figure (…) from counts (…, C, C)."""
    counts = counts.astype(float)
    right, references = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1)
    has_clips = references > 0
    if name == "WAR":
        return right.sum(axis=-1) / np.maximum(references.sum(axis=-1), 1e-12)
    if name == "UAR":
        by_class = right / np.where(has_clips, references, 1)
    else:
        by_class = 2 * right / np.maximum(references + counts.sum(axis=-2), 1e-12)
    weights = references if name == "weighted F1" else has_clips.astype(float)
    return (by_class * weights).sum(axis=-1) / np.maximum(weights.sum(axis=-1), 1e-12)
