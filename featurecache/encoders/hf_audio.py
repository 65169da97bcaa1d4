"""`hf-audio:ID`: HuBERT, wav2vec 2.0, WavLM or data2vec-audio; a Whisper checkpoint opens the encoder `whisper`.

Shapes: waveform (S,) at 16 kHz, cut to `seconds` and normalised over its own samples where the checkpoint asks for it,
padded to a fixed length -> (T, D) at 20 ms a token -> (K, D). Padding is marked by NaN in the input, so that the
network masks it where it was trained to (feature_extractor norm "layer"), and sees zeros otherwise, as published.
Averages run over the clip's own duration (pooling "valid") unless told otherwise. It knows no file of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from featurecache.encoders import Encoder
from featurecache.encoders.checkpoint import Checkpoint, read_options
from featurecache.encoders.huggingface import AUDIO, Tapped, find_family, open_tap
from featurecache.encoders.network import COMPILE
from featurecache.encoders.pooling import average_sound
from featurecache.encoders.whisper import KNOWN_OPTIONS as WHISPER_OPTIONS
from featurecache.encoders.whisper import WhisperEncoder
from featurecache.spec import Spec
from featurecache.views import CHANNELS, AudioView

KNOWN_OPTIONS = {
    "tokens": 64,
    "pooling": ("valid", "padded"),
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
"""Of pooling "valid" and of masked networks. 1 could average a clip over one token, where a feature with padded pooling
ran beside it, and on a GPU chose the attention kernel by whether any clip of the batch was padded."""


class HfAudioEncoder:
    """A speech network of transformers."""

    name = "hf-audio"
    default_weights = "facebook/hubert-large-ls960-ft"

    def __init__(self, tapped: Tapped, preprocessor: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.network, self._tapped, self._options = tapped.loaded.network, tapped, options
        config = tapped.loaded.config
        self.sampling_rate = int(preprocessor.get("sampling_rate", 16_000))
        self.view = AudioView(self.sampling_rate, float(options["seconds"]), options["channels"])
        self._samples = options["seconds"] * self.sampling_rate
        self._normalise = bool(preprocessor.get("do_normalize", True))
        self._masked = bool(
            preprocessor.get("return_attention_mask", getattr(config, "feat_extract_norm", "layer") == "layer")
        )
        self.shape = (options["tokens"], config.hidden_size)
        self.needs_valid = options["pooling"] == "valid"
        on_cuda = self.network.device.type == "cuda"
        self.batch_size = options["batch"] or (DEFAULT_BATCH if on_cuda else 1)

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> Encoder:
        """Load strictly.

        Options: `tokens` (64), `pooling` (valid or padded), `seconds` (30, the most that is heard of a clip), `layer`
        (all blocks), `norm` (final or none), `batch`, `channels` (mean or standard, as in Whisper), `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another family.
            EncoderError: unknown option, device or dtype.
        """
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        if checkpoint.json("config.json").get("model_type") == "whisper":
            return WhisperEncoder.open(weights, device, compute_dtype, options)
        chosen = read_options(cls.name, options, KNOWN_OPTIONS)
        how = {key: chosen[key] for key in ("layer", "norm", "compile")}
        tapped = open_tap(checkpoint, AUDIO, device, compute_dtype, **how)
        return cls(tapped, checkpoint.json("preprocessor_config.json"), chosen)

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config alone."""
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        document = checkpoint.json("config.json")
        if document.get("model_type") == "whisper":
            return read_options("whisper", options, WHISPER_OPTIONS)["tokens"], int(document["d_model"])
        return read_options(cls.name, options, KNOWN_OPTIONS)["tokens"], find_family(checkpoint, AUDIO)[1].hidden_size

    @staticmethod
    def options_of(spec: Spec) -> dict[str, Any]:
        """The options under which `open` gives an encoder of this spec."""
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
        """Everything that decides the stored bytes."""
        loaded = self._tapped.loaded
        return Spec(
            encoder=self.name,
            implementation=IMPLEMENTATION if self.needs_valid or self._masked else 1,
            weights=loaded.weights,
            architecture={**self._tapped.architecture, "batch": self.batch_size},
            tap={**self._tapped.description, "asked": self._options["norm"]},
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
            compute_dtype=self.network.compute_dtype,
            stored_dtype=stored_dtype,
            shape=self.shape,
            provenance=loaded.provenance,
        )

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """(S,) float32 waveform in, (samples,) float32 out, NaN after the clip's own."""
        samples = view[: self._samples].astype(np.float32, copy=False)
        if self._normalise and len(samples):
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + VARIANCE_FLOOR)
        padded = np.full(self._samples, np.nan, np.float32)
        padded[: len(samples)] = samples
        return padded

    def num_valid(self, view: np.ndarray) -> int:
        """(S,) waveform in, how many tokens its samples give out."""
        return max(1, self._num_tokens(min(len(view), self._samples)))

    def _num_tokens(self, samples: int) -> int:
        config = self._tapped.loaded.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def forward(self, batch: np.ndarray) -> torch.Tensor:
        """(B, samples) float32 in, (B, T, D) out."""
        with self.network.running():
            values = self.network.tensor(batch)
            if not self._masked:
                return self._tapped.module(torch.nan_to_num(values)).last_hidden_state
            # One more token, always masked: transformers leaves a mask out where nothing is masked, so that the kernel,
            # and with it a clip's last bits, would depend on whether its neighbours fill their time.
            values = F.pad(values, (0, math.prod(self._tapped.loaded.config.conv_stride)), value=math.nan)
            heard = ~torch.isnan(values)
            heard[:, :1] = True
            tokens = self._tapped.module(torch.nan_to_num(values), attention_mask=heard.long()).last_hidden_state
            return tokens[:, :-1]

    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """(B, T, D) and, for pooling "valid", how many tokens each clip fills in; (B, K, D) float32 out.

        Raises:
            EncoderError: pooling "valid" without these numbers.
        """
        return average_sound(tokens, self.shape[0], valid, over_valid=self.needs_valid, encoder=self.name)
