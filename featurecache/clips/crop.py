"""The crop of a clip: the part of every frame that belongs to it, for example if several people share the picture.

Shapes: frames (F, H, W, 3) in and out. Edges are fractions of the displayed width and height, so a crop is valid for a
recording of any size: {"right": 0.5} is the left half. An edge is rounded to the nearest pixel border, so two halves of
a picture share no pixel and lose none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from featurecache.errors import suggest
from featurecache.outside_text import shown


@dataclass(frozen=True)
class Crop:
    """A rectangle; by default the whole picture."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def apply(self, pictures: np.ndarray) -> np.ndarray:
        """Cut (F, H, W, 3) to the rectangle; at least one row and one column remain."""
        rows, columns = pictures.shape[1:3]
        top, bottom = _pixels(self.top, self.bottom, rows)
        left, right = _pixels(self.left, self.right, columns)
        return np.ascontiguousarray(pictures[:, top:bottom, left:right])

    def as_json(self) -> dict[str, float]:
        """Return the value in a clip list: the edges that differ from those of the whole picture."""
        return {edge.name: value for edge in fields(self) if (value := getattr(self, edge.name)) != edge.default}


def parse_crop(value: Any) -> tuple[str, Crop | None]:
    """Return the problem of a clip list's value, empty if there is none, and the crop; None for the whole picture."""
    edges = [edge.name for edge in fields(Crop)]
    if not isinstance(value, Mapping):
        return f"crop: expected an object of {', '.join(edges)}, got {shown(value)}", None
    for key, number in value.items():
        if key not in edges:
            return f"crop: unknown edge {shown(key)}.{suggest(str(key), edges)}", None
        is_fraction = isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= 1
        if not is_fraction:
            return f"crop.{key}: expected a fraction from 0 to 1, got {shown(number)}", None
    crop = Crop(**{key: float(number) for key, number in value.items()})
    if crop.left >= crop.right or crop.top >= crop.bottom:
        return f"crop: expected left below right and top below bottom, got {dict(value)}", None
    return "", None if crop == Crop() else crop


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    first = min(math.floor(low * size + 0.5), size - 1)
    return first, max(first + 1, math.floor(high * size + 0.5))
