"""Load one of several families of Hugging Face networks strictly, and tap it at any block.

    sound     HuBERT, wav2vec 2.0, WavLM, data2vec-audio      (B, S) -> (B, T, D)          `hf-audio`
    pictures  CLIP, SigLIP, DINOv2, ViT                       (B, 3, H, W) -> (B, T, D)    `hf-image`
    video     VideoMAE                                        (B, F, 3, H, W) -> (B, T, D) `hf-video`

A family is one line of `FAMILIES`. Only the tower that gives tokens is loaded, from safetensors; heads and text towers
of a checkpoint are left out, but every tensor of the tower must be there in its shape. Tokens leave after `layer`
blocks, with the family's final norm or without. This module knows no media and no preprocessing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from featurecache.encoders.checkpoint import Checkpoint, quiet_transformers
from featurecache.encoders.network import (
    FrozenNetwork,
    Loaded,
    block_count,
    compiled_fields,
    load_once,
    resolve_compute_dtype,
    resolve_device,
    tap,
)
from featurecache.files.hashing import file_sha256


@dataclass(frozen=True)
class Family:
    """Where the parts of a network are."""

    network: str
    """Class of transformers."""
    config: str
    blocks: str
    """Dotted path of the list of blocks."""
    norm: str | None
    """Dotted path of the norm after the last block; None where tokens leave without one."""
    prefix_tokens: int = 0
    """Tokens before the patches: CLS."""
    settings: Mapping[str, Any] | None = None
    """Further arguments of the class."""


_SPEECH = {"blocks": "encoder.layers", "norm": None}
_CLIP = Family("CLIPVisionModel", "CLIPVisionConfig", "encoder.layers", None, 1)
_SIGLIP = Family("SiglipVisionModel", "SiglipVisionConfig", "encoder.layers", "post_layernorm")
AUDIO = {
    "hubert": Family("HubertModel", "HubertConfig", **_SPEECH),
    "wav2vec2": Family("Wav2Vec2Model", "Wav2Vec2Config", **_SPEECH),
    "wavlm": Family("WavLMModel", "WavLMConfig", **_SPEECH),
    "data2vec-audio": Family("Data2VecAudioModel", "Data2VecAudioConfig", **_SPEECH),
}
IMAGE = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": Family("Dinov2Model", "Dinov2Config", "encoder.layer", "layernorm", 1),
    "vit": Family("ViTModel", "ViTConfig", "layers", "layernorm", 1, {"add_pooling_layer": False}),
}
VIDEO = {"videomae": Family("VideoMAEModel", "VideoMAEConfig", "encoder.layer", "layernorm")}
NEVER_USED = ("masked_spec_embed", "mask_token", "position_ids")
"""Parameters that only training reads."""


@dataclass(eq=False)
class Tapped:
    """A network as one encoder runs it."""

    loaded: Loaded
    module: torch.nn.Module
    family: Family
    description: dict[str, Any]
    """The tap, for the spec."""
    architecture: dict[str, Any]


def find_family(checkpoint: Checkpoint, families: Mapping[str, Family]) -> tuple[Family, Any]:
    """Return the family of a checkpoint and its config, that of the tower alone.

    Raises:
        WeightsError: no checkpoint, or of no such family.
    """
    document = checkpoint.json("config.json")
    kind = document.get("model_type")
    if kind not in families:
        raise checkpoint.error(expected="a checkpoint of " + " | ".join(families), got=f"model_type {kind!r}")
    family = families[kind]
    part = document.get("vision_config", document) if kind in ("clip", "siglip") else document
    return family, getattr(transformers, family.config).from_dict(part)


def open_tap(
    checkpoint: Checkpoint,
    families: Mapping[str, Family],
    device: str,
    compute_dtype: str,
    *,
    layer: int | None,
    norm: str,
    compile: str,
) -> Tapped:
    """Load (or find, where another encoder holds it) the network of a checkpoint, and tap it.

    Raises:
        WeightsError: tensors of the tower missing, unexpected or of another shape, or pickled weights.
        EncoderError: more blocks asked for than there are; no such device or dtype.
    """
    family, config = find_family(checkpoint, families)
    place = resolve_device(device)
    dtype = resolve_compute_dtype(compute_dtype, place)
    compiled_blocks = family.blocks if compile == "yes" else ""
    key = (family.network, checkpoint.weights, str(place), dtype, compiled_blocks)
    loaded = load_once(key, lambda: _load(checkpoint, family, config, place, dtype, compiled_blocks))
    module = loaded.network.module
    count = block_count(checkpoint.encoder, layer, config.num_hidden_layers)
    final = _final_norm(family, config, module)
    description = {
        "module": family.network,
        "blocks": count,
        "norm": final if final and norm == "final" else "none",
    }
    return Tapped(
        loaded,
        tap(module, family.blocks, count, final if norm == "none" else None),
        family,
        description,
        {
            "heads": config.num_attention_heads,
            "activation": config.hidden_act,
            "norm_eps": config.layer_norm_eps,
            "attention": module.config._attn_implementation,
            "residual_dtype": "float32",
            **compiled_fields(compile),
        },
    )


def _final_norm(family: Family, config: Any, module: torch.nn.Module) -> str | None:
    if getattr(config, "do_stable_layer_norm", False):  # otherwise the same module normalises before the blocks
        return "encoder.layer_norm"
    return family.norm if family.norm and getattr(module, family.norm, None) is not None else None


def _load(
    checkpoint: Checkpoint,
    family: Family,
    config: Any,
    device: torch.device,
    compute_dtype: str,
    compiled_blocks: str,
) -> Loaded:
    files = checkpoint.files_of()
    settings = {"config": config, "dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    cls = getattr(transformers, family.network)
    try:
        with quiet_transformers():  # ours names the missing tensors
            network, report = cls.from_pretrained(
                next(iter(files.values())).parent, **settings, **(family.settings or {})
            )
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        raise checkpoint.error(expected="safetensors files that fit its config.json", got=first_line) from error
    missing = [key for key in report["missing_keys"] if not key.endswith(NEVER_USED)]
    tower = family.blocks + "."
    other = ("text_model.", "decoder.")
    unexpected = [key for key in report["unexpected_keys"] if tower in key and not key.startswith(other)]
    problems = [f"missing: {key}" for key in sorted(missing)] + [f"unexpected: {key}" for key in sorted(unexpected)]
    problems += [
        f"shape of {entry[0]}: expected {tuple(entry[2])}, got {tuple(entry[1])}"
        for entry in sorted(report["mismatched_keys"])
    ]
    if problems:
        raise checkpoint.error(expected="every tensor of its config.json", got="other ones", problems=problems)
    hashes = {name: file_sha256(path) for name, path in files.items()}
    frozen = FrozenNetwork(network, device, compute_dtype, compiled_blocks)
    return Loaded(frozen, config, hashes, checkpoint.provenance)
