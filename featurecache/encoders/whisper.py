"""Whisper's encoder: 64 tokens per clip for the words of its speech and the way they are spoken.

Shapes: waveform (S,) at 16 kHz -> log-mel (128, 3000), 10 ms per frame, padded or cut to 30 s -> encoder (1500, 1280),
20 ms per token, after its final LayerNorm -> adaptive average over time (64, 1280), 469 ms per token, padding included.
The numbers are those of whisper-large-v3; mel bins, frames and widths follow the checkpoint. The log-mel floor is
computed per clip, so no clip changes another. Source: arXiv 2601.16449 section 4.2; transformers WhisperEncoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder as WhisperNetwork

from featurecache.encoders import ExportableEncoder
from featurecache.encoders.checkpoint import Checkpoint
from featurecache.encoders.hub import PUBLISHED
from featurecache.encoders.network import (
    COMPILE,
    FrozenNetwork,
    LoadedNetwork,
    block_count,
    choose_batch_size,
    compiled_fields,
    copy_without,
    load_once,
    outputs_of_blocks,
    required,
    resolve_compute_dtype,
    resolve_device,
    tapped_network,
)
from featurecache.encoders.pooling import average_sound, read_sound_options
from featurecache.spec import Spec
from featurecache.views import CHANNELS, AudioView, Channels

MEL_FRAMES_PER_TOKEN = 2  # the second convolution has stride 2
PADDED_RULE = "adaptive average over time"
VALID_RULE = "adaptive average over the clip's own time"
VALID_IMPLEMENTATION = 2
"""`implementation` of pooling "valid". Implementation 1 could average a clip over one token only, if the same run also
extracted a feature with pooling "padded"."""
KNOWN_OPTIONS = {
    "tokens": 64,
    "pooling": ("padded", "valid"),
    "pool": ("tokens", "mean"),
    "layer": None,
    "norm": ("final", "none"),
    "batch": None,
    "mel": ("host", "device"),
    "channels": CHANNELS,
    "compile": COMPILE,
}
DEFAULT_BATCH = 16  # on a GPU; 1 elsewhere


class WhisperEncoder(ExportableEncoder):
    """The encoder half of a Whisper checkpoint."""

    name = "whisper"
    default_weights = PUBLISHED["whisper"]
    view: AudioView

    def __init__(
        self,
        config: WhisperConfig,
        extractor: WhisperFeatureExtractor,
        network: FrozenNetwork | None,
        *,
        tokens: int,
        weights: Mapping[str, str],
        provenance: Mapping[str, Any],
        pooling: str = "padded",
        layer: int | None = None,
        norm: str = "final",
        batch: int | None = None,
        mel: str = "host",
        channels: Channels = "mean",
        compile: str = "no",
    ) -> None:
        """Build the encoder from the parts that `open` loads; see `ExportableEncoder.from_spec` for no network."""
        self.network = network
        self._config, self._extractor = config, extractor
        self._weights, self._provenance = weights, provenance
        self._samples = config.max_source_positions * MEL_FRAMES_PER_TOKEN * extractor.hop_length
        rate = extractor.sampling_rate
        self.view = AudioView(rate, self._samples / rate, channels)
        self.shape = (tokens, config.d_model)
        self.pooling, self.norm, self.mel, self.compile = pooling, norm, mel, compile
        self.needs_valid = pooling == "valid"
        self.num_blocks = block_count(self.name, layer, config.encoder_layers)
        self.output_layer = self.num_blocks
        self.batch_size = choose_batch_size(network, batch, DEFAULT_BATCH)
        whole = self.num_blocks == config.encoder_layers and norm == "final"
        removed_norm = "layer_norm" if norm == "none" else None
        self._tapped: torch.nn.Module | None = None
        if network is not None:
            module = network.module
            self._tapped = module if whole else tapped_network(module, "layers", self.num_blocks, removed_norm)
        self._log_mel = LogMel(extractor, network.device) if network is not None and mel == "device" else None
        self._loaded: LoadedNetwork | None = None
        """Refers to the shared network, so that `load_once` finds it for the next encoder of these weights."""

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> WhisperEncoder:
        """Load every weight of the network, or fail.

        Options: `tokens` (64), `pooling` (padded, as published, or valid: over the clip's own duration), `pool`
        (tokens; mean: one vector, as tokens=1 with pooling valid), `layer` (all blocks), `norm` (final or none),
        `batch`, `mel` (host: decode workers compute the log-mel; device: the device computes it from the waveform, for
        GPUs that wait for decode workers), `channels` (mean, as published, or standard: the down-mix of ITU-R BS.775,
        which keeps speech in the centre of 5.1 sound), `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another architecture.
            EncoderError: unknown option, device or dtype.
        """
        settings = read_sound_options(cls.name, options, KNOWN_OPTIONS)
        torch_device = resolve_device(device)
        dtype = resolve_compute_dtype(compute_dtype, torch_device)
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        document = checkpoint.json("config.json")
        if document.get("model_type") != "whisper":
            raise checkpoint.error(expected="a Whisper checkpoint", got=f"model_type {document.get('model_type')!r}")
        config, extractor = cls._read_settings(
            {"config": document, "preprocessor": checkpoint.json("preprocessor_config.json")}
        )
        if extractor.feature_size != config.num_mel_bins:
            raise checkpoint.error(
                expected=f"{config.num_mel_bins} mel bins, as in config.json",
                got=f"{extractor.feature_size} in preprocessor_config.json",
            )

        def load() -> LoadedNetwork:
            with torch.device("meta"):
                network = WhisperNetwork(config)
            hashes = checkpoint.load(network, prefixes=("model.encoder.", "encoder."))
            frozen = FrozenNetwork(network, torch_device, dtype, "layers" if settings["compile"] == "yes" else "")
            return LoadedNetwork(frozen, config, hashes, checkpoint.provenance)

        loaded = load_once(("whisper", checkpoint.weights, str(torch_device), dtype, settings["compile"]), load)
        weights_of_spec, provenance = loaded.weights, loaded.provenance
        encoder = cls(config, extractor, loaded.network, weights=weights_of_spec, provenance=provenance, **settings)
        encoder._loaded = loaded
        return encoder

    @classmethod
    def from_spec(cls, spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None) -> WhisperEncoder:
        """Build the encoder of a spec around a loaded network, or around none for preprocessing."""
        config, extractor = cls._read_settings(settings)
        return cls(config, extractor, network, weights=spec.weights, provenance=spec.provenance, **cls.options_of(spec))

    @classmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """Return the options with which `open` gives an encoder of this spec."""
        options = {
            "tokens": spec.pooling["tokens"],
            "pooling": "valid" if spec.pooling["rule"] == VALID_RULE else "padded",
            "layer": spec.tap["blocks"],
            "norm": "none" if spec.tap["norm"] == "none" else "final",
            "mel": spec.preprocessing.get("mel", "host"),
            "channels": spec.preprocessing["channels"],
        }
        if "compiled" in spec.architecture:
            options["compile"] = "yes"
        return options | ({"batch": spec.architecture["batch"]} if "batch" in spec.architecture else {})

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values from which `from_spec` and `empty_network` build the encoder without its checkpoint."""
        return {"config": self._config.to_dict(), "preprocessor": self._extractor.to_dict()}

    @classmethod
    def empty_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        """Return the network without its weights."""
        return WhisperNetwork(cls._read_settings(settings)[0])

    @staticmethod
    def _read_settings(settings: Mapping[str, Any]) -> tuple[WhisperConfig, WhisperFeatureExtractor]:
        config = WhisperConfig.from_dict(dict(settings["config"]), attn_implementation="sdpa")
        extractor = WhisperFeatureExtractor.from_dict(dict(settings["preprocessor"]))
        assert isinstance(extractor, WhisperFeatureExtractor)  # `from_dict` may return more, with further arguments
        return config, extractor

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config only."""
        config = Checkpoint(weights or cls.default_weights, cls.name).json("config.json")
        return read_sound_options(cls.name, options, KNOWN_OPTIONS)["tokens"], int(config.get("d_model", 0))

    @classmethod
    def plan_layers(cls, weights: str | None, options: Mapping[str, Any]) -> int:
        """Return the number of blocks, from the checkpoint's config only."""
        return int(Checkpoint(weights or cls.default_weights, cls.name).json("config.json").get("encoder_layers", 0))

    def spec(self, stored_dtype: str) -> Spec:
        """Return everything that decides the stored bytes."""
        config, extractor = self._config, self._extractor
        return Spec(
            encoder=self.name,
            implementation=VALID_IMPLEMENTATION if self.needs_valid else 1,
            weights=self._weights,
            architecture={
                "heads": config.encoder_attention_heads,
                "activation": config.activation_function,
                "scale_embedding": config.scale_embedding,
                "attention": "sdpa",
                "batch": self.batch_size,
                "residual_dtype": "float32",
                **compiled_fields(self.compile),
            },
            tap={
                "module": "encoder",
                "blocks": self.num_blocks,
                "norm": "none" if self.norm == "none" else "layer_norm",
            },
            preprocessing={
                "sampling_rate": extractor.sampling_rate,
                "channels": self.view.channels,
                "samples": self._samples,
                "mel_bins": extractor.feature_size,
                "n_fft": extractor.n_fft,
                "hop_length": extractor.hop_length,
                "padding_value": extractor.padding_value,
                "log_mel_floor": "per clip",
                **({"mel": "device"} if self.mel == "device" else {}),
            },
            pooling={"rule": VALID_RULE if self.needs_valid else PADDED_RULE, "tokens": self.shape[0]},
            compute_dtype=required(self.network).compute_dtype,
            stored_dtype=stored_dtype,
            shape=self.shape,
            provenance=self._provenance,
        )

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """Turn an (S,) float32 waveform into its (mel bins, mel frames) log-mel; with `mel` device only pad it."""
        if self.mel == "device":
            return np.pad(view[: self._samples], (0, max(0, self._samples - len(view)))).astype(np.float32, copy=False)
        mel = self._extractor(
            view,
            sampling_rate=self.view.sampling_rate,
            padding="max_length",
            max_length=self._samples,
            truncation=True,
            return_tensors="np",
        )
        return mel["input_features"][0].astype(np.float32, copy=False)

    def forward(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Encode (B, mel bins, mel frames), or (B, S) if the device computes the log-mel, to (B, T, D)."""
        network = required(self.network)
        assert self._tapped is not None
        inputs = self._mel_of(network.tensor(batch))
        with network.running():
            return self._tapped(inputs).last_hidden_state

    def forward_layers(self, batch: np.ndarray | torch.Tensor, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """Encode as `forward`, once; return layer -> (B, T, D)."""
        network = required(self.network)
        inputs = self._mel_of(network.tensor(batch))
        norm, removed = (None, "layer_norm") if self.norm == "none" else ("layer_norm", None)
        with network.running():
            return outputs_of_blocks(network.module, "layers", layers, norm, removed, lambda tapped: tapped(inputs))

    def _mel_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the log-mel of what `preprocess` gives, on its device."""
        if self._log_mel is None:
            return inputs
        with torch.inference_mode():
            # Clip by clip: in a product over several clips, the last bits depend on the number of clips.
            return torch.stack([self._log_mel(waveform) for waveform in inputs.float()])

    def num_valid(self, view: np.ndarray) -> int:
        """Return how many of the T tokens an (S,) waveform fills; the last of them may be filled in part."""
        samples_per_token = self._extractor.hop_length * MEL_FRAMES_PER_TOKEN
        return max(1, -(-min(len(view), self._samples) // samples_per_token))

    def without_network(self) -> WhisperEncoder:
        """Return a copy for preprocessing only."""
        return copy_without(self, "network", "_tapped", "_log_mel", "_loaded")

    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """Average (B, T, D) to (B, K, D) float32; pooling "valid" averages the first `valid[b]` tokens of clip b.

        Raises:
            EncoderError: pooling "valid" without `valid`.
        """
        return average_sound(tokens, self.shape[0], valid, over_valid=self.needs_valid, encoder=self.name)


class LogMel:
    """Computes what the feature extractor computes on any device, where its window and filters stay."""

    def __init__(self, extractor: WhisperFeatureExtractor, device: torch.device) -> None:
        self._n_fft, self._hop_length = extractor.n_fft, extractor.hop_length
        self._window = torch.hann_window(extractor.n_fft, device=device)
        self._filters = torch.from_numpy(extractor.mel_filters).to(device, torch.float32)

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the (mel bins, mel frames) log-mel of (S,) float32."""
        spectrum = torch.stft(waveform, self._n_fft, self._hop_length, window=self._window, return_complex=True)
        power = spectrum[:, :-1].abs().square().contiguous()  # the product of a strided view is slow on CPUs
        level = (self._filters.T @ power).clamp(min=1e-10).log10()
        return (torch.maximum(level, level.max() - 8.0) + 4.0) / 4.0
