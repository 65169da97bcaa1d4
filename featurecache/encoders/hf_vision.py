"""`hf-image:ID` (CLIP, SigLIP, DINOv2, ViT) and `hf-video:ID` (VideoMAE).

Shapes: F frames (H, W, 3) uint8 -> resized and cropped with Pillow as the checkpoint's preprocessor_config.json says,
(F, side, side, 3) uint8 -> normalised on the device -> tokens -> (K, D).

    hf-image  `frames` frames chosen by `rule`, encoded one by one. pool = grid: patches averaged to grid × grid,
              frame-major; cls: the CLS token; all: CLS, if the network has one, then every patch; mean: one vector,
              the average of all patches of all frames
    hf-video  as many frames as the network takes. The network turns each group of consecutive frames (a tubelet) into
              one moment. pool = grid: the patches of each moment are averaged to grid × grid; mean: one vector

This module knows no file of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from featurecache.encoders import FRAMES_IMPLEMENTATION, ExportableEncoder
from featurecache.encoders.checkpoint import Checkpoint, read_options
from featurecache.encoders.hub import PUBLISHED
from featurecache.encoders.huggingface import (
    IMAGE,
    VIDEO,
    Family,
    TappedNetwork,
    empty_network,
    find_family,
    open_tapped,
    settings_of,
    tapped_of_spec,
)
from featurecache.encoders.network import COMPILE, FrozenNetwork, choose_batch_size, copy_without, required
from featurecache.encoders.pooling import MEAN_RULE, average_over_grid, average_patches, single_vector
from featurecache.errors import EncoderError, WeightsError
from featurecache.spec import Spec
from featurecache.views import FramesView

_TAP = {"layer": None, "norm": ("final", "none"), "batch": None, "compile": COMPILE}
IMAGE_OPTIONS = {
    "frames": 1,
    "rule": ("peak", "middle", "first", "window", "uniform"),
    "pool": ("grid", "cls", "all", "mean"),
    "grid": 4,
    **_TAP,
}
DEFAULT_BATCH = 4  # on a GPU; 1 elsewhere
VIDEO_OPTIONS = {
    "rule": ("uniform", "window", "peak", "middle", "first"),
    "pool": ("grid", "mean"),
    "grid": 2,
    **_TAP,
}


class FrameTransform:
    """Resizing, cropping and normalising of frames as preprocessor_config.json describes it."""

    def __init__(self, document: Mapping[str, Any], refusal: Callable[..., WeightsError]) -> None:
        """Read the settings.

        Args:
            document: the checkpoint's preprocessor_config.json.
            refusal: makes the error of what was expected and what the settings are.

        Raises:
            WeightsError: a preprocessing of another kind, or frames that are not square.
        """
        self.document = document
        size: Any = document.get("size") or {}
        size = {"shortest_edge": size} if isinstance(size, int) else size
        if document.get("do_resize", True) and not ({"shortest_edge"} <= set(size) or {"height", "width"} <= set(size)):
            raise refusal(expected="a size of shortest_edge, or of height and width", got=repr(size))
        crop: Any = document.get("crop_size") if document.get("do_center_crop") else None
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        if abs(document.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise refusal(expected="rescale_factor 1/255", got=repr(document["rescale_factor"]))
        normalise = document.get("do_normalize", True)
        self.size: dict[str, int] | None = size if document.get("do_resize", True) else None
        self.crop = (int(crop["height"]), int(crop["width"])) if crop else None
        self.resample = Image.Resampling(document.get("resample", Image.Resampling.BILINEAR))
        self.mean = list(document.get("image_mean", [0.5] * 3)) if normalise else [0.0] * 3
        self.std = list(document.get("image_std", [0.5] * 3)) if normalise else [1.0] * 3
        resized_shape = (int(size["height"]), int(size["width"])) if "height" in size else None
        self.out_shape = self.crop or resized_shape or (0, 0)
        if not min(self.out_shape):
            raise refusal(expected="a crop after resizing the shortest edge", got="pictures of any shape")
        if self.out_shape[0] != self.out_shape[1]:
            raise refusal(expected="square pictures", got=f"{self.out_shape[0]} x {self.out_shape[1]}")

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Resize and crop (H, W, 3) uint8 to (height, width, 3) uint8."""
        picture = Image.fromarray(frame)
        if self.size:
            picture = picture.resize(_resized(picture, self.size), self.resample)
        if not self.crop:
            return np.asarray(picture)
        top, left = (picture.height - self.crop[0]) // 2, (picture.width - self.crop[1]) // 2
        return np.asarray(picture.crop((left, top, left + self.crop[1], top + self.crop[0])))  # zeros outside

    def describe(self) -> dict[str, Any]:
        """Return the fields of the spec's `preprocessing`."""
        return {
            "resize": self.size,
            "crop": list(self.crop) if self.crop else None,
            "resample": "pillow " + self.resample.name.lower(),
            "mean": self.mean,
            "std": self.std,
        }


def _resized(picture: Image.Image, size: Mapping[str, int]) -> tuple[int, int]:
    """Return (width, height) of a picture after resizing; `size` has height and width, or the shortest edge."""
    if "height" in size:
        return int(size["width"]), int(size["height"])
    short, long = sorted((picture.width, picture.height))
    short_edge = int(size["shortest_edge"])
    long_edge = int(short_edge * long / short)
    return (short_edge, long_edge) if picture.width <= picture.height else (long_edge, short_edge)


class _HfVisionEncoder(ExportableEncoder):
    """Shared by both encoders: preprocessing, normalising and most of the spec."""

    view: FramesView
    families: Mapping[str, Family]
    known_options: Mapping[str, Any]

    def __init__(self, tapped: TappedNetwork, transform: FrameTransform, options: Mapping[str, Any]) -> None:
        self.network, self._tapped, self._transform, self._options = tapped.network, tapped, transform, options
        device = "cpu" if tapped.network is None else tapped.network.device
        self._mean = torch.tensor(transform.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(transform.std, device=device).view(3, 1, 1)
        self.batch_size = choose_batch_size(self.network, options["batch"], DEFAULT_BATCH)

    @classmethod
    def _load(cls, weights: str | None, device: str, compute_dtype: str, settings: Mapping[str, Any]) -> Any:
        """Load the network and the transform of a checkpoint; return the encoder with these options."""
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        transform = FrameTransform(checkpoint.json("preprocessor_config.json"), checkpoint.error)
        tapped = open_tapped(checkpoint, cls.families, device, compute_dtype, settings)
        return cls(tapped, transform, settings)

    @classmethod
    def from_spec(cls, spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None) -> Any:
        """Build the encoder of a spec around a loaded network, or around none for preprocessing."""
        options = read_options(cls.name, cls.options_of(spec), cls.known_options)
        tapped = tapped_of_spec(spec, settings, cls.families, network, options)
        return cls(tapped, FrameTransform(settings["preprocessor"], _refusal_of_settings), options)

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values from which `from_spec` and `empty_network` build the encoder without its checkpoint."""
        return settings_of(self._tapped, self._transform.document)

    @classmethod
    def empty_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        """Return the network without its weights."""
        return empty_network(settings, cls.families)

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """Resize and crop (F, H, W, 3) uint8 to (F, height, width, 3) uint8."""
        return np.stack([self._transform(frame) for frame in view])

    def without_network(self) -> _HfVisionEncoder:
        """Return a copy for preprocessing only."""
        return copy_without(self, "network", "_tapped", "_mean", "_std")

    def _pixels(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Normalise (…, H, W, 3) uint8 to (…, 3, H, W) float32."""
        pixels = required(self.network).tensor(batch).movedim(-1, -3).float().div(255)
        return (pixels - self._mean) / self._std

    def _spec(self, pooling: dict[str, Any], stored_dtype: str) -> Spec:
        loaded = self._tapped.loaded
        return Spec(
            encoder=self.name,
            implementation=FRAMES_IMPLEMENTATION,
            weights=loaded.weights,
            architecture={**self._tapped.architecture, "batch": self.batch_size},
            tap={**self._tapped.tap, "asked": self._options["norm"]},
            preprocessing={"frames": self.view.count, "frame_rule": self.view.rule, **self._transform.describe()},
            pooling=pooling,
            compute_dtype=required(self.network).compute_dtype,
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


class HfImageEncoder(_HfVisionEncoder):
    """An image network of transformers that encodes frames one by one."""

    name = "hf-image"
    families, known_options = IMAGE, IMAGE_OPTIONS
    default_weights = PUBLISHED["hf-image"]

    def __init__(self, tapped: TappedNetwork, transform: FrameTransform, options: Mapping[str, Any]) -> None:
        super().__init__(tapped, transform, options)
        self.view = FramesView(options["frames"], options["rule"], still=options["frames"] == 1)
        num_patches = (transform.out_shape[0] // tapped.loaded.config.patch_size) ** 2
        num_tokens = _num_image_tokens(options, num_patches, tapped.family.prefix_tokens)
        self.shape = (num_tokens, tapped.loaded.config.hidden_size)

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> HfImageEncoder:
        """Load every weight of the network, or fail.

        Options: `frames` (1), `rule` (peak, middle, first, window, uniform), `pool` (grid, cls, all or mean), `grid`
        (4), `layer` (all blocks), `norm` (final or none), `batch`, `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another family.
            EncoderError: unknown option, device or dtype, or a CLS token that the family does not have.
        """
        return cls._load(weights, device, compute_dtype, _read_options(cls.name, options, IMAGE_OPTIONS))

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's configs only."""
        settings = _read_options(cls.name, options, IMAGE_OPTIONS)
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        family, config = find_family(checkpoint, IMAGE)
        transform = FrameTransform(checkpoint.json("preprocessor_config.json"), checkpoint.error)
        num_patches = (transform.out_shape[0] // config.patch_size) ** 2
        return _num_image_tokens(settings, num_patches, family.prefix_tokens), config.hidden_size

    @classmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """Return the options with which `open` gives an encoder of this spec."""
        return cls._tap_options(spec) | _pooling_options(spec) | {"frames": spec.preprocessing["frames"]}

    def spec(self, stored_dtype: str) -> Spec:
        """Return everything that decides the stored bytes."""
        pooling = {"rule": self._options["pool"], "grid": self._options["grid"], "order": "frame, row, column"}
        pooling = {"rule": MEAN_RULE} if self._options["pool"] == "mean" else pooling
        return self._spec(pooling, stored_dtype)

    def forward(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Encode (B, F, side, side, 3) uint8 to (B, F · tokens, D)."""
        with required(self.network).running():
            pixels = self._pixels(batch.reshape(-1, *batch.shape[2:]))
            other_size = pixels.shape[-1] != self._tapped.loaded.config.image_size
            hidden = self._tapped(pixels, **({"interpolate_pos_encoding": True} if other_size else {}))
            return hidden.reshape(len(batch), -1, self.shape[1])

    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """Average (B, F · tokens, D) to (B, K, D) float32, or take the CLS tokens or all tokens."""
        rule, num_prefix = self._options["pool"], self._tapped.family.prefix_tokens
        with torch.inference_mode():
            if rule == "all":
                return tokens.float()
            frames = tokens.reshape(len(tokens), self.view.count, -1, tokens.shape[-1])  # [b, f, tokens, d]
            if rule == "cls":
                return frames[:, :, 0].float()
            if rule == "mean":
                return average_patches(frames[:, :, num_prefix:])
            return average_over_grid(frames[:, :, num_prefix:].flatten(1, 2), self.view.count, self._options["grid"])


class HfVideoEncoder(_HfVisionEncoder):
    """A video network of transformers."""

    name = "hf-video"
    families, known_options = VIDEO, VIDEO_OPTIONS
    default_weights = PUBLISHED["hf-video"]

    def __init__(self, tapped: TappedNetwork, transform: FrameTransform, options: Mapping[str, Any]) -> None:
        super().__init__(tapped, transform, options)
        config = tapped.loaded.config
        self.view = FramesView(config.num_frames, options["rule"], still=False)
        self.num_moments = config.num_frames // config.tubelet_size
        self.shape = (_num_video_tokens(options, self.num_moments), config.hidden_size)

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> HfVideoEncoder:
        """Load every weight of the network, or fail.

        Options: `rule` (uniform, or consecutive frames: window, peak, middle, first), `pool` (grid or mean), `grid`
        (2), `layer` (all blocks), `norm` (final or none), `batch`, `compile`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete or of another family.
            EncoderError: unknown option, device or dtype.
        """
        return cls._load(weights, device, compute_dtype, _read_options(cls.name, options, VIDEO_OPTIONS))

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config only."""
        settings = _read_options(cls.name, options, VIDEO_OPTIONS)
        config = find_family(Checkpoint(weights or cls.default_weights, cls.name), VIDEO)[1]
        return _num_video_tokens(settings, config.num_frames // config.tubelet_size), config.hidden_size

    @classmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """Return the options with which `open` gives an encoder of this spec."""
        pooling = _pooling_options(spec)
        return cls._tap_options(spec) | (pooling if pooling["pool"] == "mean" else {"grid": pooling["grid"]})

    def spec(self, stored_dtype: str) -> Spec:
        """Return everything that decides the stored bytes."""
        pooling = {"rule": "adaptive average over patches", "grid": self._options["grid"], "order": "time, row, column"}
        pooling = {"rule": MEAN_RULE} if self._options["pool"] == "mean" else pooling
        return self._spec(pooling, stored_dtype)

    def forward(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Encode (B, F, side, side, 3) uint8 to (B, T, D), moment by moment."""
        with required(self.network).running():
            return self._tapped(self._pixels(batch))

    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """Average (B, T, D) to (B, K, D) float32."""
        with torch.inference_mode():
            if self._options["pool"] == "mean":
                return average_patches(tokens[:, None])
            return average_over_grid(tokens, self.num_moments, self._options["grid"])


def _refusal_of_settings(*, expected: str, got: str) -> WeightsError:
    """Return the error about preprocessing settings that an exported model holds."""
    return WeightsError("preprocessing of the exported model", expected=expected, got=got)


def _read_options(encoder: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    settings = read_options(encoder, options, known)
    if settings["pool"] == "mean":
        single_vector(encoder, "mean", options, ("grid",))
    return settings


def _pooling_options(spec: Spec) -> dict[str, Any]:
    """Return the options `pool` and, unless it is mean, `grid` of a spec."""
    if spec.pooling["rule"] == MEAN_RULE:
        return {"pool": "mean"}
    return {"pool": spec.pooling["rule"], "grid": spec.pooling["grid"]}


def _num_video_tokens(options: Mapping[str, Any], num_moments: int) -> int:
    """Return the number of pooled tokens of all moments."""
    return 1 if options["pool"] == "mean" else num_moments * options["grid"] ** 2


def _num_image_tokens(options: Mapping[str, Any], num_patches: int, num_prefix: int) -> int:
    """Return the number of pooled tokens of all frames.

    Raises:
        EncoderError: pool=cls for a network without a CLS token.
    """
    if options["pool"] == "cls" and not num_prefix:
        raise EncoderError("hf-image.pool", expected="grid | all, for a network without a CLS token", got="'cls'")
    if options["pool"] == "mean":
        return 1
    tokens_per_frame = {"cls": 1, "all": num_prefix + num_patches, "grid": options["grid"] ** 2}[options["pool"]]
    return options["frames"] * tokens_per_frame
