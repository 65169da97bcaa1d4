"""What features will take on disk: shapes, bytes, and what is already there.

Reads the checkpoint's config.json only (through the encoder's own `plan_shape`), no weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.encoders import encoder_factory
from featurecache.engines import Opening
from featurecache.perturbations import PERTURB_OPTION
from featurecache.spec import STORED_BYTES


@dataclass(frozen=True)
class Estimate:
    """One feature to be made."""

    feature: str
    shape: tuple[int, int]
    num_clips: int
    num_held: int
    clip_bytes: int

    @property
    def bytes_to_write(self) -> int:
        return (self.num_clips - self.num_held) * self.clip_bytes


def estimate(
    features: Mapping[str, Opening], num_clips: int, held: Mapping[str, int], *, stored_dtype: str
) -> list[Estimate]:
    """Estimate every feature, by name; `held` says how many of the clips each has already.

    Raises:
        EncoderError: no such encoder or option.
        WeightsError: no checkpoint to read the widths from.
    """
    results = []
    for feature, opening in features.items():
        registered_name, _, checkpoint = opening.encoder.partition(":")
        factory = encoder_factory(registered_name)
        if hasattr(factory, "plan_shape"):
            own = {key: value for key, value in opening.options.items() if key != PERTURB_OPTION}
            shape = factory.plan_shape(opening.weights or checkpoint or None, own)
        else:  # a user's own encoder may not offer it
            shape = opening.open("cpu").shape
        clip_bytes = round(shape[0] * shape[1] * STORED_BYTES[stored_dtype])
        results.append(Estimate(feature, shape, num_clips, held.get(feature, 0), clip_bytes))
    return results


def free_bytes(location: str) -> int | None:
    """Return the bytes free where a local store lies or will lie; None for a store behind a URL."""
    if "://" in location:
        return None
    folder = Path(location).resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def total_bytes(estimates: Sequence[Estimate]) -> int:
    """Sum of what is to be written."""
    return sum(item.bytes_to_write for item in estimates)
