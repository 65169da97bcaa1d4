"""Degrade a clip's sound or frames before encoding: noise, low light, dropped frames.

A perturbation is applied to the decoded waveform or frames, before the encoder's preprocessing, and is part of the
feature's spec. Random values are derived from the content, so tokens still depend only on (media bytes, spec).

Shapes: waveform (S,) float32; frames (F, H, W, 3) uint8. As text a perturbation is `NAME:STRENGTH`: noise:10,
low-light:0.1, drop-frames:0.5. This module knows no file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from featurecache.errors import EncoderError, suggest
from featurecache.spec import Spec

PERTURB_OPTION = "perturb"
IMPLEMENTATION = 1
"""Version of the arithmetic below; raised with every change of its results."""


@dataclass(frozen=True)
class Perturbation:
    """One kind of perturbation at one strength."""

    name: str
    strength: float

    @property
    def medium(self) -> Literal["sound", "frames"]:
        """The kind of view that it can be applied to."""
        return _KINDS[self.name].medium

    def apply(self, view: np.ndarray) -> np.ndarray:
        """Return the perturbed view, (S,) float32 or (F, H, W, 3) uint8; the input array is not changed."""
        return _KINDS[self.name].apply(view, self.strength)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, _KINDS[self.name].unit: self.strength, "implementation": IMPLEMENTATION}


def add_noise(waveform: np.ndarray, snr_db: float) -> np.ndarray:
    """Add white noise at a signal-to-noise ratio over the whole waveform; silence stays silent."""
    if not len(waveform):
        return waveform
    signal = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    noise = _random(waveform).standard_normal(len(waveform)) * signal * 10 ** (-snr_db / 20)
    return np.clip(waveform + noise, -1, 1).astype(np.float32)


def dim(frames: np.ndarray, share: float) -> np.ndarray:
    """Scale linear light by `share` and convert it back to sRGB of 8 bits, as if less light reached the camera."""
    level = np.arange(256) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4) * share
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)[frames]


def drop_frames(frames: np.ndarray, probability: float) -> np.ndarray:
    """Replace each frame with `probability` by the last frame that is not dropped; one frame always stays."""
    random = _random(frames)
    stays = random.random_sample(len(frames)) >= probability
    if not stays.any():
        stays[random.randint(len(frames))] = True
    last_index = np.maximum.accumulate(np.where(stays, np.arange(len(frames)), -1))
    return frames[np.where(last_index < 0, np.flatnonzero(stays)[0], last_index)]  # before the first: the first


def _random(content: np.ndarray) -> np.random.RandomState:
    """Return a generator seeded by the content; RandomState, because NumPy promises that its numbers never change."""
    digest = hashlib.sha256(np.ascontiguousarray(content).tobytes()).digest()
    return np.random.RandomState(np.frombuffer(digest, np.uint32))


@dataclass(frozen=True)
class _Kind:
    medium: Literal["sound", "frames"]
    apply: Callable[[np.ndarray, float], np.ndarray]
    unit: str
    low: float
    high: float


_KINDS = {
    "noise": _Kind("sound", add_noise, "snr_db", -60, 120),
    "low-light": _Kind("frames", dim, "share", 0, 1),
    "drop-frames": _Kind("frames", drop_frames, "probability", 0, 1),
}


def parse_perturbation(text: str) -> Perturbation:
    """Read `NAME:STRENGTH`.

    Raises:
        EncoderError: another form, no such perturbation, or a strength out of range.
    """
    name, _, value = text.partition(":")
    kind = _KINDS.get(name)
    if kind is None:
        raise EncoderError(
            f"{PERTURB_OPTION} {text}",
            expected="noise:DB, low-light:SHARE or drop-frames:PROBABILITY",
            got=repr(name),
            next_step=suggest(name, _KINDS).strip() or None,
        )
    try:
        strength = float(value)
    except ValueError:
        strength = np.nan
    if not kind.low <= strength <= kind.high:
        raise EncoderError(
            f"{PERTURB_OPTION} {text}", expected=f"{kind.unit} from {kind.low:g} to {kind.high:g}", got=repr(value)
        )
    return Perturbation(name, strength)


SPEC_KEY = "perturbation"
"""Key of the perturbation in the spec's `preprocessing`."""


def unperturbed(spec: Spec) -> Spec:
    """Return the spec without its perturbation; a spec without one is returned as it is."""
    return replace(spec, preprocessing={k: v for k, v in spec.preprocessing.items() if k != SPEC_KEY})
