"""Load networks of several Hugging Face families strictly, and tap them after any block.

    sound     HuBERT, wav2vec 2.0, WavLM, data2vec-audio      (B, S) -> (B, T, D)          `hf-audio`
    frames    CLIP, SigLIP, DINOv2, ViT                       (B, 3, H, W) -> (B, T, D)    `hf-image`
    video     VideoMAE                                        (B, F, 3, H, W) -> (B, T, D) `hf-video`

A family is one line of `AUDIO`, `IMAGE` or `VIDEO`. Only the tower that gives tokens is loaded, from safetensors; heads
and text towers of a checkpoint are not. The checkpoint must hold every tensor of the tower in its shape. Tokens are the
output of the first `layer` blocks, with or without the family's final norm. This module knows no media and no
preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from featurecache.encoders.checkpoint import Checkpoint, quiet_transformers
from featurecache.encoders.network import (
    FrozenNetwork,
    LoadedNetwork,
    block_count,
    compiled_fields,
    load_once,
    outputs_of_blocks,
    required,
    resolve_compute_dtype,
    resolve_device,
    tapped_network,
)
from featurecache.files.hashing import file_sha256
from featurecache.spec import Spec


@dataclass(frozen=True)
class Family:
    """The classes of a network family in transformers, and the paths of its parts."""

    network: str
    """Name of the network's class in transformers."""
    config: str
    """Name of its config's class."""
    blocks: str
    """Dotted path of the list of blocks."""
    norm: str | None
    """Dotted path of the norm after the last block; None if the family has none."""
    prefix_tokens: int = 0
    """Number of tokens before the patches: 1 for a CLS token."""
    settings: Mapping[str, Any] | None = None
    """Further arguments of the network's class."""


def _speech(network: str, config: str) -> Family:
    return Family(network, config, blocks="encoder.layers", norm=None)


_CLIP = Family("CLIPVisionModel", "CLIPVisionConfig", "encoder.layers", None, 1)
_SIGLIP = Family("SiglipVisionModel", "SiglipVisionConfig", "encoder.layers", "post_layernorm")
AUDIO = {
    "hubert": _speech("HubertModel", "HubertConfig"),
    "wav2vec2": _speech("Wav2Vec2Model", "Wav2Vec2Config"),
    "wavlm": _speech("WavLMModel", "WavLMConfig"),
    "data2vec-audio": _speech("Data2VecAudioModel", "Data2VecAudioConfig"),
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
TRAINING_ONLY = ("masked_spec_embed", "mask_token", "position_ids")
"""Ends of the names of parameters that only training reads; a checkpoint may lack them."""


@dataclass(eq=False)
class TappedNetwork:
    """A loaded network, truncated as one encoder runs it."""

    loaded: LoadedNetwork
    module: torch.nn.Module | None
    """The truncated network; None if only preprocessing is needed."""
    family: Family
    norm: str | None
    """Dotted path of the norm after the last block; None if the network has none."""
    tap: dict[str, Any]
    """The field `tap` of the spec."""
    architecture: dict[str, Any]
    """The field `architecture` of the spec, without the batch size."""

    @property
    def network(self) -> FrozenNetwork | None:
        """The whole network."""
        return self.loaded.network

    def __call__(self, *inputs: torch.Tensor, **options: Any) -> torch.Tensor:
        """Run the truncated network; return its hidden states (B, T, D)."""
        assert self.module is not None  # an encoder without a network only preprocesses
        return self.module(*inputs, **options).last_hidden_state

    @property
    def gives_layers(self) -> bool:
        """Whether `layers` can be called: nothing but the norm follows the blocks."""
        return not getattr(self.loaded.config, "add_adapter", False)

    def layers(self, layers: Sequence[int], *inputs: torch.Tensor, **options: Any) -> dict[int, torch.Tensor]:
        """Run the network once; return layer -> hidden states (B, T, D), with the norm of this tap."""
        removed = self.tap["norm"] == "none"
        return outputs_of_blocks(
            required(self.network).module,
            self.family.blocks,
            layers,
            None if removed else self.norm,
            self.norm if removed else None,
            lambda network: network(*inputs, **options),
        )


def find_family(checkpoint: Checkpoint, families: Mapping[str, Family]) -> tuple[Family, Any]:
    """Return the family of a checkpoint, and the config of its tower.

    Raises:
        WeightsError: no checkpoint, or a checkpoint of another family.
    """
    document = checkpoint.json("config.json")
    model_type = document.get("model_type")
    if not isinstance(model_type, str) or model_type not in families:
        raise checkpoint.error(expected="a checkpoint of " + " | ".join(families), got=f"model_type {model_type!r}")
    # CLIP and SigLIP checkpoints hold a text tower too; `vision_config` describes the tower that gives tokens.
    return families[model_type], _tower_config(
        families[model_type],
        document.get("vision_config", document) if model_type in ("clip", "siglip") else document,
    )


def _tower_config(family: Family, document: Mapping[str, Any]) -> Any:
    return getattr(transformers, family.config).from_dict(dict(document))


def settings_of(tapped: TappedNetwork, preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values from which `empty_network` and `tapped_of_spec` build the network without its checkpoint.

    Args:
        preprocessor: the checkpoint's preprocessor_config.json.
    """
    return {"config": tapped.loaded.config.to_dict(), "preprocessor": dict(preprocessor)}


def empty_network(settings: Mapping[str, Any], families: Mapping[str, Family]) -> torch.nn.Module:
    """Return the network of `settings_of` without its weights."""
    family = families[settings["config"]["model_type"]]
    config = _tower_config(family, settings["config"])
    return getattr(transformers, family.network)(config, **(family.settings or {}))


def tapped_of_spec(
    spec: Spec,
    settings: Mapping[str, Any],
    families: Mapping[str, Family],
    network: FrozenNetwork | None,
    options: Mapping[str, Any],
) -> TappedNetwork:
    """Truncate the network of a spec that is loaded already; `network` None is enough for preprocessing.

    Args:
        options: as in `open_tapped`.
    """
    family = families[settings["config"]["model_type"]]
    config = _tower_config(family, settings["config"])
    loaded = LoadedNetwork(network, config, dict(spec.weights), dict(spec.provenance))
    return _tap(loaded, family, spec.encoder, options)


def open_tapped(
    checkpoint: Checkpoint,
    families: Mapping[str, Family],
    device: str,
    compute_dtype: str,
    options: Mapping[str, Any],
) -> TappedNetwork:
    """Load the network of a checkpoint, or share it with an encoder that has it loaded, and truncate it.

    Args:
        options: `layer` (number of blocks, None for all), `norm` (final or none) and `compile` of the encoder.

    Raises:
        WeightsError: tensors of the tower missing, unexpected or of another shape, or pickled weights.
        EncoderError: `layer` is larger than the number of blocks; no such device or dtype.
    """
    family, config = find_family(checkpoint, families)
    torch_device = resolve_device(device)
    dtype = resolve_compute_dtype(compute_dtype, torch_device)
    compiled_blocks = family.blocks if options["compile"] == "yes" else ""
    key = (family.network, checkpoint.weights, str(torch_device), dtype, compiled_blocks)
    loaded = load_once(key, lambda: _load(checkpoint, family, config, torch_device, dtype, compiled_blocks))
    return _tap(loaded, family, checkpoint.encoder, options)


def _tap(loaded: LoadedNetwork, family: Family, encoder: str, options: Mapping[str, Any]) -> TappedNetwork:
    config, norm = loaded.config, options["norm"]
    num_blocks = block_count(encoder, options["layer"], config.num_hidden_layers)
    if loaded.network is None:
        return TappedNetwork(loaded, None, family, None, {}, {})
    module: Any = loaded.network.module
    final_norm = _final_norm(family, config, module)
    return TappedNetwork(
        loaded,
        tapped_network(module, family.blocks, num_blocks, final_norm if norm == "none" else None),
        family,
        final_norm,
        tap={
            "module": family.network,
            "blocks": num_blocks,
            "norm": final_norm if final_norm and norm == "final" else "none",
        },
        architecture={
            "heads": config.num_attention_heads,
            "activation": config.hidden_act,
            "norm_eps": config.layer_norm_eps,
            "attention": module.config._attn_implementation,
            "residual_dtype": "float32",
            **compiled_fields(options["compile"]),
        },
    )


def _final_norm(family: Family, config: Any, module: torch.nn.Module) -> str | None:
    """Return the dotted path of the network's final norm; None if it has none."""
    if getattr(config, "do_stable_layer_norm", False):  # without this setting that norm runs before the blocks
        return "encoder.layer_norm"
    return family.norm if family.norm and getattr(module, family.norm, None) is not None else None


def _load(
    checkpoint: Checkpoint,
    family: Family,
    config: Any,
    device: torch.device,
    compute_dtype: str,
    compiled_blocks: str,
) -> LoadedNetwork:
    tower = family.blocks + "."
    other_towers = ("text_model.", "decoder.")
    network, hashes = load_pretrained(
        checkpoint,
        getattr(transformers, family.network),
        config,
        family.settings or {},
        is_needed=lambda key: not key.endswith(TRAINING_ONLY),
        is_read=lambda _, key: tower in key and not key.startswith(other_towers),
    )
    frozen = FrozenNetwork(network, device, compute_dtype, compiled_blocks)
    return LoadedNetwork(frozen, config, hashes, checkpoint.provenance)


def load_pretrained(
    checkpoint: Checkpoint,
    network_class: Any,
    config: Any,
    settings: Mapping[str, Any],
    *,
    is_needed: Callable[[str], bool],
    is_read: Callable[[Any, str], bool],
) -> tuple[Any, dict[str, str]]:
    """Load a network of transformers strictly in float32; return it, and sha256 by weight file.

    Args:
        settings: further arguments of the network's class.
        is_needed: whether the checkpoint must hold the parameter of a name.
        is_read: whether a tensor of this name that the network lacks belongs to what it computes, and not to a head.

    Raises:
        WeightsError: tensors missing, unexpected or of another shape (all are named), or pickled weights.
    """
    files = checkpoint.files_of()
    reading = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    try:
        with quiet_transformers():  # the error below names the tensors
            network, report = network_class.from_pretrained(
                next(iter(files.values())).parent,
                config=config,
                ignore_mismatched_sizes=True,  # they are named below
                **reading,
                **settings,
            )
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        raise checkpoint.error(expected="safetensors files that fit its config.json", got=first_line) from error
    mismatched = sorted(report["mismatched_keys"])
    differing = {entry[0] for entry in mismatched}
    problems = [f"missing: {key}" for key in sorted(report["missing_keys"]) if is_needed(key) and key not in differing]
    problems += [f"unexpected: {key}" for key in sorted(report["unexpected_keys"]) if is_read(network, key)]
    problems += [f"shape of {name}: expected {tuple(own)}, got {tuple(got)}" for name, got, own in mismatched]
    if problems:
        raise checkpoint.error(expected="every tensor of its config.json", got="other ones", problems=problems)
    return network, {name: file_sha256(path) for name, path in files.items()}
