"""Whisper's encoder: what is said and how, 64 tokens a clip.

Shapes: waveform (S,) at 16 kHz -> log-mel (128, 3000), 10 ms a frame, padded or cut to 30 s -> encoder (1500, 1280),
20 ms a token, after its final LayerNorm -> adaptive average over time (64, 1280), 469 ms a token, padding included.
Mel bins, frames and widths are the checkpoint's; the numbers here are whisper-large-v3's. The log-mel floor is taken
per clip, so no clip changes another. Source: arXiv 2601.16449 section 4.2; transformers WhisperEncoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder as WhisperNetwork

from featurecache.encoders import AudioView
from featurecache.encoders.checkpoint import Checkpoint, read_options
from featurecache.encoders.network import FrozenNetwork, resolve_compute_dtype, resolve_device
from featurecache.pooling import average_over_time
from featurecache.spec import Spec

MEL_FRAMES_PER_TOKEN = 2  # the second convolution has stride 2
DEFAULT_OPTIONS = {"tokens": 64}


class WhisperEncoder:
    """The encoder half of a Whisper checkpoint."""

    name = "whisper"
    default_weights = "openai/whisper-large-v3"

    def __init__(self, checkpoint: Checkpoint, device: torch.device, compute_dtype: str, tokens: int) -> None:
        config = WhisperConfig.from_dict(checkpoint.json("config.json"), attn_implementation="sdpa")
        settings = checkpoint.json("preprocessor_config.json")
        self._extractor = WhisperFeatureExtractor.from_dict(settings)
        if self._extractor.feature_size != config.num_mel_bins:
            raise checkpoint.error(
                expected=f"{config.num_mel_bins} mel bins, as in config.json",
                got=f"{self._extractor.feature_size} in preprocessor_config.json",
            )
        with torch.device("meta"):
            network = WhisperNetwork(config)
        self._weights = checkpoint.load(network, prefixes=("model.encoder.", "encoder."))
        self._network = FrozenNetwork(network, device, compute_dtype)
        self._config, self._provenance = config, checkpoint.provenance
        self._samples = config.max_source_positions * MEL_FRAMES_PER_TOKEN * self._extractor.hop_length
        rate = self._extractor.sampling_rate
        self.view = AudioView(sampling_rate=rate, max_duration_s=self._samples / rate)
        self.shape = (tokens, config.d_model)
        self.batch_size = 16 if device.type == "cuda" else 1

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> WhisperEncoder:
        """Load strictly.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another architecture.
            EncoderError: unknown option, device or dtype.
        """
        chosen = read_options(cls.name, options, DEFAULT_OPTIONS)
        place = resolve_device(device)
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        kind = checkpoint.json("config.json").get("model_type")
        if kind != "whisper":
            raise checkpoint.error(expected="a Whisper checkpoint", got=f"model_type {kind!r}")
        return cls(checkpoint, place, resolve_compute_dtype(compute_dtype, place), chosen["tokens"])

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config alone."""
        config = Checkpoint(weights or cls.default_weights, cls.name).json("config.json")
        return read_options(cls.name, options, DEFAULT_OPTIONS)["tokens"], int(config.get("d_model", 0))

    def spec(self, stored_dtype: str) -> Spec:
        """Everything that decides the stored bytes."""
        config, extractor = self._config, self._extractor
        return Spec(
            encoder=self.name,
            implementation=1,
            weights=self._weights,
            architecture={
                "heads": config.encoder_attention_heads,
                "activation": config.activation_function,
                "scale_embedding": config.scale_embedding,
                "attention": "sdpa",
                "residual_dtype": "float32",
            },
            tap={"module": "encoder", "blocks": config.encoder_layers, "norm": "layer_norm"},
            preprocessing={
                "sampling_rate": extractor.sampling_rate,
                "channels": "mean",
                "samples": self._samples,
                "mel_bins": extractor.feature_size,
                "n_fft": extractor.n_fft,
                "hop_length": extractor.hop_length,
                "padding_value": extractor.padding_value,
                "log_mel_floor": "per clip",
            },
            pooling={"rule": "adaptive average over time", "tokens": self.shape[0]},
            compute_dtype=self._network.compute_dtype,
            stored_dtype=stored_dtype,
            shape=self.shape,
            provenance=self._provenance,
        )

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """(S,) float32 waveform in, (mel bins, mel frames) float32 log-mel out."""
        mel = self._extractor(
            view,
            sampling_rate=self.view.sampling_rate,
            padding="max_length",
            max_length=self._samples,
            truncation=True,
            return_tensors="np",
        )
        return mel["input_features"][0].astype(np.float32, copy=False)

    def forward(self, batch: np.ndarray) -> torch.Tensor:
        """(B, mel bins, mel frames) in, (B, T, D) out."""
        with self._network.running():
            return self._network.module(self._network.tensor(batch)).last_hidden_state

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, D) in, (B, K, D) float32 out."""
        with torch.inference_mode():
            return average_over_time(tokens, self.shape[0])
