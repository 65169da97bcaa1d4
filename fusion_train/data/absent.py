"""Constants that the model sees in place of an absent modality, if `features.absent` is visible.

The released code feeds zeros for absent sound and video, and the tokens that EVA computes for an all-zero image, which
are not zero; nothing tells the language model that they stand for an absent modality. `features.absent: visible` does
the same, so that checkpoints of the released code compute what they computed there. The tokens of the all-zero image
are computed once (`fusion-train zero-image`) and kept in a safetensors file:

    tokens (K, D) float32 · metadata: fingerprint of the feature that the tokens belong to

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
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.errors import ConfigError


def absent_constants(features: FeaturesConfig, reader: FeatureReader, folder: Path) -> dict[str, Tensor] | None:
    """Return modality -> (K, D) that is shown in place of an absent modality; None if absent modalities are hidden.

    Args:
        folder: folder of the clip list; a relative `features.zero_image` is looked for in the working directory, then
            there.

    Raises:
        ConfigError: no tokens of an all-zero image, or those of another feature.
    """
    if features.absent == "hidden":
        return None
    constants = {modality: torch.zeros(getattr(reader.shapes, modality)) for modality in reader.modalities}
    if "image" in constants:
        path = features.zero_image
        if path is not None and not Path(path).is_file():
            path = str(folder / path)
        constants["image"] = read_zero_image(path, reader.fingerprints["image"])
    return constants


def write_zero_image(path: Path, tokens: Tensor, fingerprint: str) -> None:
    """Publish the tokens (K, D) of an all-zero image."""
    replace_bytes(path, save({"tokens": tokens.float().contiguous()}, metadata={"fingerprint": fingerprint}))


def read_zero_image(path: str | None, fingerprint: str) -> Tensor:
    """Read the tokens (K, D) of an all-zero image for the feature with this fingerprint.

    Raises:
        ConfigError: no such file, another kind of file, or the file of another feature.
    """
    advice = "Make it with fusion-train zero-image."
    subject = "features.zero_image"
    expected = "the tokens of an all-zero image, since features.absent is visible"
    if path is None or not Path(path).is_file():
        raise ConfigError(subject, expected=expected, got=f"no file {path}" if path else "none", next_step=advice)
    try:
        with safe_open(path, framework="pt") as file:
            file_fingerprint = (file.metadata() or {}).get("fingerprint", "none")
            tokens: Tensor = file.get_tensor("tokens")
    except (SafetensorError, OSError) as error:
        raise ConfigError(subject, expected=expected, got=f"{path}: {error}", next_step=advice) from error
    if file_fingerprint != fingerprint:
        raise ConfigError(
            f"{subject} {path}",
            expected=f"that of the feature with fingerprint {fingerprint[:12]}…",
            got=f"that of {file_fingerprint[:12]}…",
            next_step=advice,
        )
    return tokens
