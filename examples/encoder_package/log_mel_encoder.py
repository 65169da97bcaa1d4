"""`log-mel`: log energies of mel bands, an encoder without weights.

Shapes: waveform (S,) at 16 kHz, cut to 30 s and padded with zeros -> power spectra (T, 257) of 32 ms windows at 16 ms a
token -> log energies of D = 40 mel bands (T, D) -> averages over time (K, D).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from featurecache.encoders import ExportableEncoder
from featurecache.encoders.checkpoint import read_options
from featurecache.encoders.network import FrozenNetwork, required, resolve_compute_dtype, resolve_device
from featurecache.encoders.pooling import average_over_time
from featurecache.spec import Spec
from featurecache.views import AudioView

SAMPLING_RATE = 16_000
SECONDS = 30
WINDOW = 512  # samples, 32 ms
HOP = 256  # samples, 16 ms
NUM_BANDS = 40
FLOOR = 1e-6
"""Added to an energy before its logarithm, so that silence is finite."""
IMPLEMENTATION = 1
"""Raise it whenever the same clip gives other tokens: stored features of the earlier number are then refused."""
KNOWN_OPTIONS = {"tokens": 64, "batch": 1}


def mel_filters() -> torch.Tensor:
    """Return (NUM_BANDS, WINDOW // 2 + 1) triangles whose corners are evenly spaced on the mel scale."""
    frequencies = torch.linspace(0, SAMPLING_RATE / 2, WINDOW // 2 + 1)
    highest = 2595 * np.log10(1 + SAMPLING_RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, highest, NUM_BANDS + 2) / 2595) - 1)
    rising = (frequencies - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - frequencies) / (corners[2:] - corners[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


class LogMel(torch.nn.Module):
    """(B, S) waveforms -> (B, T, NUM_BANDS) log energies."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", mel_filters())
        self.register_buffer("window", torch.hann_window(WINDOW))

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        frames = waveforms.unfold(1, WINDOW, HOP) * self.window  # [b, t, window]
        power = torch.fft.rfft(frames).abs().square()  # [b, t, window // 2 + 1]
        return torch.log(power @ self.filters.T + FLOOR)  # [b, t, d]


class LogMelEncoder(ExportableEncoder):
    """The encoder that the entry point `log-mel` names."""

    name = "log-mel"
    default_weights = "none"

    def __init__(self, network: FrozenNetwork | None, options: Mapping[str, Any]) -> None:
        self.network = network
        self.view = AudioView(SAMPLING_RATE, SECONDS)
        self.shape = (options["tokens"], NUM_BANDS)
        self.batch_size = options["batch"]

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> LogMelEncoder:
        """Make the encoder; `weights` is ignored, because there are none.

        Options: `tokens` (64), `batch` (1, the clips of a forward pass).

        Raises:
            EncoderError: an unknown option or dtype.
        """
        place = resolve_device(device)
        network = FrozenNetwork(LogMel(), place, resolve_compute_dtype(compute_dtype, place))
        return cls(network, read_options(cls.name, options, KNOWN_OPTIONS))

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) for `fcache plan`."""
        return read_options(cls.name, options, KNOWN_OPTIONS)["tokens"], NUM_BANDS

    @classmethod
    def from_spec(cls, spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None) -> LogMelEncoder:
        """Build the encoder of a spec around a loaded network, or around none for preprocessing."""
        return cls(network, cls.options_of(spec))

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values that `from_spec` and `empty_network` need beside the spec: none, for a network of fixed size."""
        return {}

    @classmethod
    def empty_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        """Return the network into which an exported model loads its weights, here the buffers of `LogMel`."""
        return LogMel()

    @classmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """Return the options with which `open` gives an encoder of this spec."""
        return {"tokens": spec.pooling["tokens"], "batch": spec.architecture["batch"]}

    def spec(self, stored_dtype: str) -> Spec:
        """Return everything that decides the stored bytes; another value is another fingerprint."""
        return Spec(
            encoder=self.name,
            implementation=IMPLEMENTATION,
            weights={},
            architecture={"bands": NUM_BANDS, "scale": "mel", "floor": FLOOR, "batch": self.batch_size},
            tap={},
            preprocessing={
                "sampling_rate": SAMPLING_RATE,
                "channels": self.view.channels,
                "seconds": SECONDS,
                "window": WINDOW,
                "hop": HOP,
            },
            pooling={"rule": "adaptive average over time", "tokens": self.shape[0]},
            compute_dtype=required(self.network).compute_dtype,
            stored_dtype=stored_dtype,
            shape=self.shape,
        )

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """(S,) float32 waveform in, the same padded with zeros to 30 s out. Runs on decode threads."""
        padded = np.zeros(SECONDS * SAMPLING_RATE, np.float32)
        padded[: len(view)] = view[: len(padded)]
        return padded

    def forward(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """(B, 30 s of samples) in, (B, T, D) out; an exported model passes tensors."""
        network = required(self.network)
        with network.running():
            return network.module(network.tensor(batch))

    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """(B, T, D) in, (B, K, D) float32 out; `valid` is for encoders with `needs_valid`."""
        return average_over_time(tokens, self.shape[0])
