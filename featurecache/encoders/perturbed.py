"""Worse conditions than those a clip was recorded in: noise, low light, dropped frames.

A perturbation is applied to the decoded waveform or frames, before the preprocessing of the encoder, and is part of the
feature's spec. Random values are derived from the content itself, so that tokens still depend on (media bytes, spec)
alone. `PerturbedEncoder` wraps any encoder; everything else is the encoder's own.

Shapes: waveform (S,) float32; frames (F, H, W, 3) uint8. `NAME:STRENGTH` as text: noise:10, low-light:0.1,
drop-frames:0.5. This module knows no file.
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
"""Raised whenever the arithmetic below changes what it gives."""


@dataclass(frozen=True)
class Perturbation:
    """One kind at one strength."""

    name: str
    strength: float

    @property
    def of(self) -> Literal["sound", "frames"]:
        """What it can be applied to."""
        return _KINDS[self.name].of

    def apply(self, view: np.ndarray) -> np.ndarray:
        """(S,) float32 or (F, H, W, 3) uint8 in, the same out; the input is left as it is."""
        return _KINDS[self.name].apply(view, self.strength)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, _KINDS[self.name].unit: self.strength, "implementation": IMPLEMENTATION}


def add_noise(waveform: np.ndarray, snr_db: float) -> np.ndarray:
    """White noise at a signal-to-noise ratio over the whole waveform; silence stays silent."""
    if not len(waveform):
        return waveform
    signal = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    noise = _random(waveform).standard_normal(len(waveform)) * signal * 10 ** (-snr_db / 20)
    return np.clip(waveform + noise, -1, 1).astype(np.float32)


def dim(frames: np.ndarray, share: float) -> np.ndarray:
    """Only `share` of the light reaches the camera: linear light is scaled and rounded to 8 bits sRGB again."""
    level = np.arange(256) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4) * share
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)[frames]


def drop_frames(frames: np.ndarray, probability: float) -> np.ndarray:
    """Each frame is lost with `probability` and shows the one kept before it; one frame is always kept."""
    random = _random(frames)
    kept = random.random_sample(len(frames)) >= probability
    if not kept.any():
        kept[random.randint(len(frames))] = True
    last = np.where(kept, np.arange(len(frames)), -1)
    last = np.maximum.accumulate(last)
    return frames[np.where(last < 0, np.flatnonzero(kept)[0], last)]


def _random(content: np.ndarray) -> np.random.RandomState:
    """A generator seeded by the content; RandomState, because NumPy promises that its numbers never change."""
    digest = hashlib.sha256(np.ascontiguousarray(content).tobytes()).digest()
    return np.random.RandomState(np.frombuffer(digest, np.uint32))


@dataclass(frozen=True)
class _Kind:
    of: Literal["sound", "frames"]
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
"""Where the spec names it, in `preprocessing`."""


class PerturbedEncoder:
    """Wraps an encoder; what is not defined here is the encoder's."""

    def __init__(self, encoder: Any, perturbation: Perturbation) -> None:
        self._encoder, self._perturbation = encoder, perturbation

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while this is copied or unpickled there is no encoder yet to ask
            raise AttributeError(name)
        return getattr(self._encoder, name)

    @property
    def batch_size(self) -> int:
        return self._encoder.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._encoder.batch_size = size

    def spec(self, stored_dtype: str) -> Spec:
        """The encoder's spec, with the perturbation in its preprocessing."""
        own = self._encoder.spec(stored_dtype)
        return replace(own, preprocessing={**own.preprocessing, SPEC_KEY: self._perturbation.as_json()})

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """Disturb, then preprocess as the encoder does."""
        return self._encoder.preprocess(self._perturbation.apply(view))


def undisturbed(spec: Spec) -> Spec:
    """The spec without its perturbation; the same one where it has none."""
    return replace(spec, preprocessing={k: v for k, v in spec.preprocessing.items() if k != SPEC_KEY})
