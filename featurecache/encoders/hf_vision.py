"""`hf-image:ID` (CLIP, SigLIP, DINOv2, ViT) and `hf-video:ID` (VideoMAE).

Shapes: F frames (H, W, 3) uint8 -> resized and cropped with Pillow as the checkpoint's preprocessor_config.json says,
uint8 -> (F, side, side, 3); normalised on the device -> tokens -> (K, D).

    hf-image  `frames` frames by `rule`, each alone through the network. pool = grid: patches averaged to grid × grid,
              frame-major; cls: the CLS token; all: CLS, if there is one, then every patch
    hf-video  as many frames as the network takes; patches of each of its T' moments averaged to grid × grid

It knows no file of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from featurecache.encoders import FRAMES_IMPLEMENTATION
from featurecache.encoders.checkpoint import Checkpoint, read_options
from featurecache.encoders.huggingface import IMAGE, VIDEO, Tapped, find_family, open_tap
from featurecache.encoders.network import COMPILE
from featurecache.encoders.pooling import average_over_grid
from featurecache.errors import EncoderError
from featurecache.spec import Spec
from featurecache.views import FramesView

_TAP = {"layer": None, "norm": ("final", "none"), "batch": None, "compile": COMPILE}
IMAGE_OPTIONS = {
    "frames": 1,
    "rule": ("peak", "middle", "first", "window", "uniform"),
    "pool": ("grid", "cls", "all"),
    "grid": 4,
    **_TAP,
}
VIDEO_OPTIONS = {"rule": ("uniform", "window", "peak", "middle", "first"), "grid": 2, **_TAP}


class Fit:
    """How pictures are made to fit: numbers of preprocessor_config.json."""

    def __init__(self, document: Mapping[str, Any], checkpoint: Checkpoint) -> None:
        """Read them.

        Raises:
            WeightsError: a preprocessing of another kind.
        """
        size = document.get("size") or {}
        size = {"shortest_edge": size} if isinstance(size, int) else size
        if document.get("do_resize", True) and not ({"shortest_edge"} <= set(size) or {"height", "width"} <= set(size)):
            raise checkpoint.error(expected="a size of shortest_edge, or of height and width", got=repr(size))
        crop = document.get("crop_size") if document.get("do_center_crop") else None
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        if abs(document.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise checkpoint.error(expected="rescale_factor 1/255", got=repr(document["rescale_factor"]))
        normalise = document.get("do_normalize", True)
        self.size = size if document.get("do_resize", True) else None
        self.crop = (int(crop["height"]), int(crop["width"])) if crop else None
        self.resample = Image.Resampling(document.get("resample", Image.Resampling.BILINEAR))
        self.mean = list(document.get("image_mean", [0.5] * 3)) if normalise else [0.0] * 3
        self.std = list(document.get("image_std", [0.5] * 3)) if normalise else [1.0] * 3
        whole = (int(size["height"]), int(size["width"])) if "height" in size else None
        self.out = self.crop or whole or (0, 0)
        if not min(self.out):
            raise checkpoint.error(expected="a crop after resizing the shortest edge", got="pictures of any shape")

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 in, (height, width, 3) uint8 out."""
        picture = Image.fromarray(frame)
        if self.size:
            picture = picture.resize(self._target(picture), self.resample)
        if not self.crop:
            return np.asarray(picture)
        top, left = (picture.height - self.crop[0]) // 2, (picture.width - self.crop[1]) // 2
        return np.asarray(picture.crop((left, top, left + self.crop[1], top + self.crop[0])))  # zeros outside

    def _target(self, picture: Image.Image) -> tuple[int, int]:
        """(width, height) after resizing."""
        if "height" in self.size:
            return int(self.size["width"]), int(self.size["height"])
        short, long = sorted((picture.width, picture.height))
        edge = int(self.size["shortest_edge"])
        other = int(edge * long / short)
        return (edge, other) if picture.width <= picture.height else (other, edge)

    def describe(self) -> dict[str, Any]:
        """For the spec."""
        return {
            "resize": self.size,
            "crop": list(self.crop) if self.crop else None,
            "resample": "pillow " + self.resample.name.lower(),
            "mean": self.mean,
            "std": self.std,
        }


class _HfVision:
    """What pictures and video share."""

    name: str
    default_weights: str
    view: FramesView
    shape: tuple[int, int]

    def __init__(self, tapped: Tapped, fit: Fit, options: Mapping[str, Any]) -> None:
        self.network, self._tapped, self._fit, self._options = tapped.loaded.network, tapped, fit, options
        self._mean = torch.tensor(fit.mean, device=self.network.device).view(3, 1, 1)
        self._std = torch.tensor(fit.std, device=self.network.device).view(3, 1, 1)
        on_cuda = self.network.device.type == "cuda"
        self.batch_size = options["batch"] or (4 if on_cuda else 1)

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """(F, H, W, 3) uint8 in, (F, height, width, 3) uint8 out."""
        return np.stack([self._fit(frame) for frame in view])

    def _pixels(self, batch: np.ndarray) -> torch.Tensor:
        """(…, H, W, 3) uint8 in, (…, 3, H, W) float32 normalised out."""
        pixels = self.network.tensor(batch).movedim(-1, -3).float().div(255)
        return (pixels - self._mean) / self._std

    def _spec(self, pooling: dict[str, Any], stored_dtype: str) -> Spec:
        loaded = self._tapped.loaded
        return Spec(
            encoder=self.name,
            implementation=FRAMES_IMPLEMENTATION,
            weights=loaded.weights,
            architecture={**self._tapped.architecture, "batch": self.batch_size},
            tap={**self._tapped.description, "asked": self._options["norm"]},
            preprocessing={"frames": self.view.count, "frame_rule": self.view.rule, **self._fit.describe()},
            pooling=pooling,
            compute_dtype=self.network.compute_dtype,
            stored_dtype=stored_dtype,
            shape=self.shape,
            provenance=loaded.provenance,
        )

    @staticmethod
    def _tap_options(spec: Spec) -> dict[str, Any]:
        return {
            "rule": spec.preprocessing["frame_rule"],
            "layer": spec.tap["blocks"],
            "norm": spec.tap["asked"],
            "batch": spec.architecture["batch"],
            "compile": "yes" if "compiled" in spec.architecture else "no",
        }


class HfImageEncoder(_HfVision):
    """A picture network of transformers, frame by frame."""

    name = "hf-image"
    default_weights = "openai/clip-vit-large-patch14"

    def __init__(self, tapped: Tapped, fit: Fit, options: Mapping[str, Any]) -> None:
        super().__init__(tapped, fit, options)
        self.view = FramesView(options["frames"], options["rule"], still=options["frames"] == 1)
        patches = (fit.out[0] // tapped.loaded.config.patch_size) ** 2
        tokens = _image_tokens(options, patches, tapped.family.prefix_tokens)
        self.shape = (tokens, tapped.loaded.config.hidden_size)

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> HfImageEncoder:
        """Load strictly.

        Options: `frames` (1), `rule` (peak, middle, first, window, uniform), `pool` (grid, cls or all), `grid` (4),
        `layer` (all blocks), `norm` (final or none), `batch`, `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another family.
            EncoderError: unknown option, device or dtype, or a CLS token that the family does not have.
        """
        chosen = read_options(cls.name, options, IMAGE_OPTIONS)
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        fit = _square(Fit(checkpoint.json("preprocessor_config.json"), checkpoint), checkpoint)
        how = {key: chosen[key] for key in ("layer", "norm", "compile")}
        tapped = open_tap(checkpoint, IMAGE, device, compute_dtype, **how)
        return cls(tapped, fit, chosen)

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's configs alone."""
        chosen = read_options(cls.name, options, IMAGE_OPTIONS)
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        family, config = find_family(checkpoint, IMAGE)
        fit = Fit(checkpoint.json("preprocessor_config.json"), checkpoint)
        tokens = _image_tokens(chosen, (fit.out[0] // config.patch_size) ** 2, family.prefix_tokens)
        return tokens, config.hidden_size

    @classmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """The options under which `open` gives an encoder of this spec."""
        pooling = {"pool": spec.pooling["rule"], "grid": spec.pooling["grid"]}
        return cls._tap_options(spec) | pooling | {"frames": spec.preprocessing["frames"]}

    def spec(self, stored_dtype: str) -> Spec:
        """Everything that decides the stored bytes."""
        pooling = {"rule": self._options["pool"], "grid": self._options["grid"], "order": "frame, row, column"}
        return self._spec(pooling, stored_dtype)

    def forward(self, batch: np.ndarray) -> torch.Tensor:
        """(B, F, side, side, 3) uint8 in, (B, F · tokens, D) out."""
        with self.network.running():
            pixels = self._pixels(batch.reshape(-1, *batch.shape[2:]))
            other_size = pixels.shape[-1] != self._tapped.loaded.config.image_size
            hidden = (
                self._tapped.module(pixels, interpolate_pos_encoding=True)
                if other_size
                else self._tapped.module(pixels)
            )
            return hidden.last_hidden_state.reshape(len(batch), -1, self.shape[1])

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, F · tokens, D) in, (B, K, D) float32 out."""
        rule, before = self._options["pool"], self._tapped.family.prefix_tokens
        with torch.inference_mode():
            if rule == "all":
                return tokens.float()
            frames = tokens.reshape(len(tokens), self.view.count, -1, tokens.shape[-1])  # [b, f, tokens, d]
            if rule == "cls":
                return frames[:, :, 0].float()
            return average_over_grid(frames[:, :, before:].flatten(1, 2), self.view.count, self._options["grid"])


class HfVideoEncoder(_HfVision):
    """A video network of transformers."""

    name = "hf-video"
    default_weights = "MCG-NJU/videomae-large"

    def __init__(self, tapped: Tapped, fit: Fit, options: Mapping[str, Any]) -> None:
        super().__init__(tapped, fit, options)
        config = tapped.loaded.config
        self.view = FramesView(config.num_frames, options["rule"], still=False)
        self.moments = config.num_frames // config.tubelet_size
        self.shape = (self.moments * options["grid"] ** 2, config.hidden_size)

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> HfVideoEncoder:
        """Load strictly.

        Options: `rule` (uniform, or consecutive frames: window, peak, middle, first), `grid` (2), `layer` (all blocks),
        `norm` (final or none), `batch`, `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another family.
            EncoderError: unknown option, device or dtype.
        """
        chosen = read_options(cls.name, options, VIDEO_OPTIONS)
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        fit = _square(Fit(checkpoint.json("preprocessor_config.json"), checkpoint), checkpoint)
        how = {key: chosen[key] for key in ("layer", "norm", "compile")}
        tapped = open_tap(checkpoint, VIDEO, device, compute_dtype, **how)
        return cls(tapped, fit, chosen)

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config alone."""
        chosen = read_options(cls.name, options, VIDEO_OPTIONS)
        config = find_family(Checkpoint(weights or cls.default_weights, cls.name), VIDEO)[1]
        return config.num_frames // config.tubelet_size * chosen["grid"] ** 2, config.hidden_size

    @classmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """The options under which `open` gives an encoder of this spec."""
        return cls._tap_options(spec) | {"grid": spec.pooling["grid"]}

    def spec(self, stored_dtype: str) -> Spec:
        """Everything that decides the stored bytes."""
        pooling = {"rule": "adaptive average over patches", "grid": self._options["grid"], "order": "time, row, column"}
        return self._spec(pooling, stored_dtype)

    def forward(self, batch: np.ndarray) -> torch.Tensor:
        """(B, F, side, side, 3) uint8 in, (B, T, D) out, moment by moment."""
        with self.network.running():
            return self._tapped.module(self._pixels(batch)).last_hidden_state

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, D) in, (B, K, D) float32 out."""
        with torch.inference_mode():
            return average_over_grid(tokens, self.moments, self._options["grid"])


def _square(fit: Fit, checkpoint: Checkpoint) -> Fit:
    if fit.out[0] != fit.out[1]:
        raise checkpoint.error(expected="square pictures", got=f"{fit.out[0]} x {fit.out[1]}")
    return fit


def _image_tokens(options: Mapping[str, Any], patches: int, prefix: int) -> int:
    if options["pool"] == "cls" and not prefix:
        raise EncoderError("hf-image.pool", expected="grid | all, for a network without a CLS token", got="'cls'")
    each = {"cls": 1, "all": prefix + patches, "grid": options["grid"] ** 2}[options["pool"]]
    return options["frames"] * each
