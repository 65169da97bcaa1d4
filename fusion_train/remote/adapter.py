"""Put an adapter-only folder together with what it refers to: the base model and the encoders, found by name or path.

    AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True, base="llama-folder",
                                         encoder_weights={"whisper": "whisper-folder"})

Both are known by the sha256 of their weight files: another base, or an encoder of another fingerprint, is refused.
Adapters stay beside the base's weights, as they were trained. Needs peft.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from featurecache.encoders.checkpoint import Checkpoint
from featurecache.encoders.network import align
from featurecache.errors import FingerprintError, WeightsError, suggest
from featurecache.files.hashing import file_sha256
from fusion_train.models.answering import plain_generation
from fusion_train.remote.configuration_emotion_llama import EmotionLlamaConfig
from fusion_train.remote.encoding import EXPORTABLE, refuse_other_encoder

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINED_WEIGHTS = "fusion.safetensors"
"""Fusion and projectors, named as in EmotionLlama; and the model's `constants`, as `PART.NAME`."""
SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def is_adapter_folder(place: Any) -> bool:
    """Whether `place` is a folder of the adapter-only form."""
    return isinstance(place, str | Path) and (Path(place) / TRAINED_WEIGHTS).is_file()


def assemble_adapter(
    model_class: type, folder: Path, base: str | None = None, encoder_weights: Mapping[str, str] | None = None
) -> Any:
    """Open what the folder refers to and put its own parts on top.

    Args:
        base: folder or hub id of the base model, where it is not the name in the configuration.
        encoder_weights: encoder name -> folder or hub id, where it is not the hub id in its spec.

    Raises:
        WeightsError: a base of another size, weights missing or left over, or peft is not installed.
        FingerprintError: base or encoders are not those that the model was trained on.
    """
    config = EmotionLlamaConfig.from_pretrained(folder)
    config.auto_map = None
    llm = _with_adapters(open_base(config, base or config.base_reference["name"]), folder)
    with torch.device("meta"):
        model = model_class(config)
    model.emotion_llama.llm = llm
    _load_trained(model, folder)
    model.networks = open_networks(config, dict(encoder_weights or {}))
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return align(model).eval()


def base_files(name: str) -> dict[str, str]:
    """sha256 by name of the weight files of a base model, a folder or a hub id."""
    return {file: file_sha256(path) for file, path in sorted(Checkpoint(name, "base").files_of().items())}


def open_base(config: EmotionLlamaConfig, name: str) -> nn.Module:
    """Load the base model.

    Raises:
        WeightsError: it is not to be found, or of another size.
        FingerprintError: its weight files are not those that the adapters were trained on.
    """
    reference = config.base_reference
    advice = (
        f'Name the base that it was trained on, "{reference["name"]}", with base=FOLDER (--base on a command line).'
    )
    try:
        found = AutoConfig.from_pretrained(name).get_text_config()
    except (OSError, ValueError) as error:
        raise WeightsError(
            f'base "{name}"',
            expected="a folder or a reachable hub id",
            got=" ".join(str(error).split())[:200],
            next_step=advice,
        ) from error
    differing = [key for key in SIZES if getattr(found, key, None) != getattr(config.text_config, key, None)]
    if differing:
        wanted = ", ".join(f"{key} {getattr(config.text_config, key, None)}" for key in differing)
        got = ", ".join(f"{key} {getattr(found, key, None)}" for key in differing)
        raise WeightsError(f'base "{name}"', expected=wanted, got=got, next_step=advice)
    files = base_files(name)
    if sorted(files.values()) != sorted(reference["files"].values()):
        raise FingerprintError(
            f'base "{name}"',
            expected="the weights that the adapters were trained on",
            got="others of the same size",
            next_step=advice,
        )
    llm = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, reference["dtype"])).eval()
    llm.generation_config = plain_generation(llm.generation_config)  # what it leaves open is taken from the base's
    return llm


def open_networks(config: EmotionLlamaConfig, weights: Mapping[str, str]) -> nn.ModuleDict:
    """Load every encoder that the configuration names; its fingerprint must be that of the spec.

    Raises:
        WeightsError: nobody knows where its weights are, or they are incomplete.
        FingerprintError: it is not the encoder that made the features.
    """
    specs = config.specs
    names = {spec.encoder for spec in specs.values()}
    for given in weights:
        if given not in names:
            raise WeightsError(
                f'encoder weights of "{given}"',
                expected="one of " + ", ".join(sorted(names)),
                got="another",
                next_step=suggest(given, names).strip() or None,
            )
    networks = nn.ModuleDict()
    for modality, spec in specs.items():
        place = weights.get(spec.encoder) or spec.provenance.get("hub")
        if place is None:
            raise WeightsError(
                f"weights of {spec.encoder}",
                expected="the checkpoint that made the features",
                got="no hub id",
                next_step=f'Say where it is with encoder_weights={{"{spec.encoder}": FOLDER}} (--weights on a command '
                "line).",
            )
        maker = EXPORTABLE[spec.encoder]
        encoder = maker.open(str(place), "cpu", spec.compute_dtype, maker.options_of(spec))
        refuse_other_encoder(encoder.spec(spec.stored_dtype), spec, modality)
        key = config.encoders[modality]["network"]
        if key not in networks:
            networks[key] = encoder.network.module
    return networks


def _with_adapters(llm: nn.Module, folder: Path) -> nn.Module:
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise WeightsError(
            str(folder),
            expected="peft, for adapters beside the base",
            got="none",
            next_step="pip install peft, or export the run with --merge.",
        ) from error
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for checkpointing by a name that it has deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        adapted = PeftModel.from_pretrained(llm, folder)
    held, wanted = (
        set(load_file(folder / ADAPTER_WEIGHTS)),
        set(get_peft_model_state_dict(adapted, save_embedding_layers=False)),
    )
    _refuse_differing(folder / ADAPTER_WEIGHTS, held, wanted)
    return adapted.requires_grad_(False).eval()


def _load_trained(model: Any, folder: Path) -> None:
    tensors = load_file(folder / TRAINED_WEIGHTS)
    network, constants = model.emotion_llama, model.constants()
    wanted = {name for name in network.state_dict() if not name.startswith("llm.")}
    wanted |= {f"{part}.{name}" for part, module in constants.items() for name in module.state_dict()}
    _refuse_differing(folder / TRAINED_WEIGHTS, set(tensors), wanted)
    for part, module in constants.items():
        module.load_state_dict({name: tensors.pop(f"{part}.{name}") for name in module.state_dict()}, assign=True)
    network.load_state_dict(tensors, strict=False, assign=True)


def _refuse_differing(path: Path, held: set[str], wanted: set[str]) -> None:
    problems = [f"missing: {name}" for name in sorted(wanted - held)]
    problems += [f"unexpected: {name}" for name in sorted(held - wanted)]
    if problems:
        raise WeightsError(
            path.name,
            expected="every trained weight, and no others",
            got=f"{len(problems)} that differ",
            next_step="Export the run again.",
            problems=problems,
        )
