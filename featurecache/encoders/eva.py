"""EVA-ViT-g as two encoders: one frame in detail (`eva-global`), sixteen frames in outline (`eva-temporal`).

    eva-global    one frame (peak, else middle) squashed to 448 × 448, bicubic; CLIP mean and standard deviation; at
                  most 39 blocks, no final norm, then LayerNorm (eps 1e-5) without affine -> CLS + 32 × 32 patches
                  = (1025, 1408)
    eva-temporal  16 frames uniformly over the clip, squashed to 224 × 224, bilinear; ImageNet mean and standard
                  deviation; every block and the final norm; 16 × 16 patches averaged to 2 × 2, CLS left out
                  -> (64, 1408), frame-major, then row, then column

The network is transformers' Blip2VisionModel. Its weights come from a checkpoint of that model, from the vision tower
of a BLIP-2 checkpoint, or from LAVIS' file eva_vit_g.pth (`lavis`). Both encoders share one network in a process. The
numbers are those of EVA-ViT-g; widths and grids follow the checkpoint.
Source: arXiv 2601.16449 section 4.2; LAVIS eva_vit_g (patch 14, width 1408, 16 heads, MLP 6144, LayerNorm eps 1e-6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Blip2VisionConfig, Blip2VisionModel

from featurecache.encoders import FRAMES_IMPLEMENTATION, ExportableEncoder
from featurecache.encoders.checkpoint import Checkpoint, read_options
from featurecache.encoders.hub import PUBLISHED
from featurecache.encoders.lavis import read_lavis
from featurecache.encoders.network import (
    COMPILE,
    FrozenNetwork,
    LoadedNetwork,
    block_count,
    choose_batch_size,
    compiled_fields,
    copy_without,
    load_once,
    required,
    resolve_compute_dtype,
    resolve_device,
)
from featurecache.encoders.pooling import MEAN_RULE, average_over_grid, average_patches, single_vector
from featurecache.files.hashing import file_sha256
from featurecache.spec import Spec
from featurecache.views import FrameRule, FramesView

GLOBAL_BLOCKS = 39  # eva-global runs no block of a checkpoint beyond these
TEMPORAL_BLOCKS = 40
LAVIS_FILE = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
GLOBAL_NORM_EPS = 1e-5
GLOBAL_PIXELS, TEMPORAL_PIXELS = 448, 224
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GLOBAL_OPTIONS = {
    "frame": ("peak", "middle", "first"),
    "pool": ("tokens", "mean"),
    "layer": None,
    "batch": None,
    "compile": COMPILE,
}
TEMPORAL_OPTIONS = {
    "frames": 16,
    "rule": ("uniform", "window", "peak", "middle", "first"),
    "grid": 2,
    "pool": ("tokens", "mean"),
    "layer": None,
    "norm": ("final", "none"),
    "batch": None,
    "compile": COMPILE,
}
DEFAULT_BATCH = {"eva-global": 16, "eva-temporal": 4}  # on a GPU; 1 elsewhere


def _load_tower(weights: str, device: str, compute_dtype: str, encoder: str, compile: str) -> LoadedNetwork:
    """Return the vision tower of a checkpoint; both encoders share it while one of them refers to it."""
    torch_device = resolve_device(device)
    dtype = resolve_compute_dtype(compute_dtype, torch_device)
    compiled_blocks = "encoder.layers" if compile == "yes" else ""
    key = ("eva", weights, str(torch_device), dtype, compiled_blocks)
    return load_once(key, lambda: _load(Checkpoint(weights, encoder), torch_device, dtype, compiled_blocks))


def _vision_config(checkpoint: Checkpoint) -> tuple[Blip2VisionConfig, tuple[str, ...]]:
    """Return the network's config, and the prefixes that its tensors may have in this checkpoint."""
    if checkpoint.single_file is not None:
        return read_lavis(checkpoint, checkpoint.single_file)[0], ("",)
    document = checkpoint.json("config.json")
    kind = document.get("model_type")
    if kind == "blip-2":
        return Blip2VisionConfig.from_dict(document.get("vision_config") or {}), ("vision_model.",)
    if kind == "blip_2_vision_model":
        return Blip2VisionConfig.from_dict(document), ("",)
    raise checkpoint.error(expected="a BLIP-2 or Blip2VisionModel checkpoint", got=f"model_type {kind!r}")


def _load(checkpoint: Checkpoint, device: torch.device, compute_dtype: str, compiled_blocks: str) -> LoadedNetwork:
    if checkpoint.single_file is not None:
        config, tensors, has_norm = read_lavis(checkpoint, checkpoint.single_file)
        with torch.device("meta"):
            network = Blip2VisionModel(_with_attention(config))
        checkpoint.fill(network, tensors, "")
        # A constant name, so that a renamed file has the same fingerprint.
        hashes = {"eva_vit_g.pth": file_sha256(checkpoint.single_file)}
        if not has_norm:
            config.without_final_norm = True
    else:
        config, prefixes = _vision_config(checkpoint)
        with torch.device("meta"):
            network = Blip2VisionModel(_with_attention(config))
        hashes = checkpoint.load(network, prefixes)
    frozen = FrozenNetwork(network, device, compute_dtype, compiled_blocks)
    return LoadedNetwork(frozen, config, hashes, checkpoint.provenance)


def _with_attention(config: Blip2VisionConfig) -> Blip2VisionConfig:
    config._attn_implementation = "sdpa"  # part of the spec: kernels differ in the last bits
    return config


class _EvaEncoder(ExportableEncoder):
    """Shared by both encoders: resizing, normalising, the patch and position embedding, the first blocks."""

    default_weights = PUBLISHED["eva-global"]
    view: FramesView
    pixels: int
    resample: Image.Resampling
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(self, tower: LoadedNetwork, compile: str = "no") -> None:
        self._tower, self.compile = tower, compile
        self.network = tower.network
        device = "cpu" if tower.network is None else tower.network.device
        self._mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(self.std, device=device).view(1, 3, 1, 1)
        self.grid_side = self.pixels // tower.config.patch_size

    @classmethod
    def from_spec(cls, spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None) -> _EvaEncoder:
        """Build the encoder of a spec around a loaded network, or around none for preprocessing."""
        config = Blip2VisionConfig.from_dict(dict(settings["config"]))
        tower = LoadedNetwork(network, config, dict(spec.weights), dict(spec.provenance))
        return cls(tower, **cls.options_of(spec))

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values from which `from_spec` and `empty_network` build the encoder without its checkpoint."""
        return {"config": self._tower.config.to_dict()}

    @classmethod
    def empty_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        """Return the network without its weights."""
        return Blip2VisionModel(_with_attention(Blip2VisionConfig.from_dict(dict(settings["config"]))))

    @classmethod
    def _config(cls, weights: str | None) -> Any:
        """Return the config of a checkpoint, without loading weights."""
        return _vision_config(Checkpoint(weights or cls.default_weights, cls.name))[0]

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """Resize (F, H, W, 3) uint8 to (F, pixels, pixels, 3) uint8 without keeping the aspect ratio."""
        size = (self.pixels, self.pixels)
        return np.stack([np.asarray(Image.fromarray(frame).resize(size, self.resample)) for frame in view])

    def without_network(self) -> _EvaEncoder:
        """Return a copy for preprocessing only."""
        return copy_without(self, "network", "_tower", "_mean", "_std")

    def _run_blocks(self, frames: np.ndarray | torch.Tensor, num_blocks: int) -> torch.Tensor:
        """Run `num_blocks` blocks on (N, pixels, pixels, 3) uint8: (N, 1 + patches, D); call inside `running`."""
        network = required(self.network)
        module: Any = network.module
        pixels = network.tensor(frames).permute(0, 3, 1, 2).float().div(255)  # [n, 3, h, w]
        pixels = (pixels - self._mean) / self._std
        hidden = module.embeddings(pixels, interpolate_pos_encoding=True)
        for block in module.encoder.layers[:num_blocks]:
            hidden = block(hidden)
        return hidden

    def _spec(self, tap: dict[str, Any], pooling: dict[str, Any], frames: dict[str, Any], stored_dtype: str) -> Spec:
        config = self._tower.config
        return Spec(
            encoder=self.name,
            implementation=FRAMES_IMPLEMENTATION,
            weights=self._tower.weights,
            architecture={
                "heads": config.num_attention_heads,
                "activation": config.hidden_act,
                "norm_eps": config.layer_norm_eps,
                "patch": config.patch_size,
                "batch": self.batch_size,
                "position_embedding": f"bicubic to {self.grid_side} x {self.grid_side}",
                "attention": "sdpa",
                "residual_dtype": "float32",
                **compiled_fields(self.compile),
            },
            tap={"module": "vision_model", **tap},
            preprocessing={
                **frames,
                "pixels": self.pixels,
                "fit": "squash",
                "resample": "pillow " + self.resample.name.lower(),
                "mean": list(self.mean),
                "std": list(self.std),
            },
            pooling=pooling,
            compute_dtype=required(self.network).compute_dtype,
            stored_dtype=stored_dtype,
            shape=self.shape,
            provenance=self._tower.provenance,
        )


class EvaGlobalEncoder(_EvaEncoder):
    """One frame at 448 pixels; tokens are CLS and every patch."""

    name = "eva-global"
    pixels, resample, mean, std = GLOBAL_PIXELS, Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD

    def __init__(
        self,
        tower: LoadedNetwork,
        frame: FrameRule,
        layer: int | None = None,
        batch: int | None = None,
        compile: str = "no",
        pool: str = "tokens",
    ) -> None:
        super().__init__(tower, compile)
        self.view = FramesView(1, frame, still=True)
        self.one_vector = pool == "mean"
        self.shape = (1 if self.one_vector else 1 + self.grid_side**2, tower.config.hidden_size)
        available = tower.config.num_hidden_layers
        self.num_blocks = block_count(self.name, layer or min(GLOBAL_BLOCKS, available), available)
        self.batch_size = choose_batch_size(self.network, batch, DEFAULT_BATCH[self.name])

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> EvaGlobalEncoder:
        """Load every weight of the network, or fail.

        Options: `frame` (peak, middle, first), `pool` (tokens; mean: one vector, the average of the patches), `layer`
        (39, the number of blocks that run), `batch`, `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another architecture.
            EncoderError: unknown option, device or dtype.
        """
        settings = read_options(cls.name, options, GLOBAL_OPTIONS)
        tower = _load_tower(weights or cls.default_weights, device, compute_dtype, cls.name, settings["compile"])
        return cls(tower, **settings)

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config only."""
        settings = read_options(cls.name, options, GLOBAL_OPTIONS)
        config = cls._config(weights)
        return 1 if settings["pool"] == "mean" else 1 + (cls.pixels // config.patch_size) ** 2, config.hidden_size

    @classmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """Return the options with which `open` gives an encoder of this spec."""
        options = {"frame": spec.preprocessing["frame_rule"], "layer": spec.tap["blocks"]}
        return options | _batch_and_compile(spec) | _pool_of(spec)

    def spec(self, stored_dtype: str) -> Spec:
        """Return everything that decides the stored bytes."""
        tap = {"blocks": self.num_blocks, "norm": f"LayerNorm without affine, eps {GLOBAL_NORM_EPS}"}
        pooling = {"rule": "none", "order": "CLS, then patches in raster order"}
        pooling = {"rule": MEAN_RULE} if self.one_vector else pooling
        return self._spec(tap, pooling, {"frames": 1, "frame_rule": self.view.rule}, stored_dtype)

    def forward(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Encode (B, 1, pixels, pixels, 3) uint8 to (B, 1 + patches, D) float32."""
        with required(self.network).running():
            hidden = self._run_blocks(batch[:, 0], self.num_blocks)
            return F.layer_norm(hidden.float(), hidden.shape[-1:], eps=GLOBAL_NORM_EPS)

    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """Return all (B, K, D) tokens in float32, or the average of the patches."""
        if not self.one_vector:
            return tokens.float()
        with torch.inference_mode():
            return average_patches(tokens[:, None, 1:])


class EvaTemporalEncoder(_EvaEncoder):
    """Several frames at 224 pixels; tokens are averages over the patches of each frame."""

    name = "eva-temporal"
    pixels, resample, mean, std = TEMPORAL_PIXELS, Image.Resampling.BILINEAR, IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        tower: LoadedNetwork,
        frames: int,
        grid: int = 2,
        rule: FrameRule = "uniform",
        layer: int | None = None,
        norm: str = "final",
        batch: int | None = None,
        compile: str = "no",
        pool: str = "tokens",
    ) -> None:
        super().__init__(tower, compile)
        self.view = FramesView(frames, rule, still=False)
        self.num_frames, self.grid, self.norm, self.one_vector = frames, grid, norm, pool == "mean"
        self.shape = (1 if self.one_vector else frames * grid * grid, tower.config.hidden_size)
        available = tower.config.num_hidden_layers
        self.num_blocks = block_count(self.name, layer, available)
        self.batch_size = choose_batch_size(self.network, batch, DEFAULT_BATCH[self.name])
        self.notices = _temporal_notices(available, self.num_blocks, norm, "file" not in tower.provenance)

    @classmethod
    def open(
        cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]
    ) -> EvaTemporalEncoder:
        """Load every weight of the network, or fail.

        Options: `frames` (16) and `grid` (2), which give frames × grid × grid tokens; `pool` (tokens; mean: one vector,
        the average of all patches of all frames, without `grid`); `rule` (uniform, or consecutive frames: window, peak,
        middle, first), `layer` (all blocks), `norm` (final or none), `batch`, `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another architecture.
            EncoderError: unknown option, device or dtype.
        """
        settings = _temporal_options(options)
        tower = _load_tower(weights or cls.default_weights, device, compute_dtype, cls.name, settings["compile"])
        if settings["norm"] == "final" and getattr(tower.config, "without_final_norm", False):
            raise Checkpoint(weights or cls.default_weights, cls.name).error(
                expected=f"weights with a final norm, or --option {cls.name}.norm=none", got="none in this file"
            )
        return cls(tower, **settings)

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config only."""
        settings = _temporal_options(options)
        num_tokens = 1 if settings["pool"] == "mean" else settings["frames"] * settings["grid"] ** 2
        return num_tokens, cls._config(weights).hidden_size

    @classmethod
    def plan_notices(cls, weights: str | None, options: Mapping[str, Any]) -> list[str]:
        """Return the notices of the encoder, from the checkpoint's config only."""
        settings = read_options(cls.name, options, TEMPORAL_OPTIONS)
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        available = _vision_config(checkpoint)[0].num_hidden_layers
        num_blocks = block_count(cls.name, settings["layer"], available)
        return _temporal_notices(available, num_blocks, settings["norm"], checkpoint.single_file is None)

    @classmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """Return the options with which `open` gives an encoder of this spec."""
        options = {
            "frames": spec.preprocessing["frames"],
            "rule": spec.preprocessing["frame_rule"],
            "layer": spec.tap["blocks"],
            "norm": "none" if spec.tap["norm"] == "none" else "final",
        }
        grid = {"grid": spec.pooling["grid"]} if "grid" in spec.pooling else {}
        return options | grid | _batch_and_compile(spec) | _pool_of(spec)

    def spec(self, stored_dtype: str) -> Spec:
        """Return everything that decides the stored bytes."""
        tap = {"blocks": self.num_blocks, "norm": "none" if self.norm == "none" else "post_layernorm"}
        pooling = {"rule": "adaptive average over patches", "grid": self.grid, "order": "frame, row, column"}
        pooling = {"rule": MEAN_RULE} if self.one_vector else pooling
        return self._spec(tap, pooling, {"frames": self.num_frames, "frame_rule": self.view.rule}, stored_dtype)

    def forward(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Encode (B, F, pixels, pixels, 3) uint8 to (B, F · (1 + patches), D) float32, CLS first in each frame."""
        network = required(self.network)
        with network.running():
            hidden = self._run_blocks(batch.reshape(-1, *batch.shape[2:]), self.num_blocks)
            if self.norm == "final":
                hidden = network.module.get_submodule("post_layernorm")(hidden)
            return hidden.float().reshape(len(batch), -1, hidden.shape[-1])

    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """Average (B, F · (1 + patches), D) to (B, K, D) float32, without CLS."""
        with torch.inference_mode():
            frames = tokens.reshape(len(tokens), self.num_frames, -1, tokens.shape[-1])  # [b, f, 1 + patches, d]
            if self.one_vector:
                return average_patches(frames[:, :, 1:])
            return average_over_grid(frames[:, :, 1:].flatten(1, 2), self.num_frames, self.grid)


def _temporal_notices(available: int, num_blocks: int, norm: str, is_blip2: bool) -> list[str]:
    """Return how tokens of `num_blocks` blocks, of the `available` blocks of a checkpoint, differ from published ones.

    BLIP-2 leaves out EVA's last block and final norm; the norm of its checkpoints was trained by BLIP-2.
    """
    if available != GLOBAL_BLOCKS:
        return []
    norms = {True: "BLIP-2's own post-norm", False: "the norm of this file"}
    after = "no norm after them" if norm == "none" else norms[is_blip2]
    return [
        f"eva-temporal: {num_blocks} blocks and {after}, where the published tokens come from EVA's {TEMPORAL_BLOCKS} "
        f"blocks and EVA's own final norm. For these, fetch LAVIS' file {LAVIS_FILE} and name it: "
        "--weights eva-temporal=eva_vit_g.pth"
    ]


def _temporal_options(options: Mapping[str, Any]) -> dict[str, Any]:
    settings = read_options(EvaTemporalEncoder.name, options, TEMPORAL_OPTIONS)
    if settings["pool"] == "mean":
        single_vector(EvaTemporalEncoder.name, "mean", options, ("grid",))
    return settings


def _pool_of(spec: Spec) -> dict[str, Any]:
    """Return the option `pool` of a spec, if it is not the default."""
    return {"pool": "mean"} if spec.pooling["rule"] == MEAN_RULE else {}


def _batch_and_compile(spec: Spec) -> dict[str, Any]:
    """Return the options `batch` and `compile` of a spec."""
    batch = spec.architecture.get("batch")
    compiled = {"compile": "yes"} if "compiled" in spec.architecture else {}
    return compiled | ({} if batch is None else {"batch": batch})
