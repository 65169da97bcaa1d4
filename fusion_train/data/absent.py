"""What the model sees in place of an absent modality, where the configuration makes absence visible.

The released code feeds zeros for absent sound and video, and an all-zero image through EVA, whose tokens are a constant
that is not zero; nothing tells the language model apart from what is there. `features.absent: visible` reproduces that
for its checkpoints. The constant is computed once (`zero_image`) and kept as a safetensors file:

    tokens (K, D) float32 · metadata: fingerprint of the feature that it belongs to

Shapes: K tokens, D encoder width. Source: released code at 5f0a408, encode_img.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from featurecache.files.publish import replace_bytes
from fusion_train.config import FeaturesConfig
from fusion_train.data.batches import FeatureReader
from fusion_train.errors import ConfigError


def stand_ins(features: FeaturesConfig, reader: FeatureReader, beside: Path) -> dict[str, Tensor] | None:
    """Return modality -> (K, D) that is shown in place of an absent one; None where absence is hidden.

    Args:
        beside: folder of the clip list, where `features.zero_image` is looked for if not in the working directory.

    Raises:
        ConfigError: no tokens of an all-zero image, or those of another feature.
    """
    if features.absent == "hidden":
        return None
    shapes = {modality: getattr(reader.shapes, modality) for modality in reader.modalities}
    shown = {modality: torch.zeros(shape) for modality, shape in shapes.items()}
    if "image" in shown:
        given = features.zero_image
        there = given if given is None or Path(given).is_file() else str(beside / given)
        shown["image"] = read_zero_image(there, reader.fingerprints["image"])
    return shown


def write_zero_image(path: Path, tokens: Tensor, fingerprint: str) -> None:
    """Publish the tokens (K, D) of an all-zero image."""
    replace_bytes(path, save({"tokens": tokens.float().contiguous()}, metadata={"fingerprint": fingerprint}))


def read_zero_image(path: str | None, fingerprint: str) -> Tensor:
    """Read the tokens (K, D) of an all-zero image that belong to a feature.

    Raises:
        ConfigError: no such file, another kind of file, or one that belongs to another feature.
    """
    advice = "Make it with fusion-train zero-image."
    subject = "features.zero_image"
    expected = "the tokens of an all-zero image, since features.absent is visible"
    if path is None or not Path(path).is_file():
        raise ConfigError(subject, expected=expected, got=f"no file {path}" if path else "none", next_step=advice)
    try:
        with safe_open(path, framework="pt") as file:
            kept = (file.metadata() or {}).get("fingerprint", "none")
            tokens = file.get_tensor("tokens")
    except (SafetensorError, OSError) as error:
        raise ConfigError(subject, expected=expected, got=f"{path}: {error}", next_step=advice) from error
    if kept != fingerprint:
        raise ConfigError(
            f"{subject} {path}",
            expected=f"that of the feature with fingerprint {fingerprint[:12]}…",
            got=f"that of {kept[:12]}…",
            next_step=advice,
        )
    return tokens
