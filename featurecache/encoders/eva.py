"""EVA-ViT-g, tapped in two ways: one frame in detail, and sixteen frames in outline.

    eva-global    one frame (peak, else middle) squashed to 448 × 448, bicubic; CLIP mean and standard deviation; at
                  most 39 blocks, no final norm, then LayerNorm (eps 1e-5) without affine -> CLS + 32 × 32 patches
                  = (1025, 1408)
    eva-temporal  16 frames uniformly over the clip, squashed to 224 × 224, bilinear; ImageNet mean and standard
                  deviation; every block and the final norm; 16 × 16 patches averaged to 2 × 2, CLS left out
                  -> (64, 1408), frame-major, then row, then column

The network is transformers' Blip2VisionModel: from a checkpoint of its own, the vision tower of a BLIP-2 one, or LAVIS'
own file eva_vit_g.pth (`lavis`). Both encoders share it in one process. Widths and grids follow the checkpoint; the
numbers are EVA-ViT-g's.
Source: arXiv 2601.16449 section 4.2; LAVIS eva_vit_g (patch 14, width 1408, 16 heads, MLP 6144, LayerNorm eps 1e-6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Blip2VisionConfig, Blip2VisionModel

from featurecache.encoders import FRAMES_IMPLEMENTATION
from featurecache.encoders.checkpoint import Checkpoint, read_options
from featurecache.encoders.lavis import read_lavis
from featurecache.encoders.network import (
    COMPILE,
    FrozenNetwork,
    Loaded,
    block_count,
    compiled_fields,
    load_once,
    resolve_compute_dtype,
    resolve_device,
)
from featurecache.encoders.pooling import average_over_grid
from featurecache.files.hashing import file_sha256
from featurecache.spec import Spec
from featurecache.views import FramesView

GLOBAL_BLOCKS = 39  # the global tap leaves out what a checkpoint has beyond these
TEMPORAL_BLOCKS = 40
LAVIS_FILE = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
GLOBAL_NORM_EPS = 1e-5
GLOBAL_PIXELS, TEMPORAL_PIXELS = 448, 224
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GLOBAL_OPTIONS = {"frame": ("peak", "middle", "first"), "layer": None, "batch": None, "compile": COMPILE}
TEMPORAL_OPTIONS = {
    "frames": 16,
    "rule": ("uniform", "window", "peak", "middle", "first"),
    "grid": 2,
    "layer": None,
    "norm": ("final", "none"),
    "batch": None,
    "compile": COMPILE,
}
DEFAULT_BATCH = {"eva-global": 16, "eva-temporal": 4}  # on a GPU; 1 elsewhere


def _tower(weights: str, device: str, compute_dtype: str, encoder: str, compile: str) -> Loaded:
    """Return the network of a checkpoint, loaded once as long as an encoder holds it."""
    place = resolve_device(device)
    dtype = resolve_compute_dtype(compute_dtype, place)
    compiled_blocks = "encoder.layers" if compile == "yes" else ""
    key = ("eva", weights, str(place), dtype, compiled_blocks)
    return load_once(key, lambda: _load(Checkpoint(weights, encoder), place, dtype, compiled_blocks))


def _vision_config(checkpoint: Checkpoint) -> tuple[Blip2VisionConfig, tuple[str, ...]]:
    """Return the network's config, and the prefixes its tensors may have in this checkpoint."""
    if checkpoint.single_file is not None:
        return read_lavis(checkpoint, checkpoint.single_file)[0], ("",)
    document = checkpoint.json("config.json")
    kind = document.get("model_type")
    if kind == "blip-2":
        return Blip2VisionConfig.from_dict(document.get("vision_config") or {}), ("vision_model.",)
    if kind == "blip_2_vision_model":
        return Blip2VisionConfig.from_dict(document), ("",)
    raise checkpoint.error(expected="a BLIP-2 or Blip2VisionModel checkpoint", got=f"model_type {kind!r}")


def _load(checkpoint: Checkpoint, device: torch.device, compute_dtype: str, compiled_blocks: str) -> Loaded:
    if checkpoint.single_file is not None:
        config, tensors, has_norm = read_lavis(checkpoint, checkpoint.single_file)
        with torch.device("meta"):
            network = Blip2VisionModel(_with_attention(config))
        checkpoint.fill(network, tensors, "")
        # The name is left out, so that the same file under another name is the same weights.
        hashes = {"eva_vit_g.pth": file_sha256(checkpoint.single_file)}
        if not has_norm:
            config.without_final_norm = True
    else:
        config, prefixes = _vision_config(checkpoint)
        with torch.device("meta"):
            network = Blip2VisionModel(_with_attention(config))
        hashes = checkpoint.load(network, prefixes)
    frozen = FrozenNetwork(network, device, compute_dtype, compiled_blocks)
    return Loaded(frozen, config, hashes, checkpoint.provenance)


def _with_attention(config: Blip2VisionConfig) -> Blip2VisionConfig:
    config._attn_implementation = "sdpa"  # part of the spec: kernels differ in the last bits
    return config


class _Eva:
    """What both taps share: resizing, normalising, the patch and position embedding, the first blocks."""

    name: str
    default_weights = "Salesforce/blip2-opt-2.7b"
    pixels: int
    resample: Image.Resampling
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(self, tower: Loaded, compile: str = "no") -> None:
        self._tower, self.compile = tower, compile
        self.network = tower.network
        device = "cpu" if tower.network is None else tower.network.device
        self._mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(self.std, device=device).view(1, 3, 1, 1)
        self.grid_side = self.pixels // tower.config.patch_size

    @classmethod
    def from_spec(cls, spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None) -> _Eva:
        """Build the encoder of a spec around a network that is loaded already, or around none.

        Without a network only `view`, `shape` and `preprocess` are of use.
        """
        config = Blip2VisionConfig.from_dict(dict(settings["config"]))
        tower = Loaded(network, config, dict(spec.weights), dict(spec.provenance))
        return cls(tower, **cls.options_of(spec))

    @staticmethod
    def options_of(spec: Spec) -> dict[str, Any]:
        """The options under which `open` gives an encoder of this spec."""
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """JSON from which `from_spec` and `empty_network` build the encoder without its checkpoint."""
        return {"config": self._tower.config.to_dict()}

    @classmethod
    def empty_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        """The network without its weights."""
        return Blip2VisionModel(_with_attention(Blip2VisionConfig.from_dict(dict(settings["config"]))))

    def _batch(self, given: int | None) -> int:
        on_cuda = self.network is not None and self.network.device.type == "cuda"
        return given or (DEFAULT_BATCH[self.name] if on_cuda else 1)

    @classmethod
    def _width(cls, weights: str | None) -> int:
        return _vision_config(Checkpoint(weights or cls.default_weights, cls.name))[0].hidden_size

    @classmethod
    def _side(cls, weights: str | None) -> int:
        return cls.pixels // _vision_config(Checkpoint(weights or cls.default_weights, cls.name))[0].patch_size

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """(F, H, W, 3) uint8 in, (F, pixels, pixels, 3) uint8 out: squashed, the sides not kept in proportion."""
        size = (self.pixels, self.pixels)
        return np.stack([np.asarray(Image.fromarray(frame).resize(size, self.resample)) for frame in view])

    def _blocks(self, frames: np.ndarray, num_blocks: int) -> torch.Tensor:
        """(N, pixels, pixels, 3) uint8 in, (N, 1 + patches, D) after `num_blocks` blocks out; run inside `running`."""
        module = self.network.module
        pixels = self.network.tensor(frames).permute(0, 3, 1, 2).float().div(255)  # [n, 3, h, w]
        pixels = (pixels - self._mean) / self._std
        hidden = module.embeddings(pixels, interpolate_pos_encoding=True)
        for block in module.encoder.layers[:num_blocks]:
            hidden = block(hidden)
        return hidden

    def _spec(self, tap: dict, pooling: dict, frames: dict, stored_dtype: str) -> Spec:  # type: ignore[type-arg]
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
            compute_dtype=self.network.compute_dtype,
            stored_dtype=stored_dtype,
            shape=self.shape,  # type: ignore[attr-defined]
            provenance=self._tower.provenance,
        )


class EvaGlobalEncoder(_Eva):
    """One frame at 448 pixels: CLS and every patch."""

    name = "eva-global"
    pixels, resample, mean, std = GLOBAL_PIXELS, Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD

    def __init__(
        self, tower: Loaded, frame: str, layer: int | None = None, batch: int | None = None, compile: str = "no"
    ) -> None:
        super().__init__(tower, compile)
        self.view = FramesView(1, frame, still=True)  # type: ignore[arg-type]
        self.shape = (1 + self.grid_side**2, tower.config.hidden_size)
        available = tower.config.num_hidden_layers
        self.num_blocks = block_count(self.name, layer or min(GLOBAL_BLOCKS, available), available)
        self.batch_size = self._batch(batch)

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> EvaGlobalEncoder:
        """Load strictly; options: `frame` (peak, middle, first), `layer` (39, the blocks that run), `batch`, `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another architecture.
            EncoderError: unknown option, device or dtype.
        """
        chosen = read_options(cls.name, options, GLOBAL_OPTIONS)
        tower = _tower(weights or cls.default_weights, device, compute_dtype, cls.name, chosen["compile"])
        return cls(tower, **chosen)

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config alone."""
        read_options(cls.name, options, GLOBAL_OPTIONS)
        return 1 + cls._side(weights) ** 2, cls._width(weights)

    @staticmethod
    def options_of(spec: Spec) -> dict[str, Any]:
        """The options under which `open` gives an encoder of this spec."""
        options = {"frame": spec.preprocessing["frame_rule"], "layer": spec.tap["blocks"]}
        return options | _run_of(spec)

    def spec(self, stored_dtype: str) -> Spec:
        """Everything that decides the stored bytes."""
        tap = {"blocks": self.num_blocks, "norm": f"LayerNorm without affine, eps {GLOBAL_NORM_EPS}"}
        pooling = {"rule": "none", "order": "CLS, then patches in raster order"}
        return self._spec(tap, pooling, {"frames": 1, "frame_rule": self.view.rule}, stored_dtype)

    def forward(self, batch: np.ndarray) -> torch.Tensor:
        """(B, 1, pixels, pixels, 3) uint8 in, (B, 1 + patches, D) float32 out."""
        with self.network.running():
            hidden = self._blocks(batch[:, 0], self.num_blocks)
            return F.layer_norm(hidden.float(), hidden.shape[-1:], eps=GLOBAL_NORM_EPS)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, K, D) in, the same in float32 out."""
        return tokens.float()


class EvaTemporalEncoder(_Eva):
    """Several frames at 224 pixels: a few averages of the patches of each."""

    name = "eva-temporal"
    pixels, resample, mean, std = TEMPORAL_PIXELS, Image.Resampling.BILINEAR, IMAGENET_MEAN, IMAGENET_STD

    def __init__(
        self,
        tower: Loaded,
        frames: int,
        grid: int,
        rule: str = "uniform",
        layer: int | None = None,
        norm: str = "final",
        batch: int | None = None,
        compile: str = "no",
    ) -> None:
        super().__init__(tower, compile)
        self.view = FramesView(frames, rule, still=False)  # type: ignore[arg-type]
        self.num_frames, self.grid, self.norm = frames, grid, norm
        self.shape = (frames * grid * grid, tower.config.hidden_size)
        blocks = tower.config.num_hidden_layers
        self.num_blocks = block_count(self.name, layer, blocks)
        self.batch_size = self._batch(batch)
        self.notices = _temporal_notices(blocks, self.num_blocks, norm, "file" not in tower.provenance)

    @classmethod
    def open(
        cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]
    ) -> EvaTemporalEncoder:
        """Load strictly; `frames` (16) and `grid` (2) set the tokens: frames × grid × grid.

        Further options: `rule` (uniform, or consecutive frames: window, peak, middle, first), `layer` (all blocks),
        `norm` (final or none), `batch`, `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another architecture.
            EncoderError: unknown option, device or dtype.
        """
        chosen = read_options(cls.name, options, TEMPORAL_OPTIONS)
        tower = _tower(weights or cls.default_weights, device, compute_dtype, cls.name, chosen["compile"])
        if chosen["norm"] == "final" and getattr(tower.config, "without_final_norm", False):
            raise Checkpoint(weights or cls.default_weights, cls.name).error(
                expected=f"weights with a final norm, or --option {cls.name}.norm=none", got="none in this file"
            )
        return cls(tower, **chosen)

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config alone."""
        chosen = read_options(cls.name, options, TEMPORAL_OPTIONS)
        return chosen["frames"] * chosen["grid"] ** 2, cls._width(weights)

    @classmethod
    def plan_notices(cls, weights: str | None, options: Mapping[str, Any]) -> list[str]:
        """What is to be known of the tokens beforehand, from the checkpoint's config alone."""
        chosen = read_options(cls.name, options, TEMPORAL_OPTIONS)
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        blocks = _vision_config(checkpoint)[0].num_hidden_layers
        run = block_count(cls.name, chosen["layer"], blocks)
        return _temporal_notices(blocks, run, chosen["norm"], checkpoint.single_file is None)

    @staticmethod
    def options_of(spec: Spec) -> dict[str, Any]:
        """The options under which `open` gives an encoder of this spec."""
        options = {
            "frames": spec.preprocessing["frames"],
            "rule": spec.preprocessing["frame_rule"],
            "grid": spec.pooling["grid"],
            "layer": spec.tap["blocks"],
            "norm": "none" if spec.tap["norm"] == "none" else "final",
        }
        return options | _run_of(spec)

    def spec(self, stored_dtype: str) -> Spec:
        """Everything that decides the stored bytes."""
        tap = {"blocks": self.num_blocks, "norm": "none" if self.norm == "none" else "post_layernorm"}
        pooling = {"rule": "adaptive average over patches", "grid": self.grid, "order": "frame, row, column"}
        return self._spec(tap, pooling, {"frames": self.num_frames, "frame_rule": self.view.rule}, stored_dtype)

    def forward(self, batch: np.ndarray) -> torch.Tensor:
        """(B, F, pixels, pixels, 3) uint8 in, (B, F · (1 + patches), D) float32 out, CLS first in each frame."""
        with self.network.running():
            hidden = self._blocks(batch.reshape(-1, *batch.shape[2:]), self.num_blocks)
            if self.norm == "final":
                hidden = self.network.module.post_layernorm(hidden)
            return hidden.float().reshape(len(batch), -1, hidden.shape[-1])

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, F · (1 + patches), D) in, (B, K, D) float32 out."""
        with torch.inference_mode():
            frames = tokens.reshape(len(tokens), self.num_frames, -1, tokens.shape[-1])  # [b, f, 1 + patches, d]
            return average_over_grid(frames[:, :, 1:].flatten(1, 2), self.num_frames, self.grid)


def _temporal_notices(blocks: int, run: int, norm: str, blip2: bool) -> list[str]:
    """How the tokens of a checkpoint of `blocks` blocks, of which `run` are run, differ from the published ones.

    BLIP-2 leaves out EVA's last block and final norm; the norm of its checkpoints was trained by BLIP-2.
    """
    if blocks != GLOBAL_BLOCKS:
        return []
    after = "no norm after them" if norm == "none" else "BLIP-2's own post-norm" if blip2 else "the norm of this file"
    return [
        f"eva-temporal: {run} blocks and {after}, where the published tokens come from EVA's {TEMPORAL_BLOCKS} blocks "
        f"and EVA's own final norm. For these, fetch LAVIS' file {LAVIS_FILE} and name it: "
        "--weights eva-temporal=eva_vit_g.pth"
    ]


def _run_of(spec: Spec) -> dict[str, Any]:
    """The options that say how the network is run."""
    batch = spec.architecture.get("batch")
    compiled = {"compile": "yes"} if "compiled" in spec.architecture else {}
    return compiled | ({} if batch is None else {"batch": batch})
