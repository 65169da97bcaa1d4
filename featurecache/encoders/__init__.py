"""Encoders: what they ask of a clip, what they give, and how they are found by name.

An encoder is frozen. It says which `View` of a clip it reads, turns one clip's view into a fixed-shape array
(`preprocess`, run by decode workers, no torch needed), runs its network on a batch of them (`forward`), and averages
the encoder tokens to the fixed count that is stored (`pool`). It knows no file and no store.

Shapes: B clips, F frames, H W pixels, S audio samples, T encoder tokens, K pooled tokens, D encoder width.
A user's own encoder is a class with `open` below, registered under the entry point group `featurecache.encoders`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np

from featurecache.encoders.perturbed import PERTURB_OPTION, Perturbation, PerturbedEncoder, parse_perturbation
from featurecache.errors import EncoderError, suggest
from featurecache.spec import Spec
from featurecache.views import CHANNELS, AudioView, Channels, FramesView, View

__all__ = [
    "CHANNELS",
    "AudioView",
    "Channels",
    "Encoder",
    "EncoderFactory",
    "FramesView",
    "View",
    "encoder_factory",
    "open_encoder",
    "registered",
]
ENTRY_POINTS = "featurecache.encoders"

FRAMES_IMPLEMENTATION = 2
"""`implementation` in the specs of our encoders of frames.

1 may hold clips whose frames were not those displayed: mirrored or anamorphic recordings, AVI with B-frames, joined
recordings, stills of 16 bits.
"""


class Encoder(Protocol):
    """A frozen encoder, ready to run."""

    name: str
    view: View
    shape: tuple[int, int]
    """(K, D)."""
    batch_size: int
    """Batches always have this many clips; the last one is padded. It decides the last bits, so the spec names it."""

    def spec(self, stored_dtype: str) -> Spec:
        """Everything that decides the stored bytes."""
        ...

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """One clip: (S,) float32 or (F, H, W, 3) uint8 in, the network's fixed-shape input (without batch) out.

        Raises:
            MediaError: the clip is at fault; it is recorded as failed. Any other error stops the run.
        """
        ...

    def forward(self, batch: np.ndarray) -> Any:
        """(B, …) preprocessed inputs in, torch tensor of encoder tokens (B, T, D) out, on the device."""
        ...

    def pool(self, tokens: Any) -> Any:
        """(B, T, D) in, (B, K, D) float32 out, on the device.

        An encoder that averages over a clip's own duration alone says so with `needs_valid = True`, offers
        `num_valid(view) -> int`, how many of the T tokens a clip fills, and takes them here: `pool(tokens, valid)`,
        one number a clip.
        """
        ...


class EncoderFactory(Protocol):
    """What an entry point names: usually the encoder class itself.

    It may also offer `plan_shape(weights, options) -> (K, D)`, which reads no weights: `fcache plan` asks for it.
    An encoder may have `notices`, a list of lines that the command line shows once it is loaded; a classmethod
    `plan_notices(weights, options)` gives `fcache plan` the same lines, without reading weights.
    """

    default_weights: str

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> Encoder:
        """Load strictly. Raises WeightsError, or EncoderError for an unknown option."""
        ...


def registered() -> dict[str, str]:
    """Names of every installed encoder, and the object each names."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def encoder_factory(name: str) -> EncoderFactory:
    """Return what is registered under a name, without loading weights.

    Raises:
        EncoderError: no encoder of this name; the near one is suggested.
    """
    found = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if not found:
        known = sorted(registered())
        raise EncoderError(
            f'encoder "{name}"',
            expected="one of " + ", ".join(known),
            got="no such encoder",
            next_step=suggest(name, known).strip() or None,
        )
    return found[0].load()


def open_encoder(
    name: str,
    *,
    weights: str | None = None,
    device: str = "cpu",
    compute_dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> Encoder:
    """Load an encoder by its registered name, or by name and checkpoint in one, `hf-audio:facebook/hubert-base-ls960`.

    The option `perturb`, which every encoder has, disturbs what the encoder is shown (`perturbations`).

    Raises:
        EncoderError: no encoder of this name; the near one is suggested. An unknown perturbation.
        WeightsError: the weights are missing, incomplete or of another architecture.
    """
    registered_name, _, checkpoint = name.partition(":")
    settings = dict(options or {})
    asked = settings.pop(PERTURB_OPTION, None)
    perturbation = None if asked is None else parse_perturbation(str(asked))
    encoder = encoder_factory(registered_name).open(weights or checkpoint or None, device, compute_dtype, settings)
    return encoder if perturbation is None else _perturbed(encoder, perturbation)


def _perturbed(encoder: Encoder, perturbation: Perturbation) -> Encoder:
    view = encoder.view
    shown = "sound" if isinstance(view, AudioView) else "frames"
    single = perturbation.name == "drop-frames" and isinstance(view, FramesView) and view.count == 1
    if perturbation.of != shown or single:
        raise EncoderError(
            f"{encoder.name}.{PERTURB_OPTION}",
            expected=f"one for {'a single frame' if single else shown}",
            got=f'"{perturbation.name}", which is for {"several frames" if single else perturbation.of}',
        )
    return PerturbedEncoder(encoder, perturbation)  # type: ignore[return-value]
