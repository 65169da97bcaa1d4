"""`hf-audio:ID`: HuBERT, wav2vec 2.0, WavLM or data2vec-audio; a Whisper checkpoint opens the encoder `whisper`.

Shapes: waveform (S,) at 16 kHz, cut to `seconds`, normalised over its own samples if the checkpoint says so, padded to
a fixed length -> (T, D) at 20 ms per token -> (K, D). NaN marks padding in the input: networks that were trained with
an attention mask (feature_extractor norm "layer") mask it, the others see zeros there, as published. By default,
averages run over the clip's own duration (pooling "valid"). This module knows no file of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from featurecache.encoders import ExportableEncoder
from featurecache.encoders.checkpoint import Checkpoint
from featurecache.encoders.hub import PUBLISHED
from featurecache.encoders.huggingface import (
    AUDIO,
    TappedNetwork,
    empty_network,
    find_family,
    open_tapped,
    settings_of,
    tapped_of_spec,
)
from featurecache.encoders.network import COMPILE, FrozenNetwork, choose_batch_size, copy_without, required
from featurecache.encoders.pooling import average_sound, read_sound_options
from featurecache.encoders.whisper import WhisperEncoder
from featurecache.spec import Spec
from featurecache.views import CHANNELS, AudioView

KNOWN_OPTIONS = {
    "tokens": 64,
    "pooling": ("valid", "padded"),
    "pool": ("tokens", "mean"),
    "seconds": 30,
    "layer": None,
    "norm": ("final", "none"),
    "batch": None,
    "channels": CHANNELS,
    "compile": COMPILE,
}
DEFAULT_BATCH = 16  # on a GPU; 1 elsewhere
VARIANCE_FLOOR = 1e-7
IMPLEMENTATION = 2
"""`implementation` of pooling "valid" and of masked networks.

Implementation 1 could average a clip over one token only, if the same run also extracted a feature with pooling
"padded"; on a GPU its attention kernel depended on whether any clip of the batch was padded.
"""


class HfAudioEncoder(ExportableEncoder):
    """A speech network of transformers."""

    name = "hf-audio"
    default_weights = PUBLISHED["hf-audio"]
    view: AudioView

    def __init__(self, tapped: TappedNetwork, preprocessor: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.network, self._tapped, self._options = tapped.network, tapped, options
        self._preprocessor = preprocessor
        config = tapped.loaded.config
        self._convolutions = tuple(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.sampling_rate = int(preprocessor.get("sampling_rate", 16_000))
        self.view = AudioView(self.sampling_rate, float(options["seconds"]), options["channels"])
        self._samples = options["seconds"] * self.sampling_rate
        self._normalise = bool(preprocessor.get("do_normalize", True))
        self._masked = bool(
            preprocessor.get("return_attention_mask", getattr(config, "feat_extract_norm", "layer") == "layer")
        )
        self.shape = (options["tokens"], config.hidden_size)
        self.needs_valid = options["pooling"] == "valid"
        self.batch_size = choose_batch_size(self.network, options["batch"], DEFAULT_BATCH)
        self.output_layer = tapped.tap.get("blocks") if tapped.gives_layers else None

    @classmethod
    def open(
        cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]
    ) -> ExportableEncoder:
        """Load every weight of the network, or fail.

        Options: `tokens` (64), `pooling` (valid or padded), `pool` (tokens; mean: one vector, as tokens=1 with pooling
        valid), `seconds` (30, the longest part of a clip that is encoded), `layer` (all blocks), `norm` (final or
        none), `batch`, `channels` (mean or standard, as in Whisper), `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another family.
            EncoderError: unknown option, device or dtype.
        """
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        if checkpoint.json("config.json").get("model_type") == "whisper":
            return WhisperEncoder.open(weights, device, compute_dtype, options)
        settings = read_sound_options(cls.name, options, KNOWN_OPTIONS)
        tapped = open_tapped(checkpoint, AUDIO, device, compute_dtype, settings)
        return cls(tapped, checkpoint.json("preprocessor_config.json"), settings)

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config only."""
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        document = checkpoint.json("config.json")
        if document.get("model_type") == "whisper":
            return WhisperEncoder.plan_shape(weights or cls.default_weights, options)
        settings = read_sound_options(cls.name, options, KNOWN_OPTIONS)
        return settings["tokens"], find_family(checkpoint, AUDIO)[1].hidden_size

    @classmethod
    def plan_layers(cls, weights: str | None, options: Mapping[str, Any]) -> int:
        """Return the number of blocks, from the checkpoint's config only; 0 if an adapter follows them."""
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        if checkpoint.json("config.json").get("model_type") == "whisper":
            return WhisperEncoder.plan_layers(weights or cls.default_weights, options)
        config = find_family(checkpoint, AUDIO)[1]
        return 0 if getattr(config, "add_adapter", False) else config.num_hidden_layers

    @classmethod
    def from_spec(cls, spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None) -> HfAudioEncoder:
        """Build the encoder of a spec around a loaded network, or around none for preprocessing."""
        options = cls.options_of(spec)
        return cls(tapped_of_spec(spec, settings, AUDIO, network, options), settings["preprocessor"], options)

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values from which `from_spec` and `empty_network` build the encoder without its checkpoint."""
        return settings_of(self._tapped, self._preprocessor)

    @classmethod
    def empty_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        """Return the network without its weights."""
        return empty_network(settings, AUDIO)

    @classmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """Return the options with which `open` gives an encoder of this spec."""
        return {
            "tokens": spec.pooling["tokens"],
            "pooling": spec.pooling["over"],
            "seconds": spec.preprocessing["seconds"],
            "layer": spec.tap["blocks"],
            "norm": spec.tap["asked"],
            "batch": spec.architecture["batch"],
            "channels": spec.preprocessing["channels"],
            "compile": "yes" if "compiled" in spec.architecture else "no",
        }

    def spec(self, stored_dtype: str) -> Spec:
        """Return everything that decides the stored bytes."""
        loaded = self._tapped.loaded
        return Spec(
            encoder=self.name,
            implementation=IMPLEMENTATION if self.needs_valid or self._masked else 1,
            weights=loaded.weights,
            architecture={**self._tapped.architecture, "batch": self.batch_size},
            tap={**self._tapped.tap, "asked": self._options["norm"]},
            preprocessing={
                "sampling_rate": self.sampling_rate,
                "channels": self.view.channels,
                "seconds": self._options["seconds"],
                "normalise": "zero mean, unit variance over the clip" if self._normalise else "none",
                "padding": "masked" if self._masked else "zeros",
            },
            pooling={
                "rule": "adaptive average over time",
                "over": self._options["pooling"],
                "tokens": self.shape[0],
            },
            compute_dtype=required(self.network).compute_dtype,
            stored_dtype=stored_dtype,
            shape=self.shape,
            provenance=loaded.provenance,
        )

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """Normalise and pad an (S,) float32 waveform to (samples,) float32, with NaN after the clip's own samples."""
        samples = view[: self._samples].astype(np.float32, copy=False)
        if self._normalise and len(samples):
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + VARIANCE_FLOOR)
        padded = np.full(self._samples, np.nan, np.float32)
        padded[: len(samples)] = samples
        return padded

    def num_valid(self, view: np.ndarray) -> int:
        """Return how many tokens the samples of an (S,) waveform give."""
        return max(1, self._num_tokens(min(len(view), self._samples)))

    def _num_tokens(self, samples: int) -> int:
        for kernel, stride in self._convolutions:
            samples = (samples - kernel) // stride + 1
        return samples

    def without_network(self) -> HfAudioEncoder:
        """Return a copy for preprocessing only."""
        return copy_without(self, "network", "_tapped")

    def forward(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Encode (B, samples) float32 to (B, T, D)."""
        network = required(self.network)
        with network.running():
            values, mask = self._values_and_mask(network.tensor(batch))
            return self._without_added(self._tapped(values, **mask))

    def forward_layers(self, batch: np.ndarray | torch.Tensor, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """Encode (B, samples) float32 once; return layer -> (B, T, D)."""
        network = required(self.network)
        with network.running():
            values, mask = self._values_and_mask(network.tensor(batch))
            states = self._tapped.layers(layers, values, **mask)
            return {layer: self._without_added(tokens) for layer, tokens in states.items()}

    def _values_and_mask(self, values: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return what the network reads of (B, samples) with NaN as padding, and its attention mask if it takes one."""
        if not self._masked:
            return torch.nan_to_num(values), {}
        # One more token, always masked: transformers drops a mask without masked positions. Then the kernel, and
        # so the last bits of a clip, would depend on whether the other clips of the batch have padding.
        values = F.pad(values, (0, math.prod(stride for _, stride in self._convolutions)), value=math.nan)
        is_sound = ~torch.isnan(values)
        is_sound[:, :1] = True
        return torch.nan_to_num(values), {"attention_mask": is_sound.long()}

    def _without_added(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens of the clip's samples: those without the token that `_values_and_mask` adds."""
        return tokens[:, :-1] if self._masked else tokens

    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """Average (B, T, D) to (B, K, D) float32; pooling "valid" averages the first `valid[b]` tokens of clip b.

        Raises:
            EncoderError: pooling "valid" without `valid`.
        """
        return average_sound(tokens, self.shape[0], valid, over_valid=self.needs_valid, encoder=self.name)
