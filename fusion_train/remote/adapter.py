"""Load an adapter-only folder: combine its trained parts with the base model and encoders that it refers to.

    AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True, base="llama-folder",
                                         encoder_weights={"whisper": "whisper-folder"})

The sha256 of the weight files identifies the base, and the fingerprint each encoder; others are refused. The adapters
are not merged into the weights of the base, as in training. Needs peft.
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
from featurecache.encoders.network import align, required
from featurecache.errors import FingerprintError, WeightsError
from featurecache.files.hashing import file_sha256
from fusion_train.models.answering import plain_generation
from fusion_train.remote.configuration_emotion_llama import EmotionLlamaConfig
from fusion_train.remote.encoding import open_trained, place_of, unknown_weights

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINED_WEIGHTS = "fusion.safetensors"
"""File with fusion and projectors, named as in EmotionLlama, and the model's `constants`, named `PART.NAME`."""
SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""Fields of a configuration that must agree between the base and the trained model."""


def is_adapter_folder(place: Any) -> bool:
    """Whether a location is a folder of the adapter-only form."""
    return isinstance(place, str | Path) and (Path(place) / TRAINED_WEIGHTS).is_file()


def load_adapter_model(
    model_class: type, folder: Path, base: str | None = None, encoder_weights: Mapping[str, str] | None = None
) -> Any:
    """Load base and encoders that the folder refers to, and the trained parts of the folder.

    Args:
        base: folder or hub id of the base model, if it differs from the name in the configuration.
        encoder_weights: encoder name or modality -> folder or hub id, if it differs from the hub id in its spec.

    Raises:
        WeightsError: a base of another size, missing or unexpected weights, or peft is not installed.
        FingerprintError: base or encoders differ from those of training.
    """
    config = EmotionLlamaConfig.from_pretrained(folder)
    config.auto_map = None
    llm = _with_adapters(open_base(config, base or _base_reference(config)["name"]), folder)
    with torch.device("meta"):
        model = model_class(config)
    model.emotion_llama.llm = llm
    _load_trained(model, folder)
    model.networks = open_networks(config, dict(encoder_weights or {}))
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return align(model).eval()


def _base_reference(config: EmotionLlamaConfig) -> Mapping[str, Any]:
    """Return the reference to the base; a folder of the adapter-only form always has one."""
    assert config.base_reference is not None
    return config.base_reference


def base_files(name: str) -> dict[str, str]:
    """Return name -> sha256 of the weight files of a base model, given as a folder or hub id."""
    return {file: file_sha256(path) for file, path in sorted(Checkpoint(name, "base").files_of().items())}


def open_base(config: EmotionLlamaConfig, name: str) -> nn.Module:
    """Load the base model.

    Raises:
        WeightsError: the base cannot be found or has another size.
        FingerprintError: its weight files differ from those that the adapters were trained on.
    """
    reference = _base_reference(config)
    advice = (
        f'Name the base that it was trained on, "{reference["name"]}", with base=FOLDER (--base on a command line).'
    )
    try:
        base_config = AutoConfig.from_pretrained(name).get_text_config()
    except (OSError, ValueError) as error:
        raise WeightsError(
            f'base "{name}"',
            expected="a folder or a reachable hub id",
            got=" ".join(str(error).split())[:200],
            next_step=advice,
        ) from error
    differing = [key for key in SIZES if getattr(base_config, key, None) != getattr(config.text_config, key, None)]
    if differing:
        expected = ", ".join(f"{key} {getattr(config.text_config, key, None)}" for key in differing)
        got = ", ".join(f"{key} {getattr(base_config, key, None)}" for key in differing)
        raise WeightsError(f'base "{name}"', expected=expected, got=got, next_step=advice)
    files = base_files(name)
    if sorted(files.values()) != sorted(reference["files"].values()):
        raise FingerprintError(
            f'base "{name}"',
            expected="the weights that the adapters were trained on",
            got="others of the same size",
            next_step=advice,
        )
    llm = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, reference["dtype"])).eval()
    llm.generation_config = plain_generation(llm.generation_config)  # the defaults of a call, without beams or sampling
    return llm


def open_networks(config: EmotionLlamaConfig, weights: Mapping[str, str]) -> nn.ModuleDict:
    """Load every encoder of the configuration and check its fingerprint.

    Args:
        weights: encoder name or modality -> folder or hub id, if it differs from the hub id in its spec.

    Raises:
        WeightsError: the location of the weights is unknown, or they are incomplete.
        FingerprintError: another encoder than the one that made the features.
    """
    specs = config.specs
    if problem := unknown_weights(weights, specs):
        name, expected, advice = problem
        raise WeightsError(f'encoder weights of "{name}"', expected=expected, got="another", next_step=advice)
    networks = nn.ModuleDict()
    for modality, spec in specs.items():
        place = place_of(weights, modality, spec)
        if place is None and spec.weights:
            raise WeightsError(
                f"weights of {spec.encoder}",
                expected="the checkpoint that made the features",
                got="no hub id",
                next_step=f'Say where it is with encoder_weights={{"{spec.encoder}": FOLDER}} (--weights on a command '
                "line).",
            )
        encoder = open_trained(spec, place, modality)
        key = config.encoders[modality]["network"]
        if key not in networks:
            networks[key] = required(encoder.network).module
    return networks


def _with_adapters(llm: nn.Module, folder: Path) -> nn.Module:
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise WeightsError(
            str(folder),
            expected="peft, for adapters that are not merged",
            got="none",
            next_step="pip install peft, or export the run with --merge.",
        ) from error
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for checkpointing by a name that it has deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        adapted = PeftModel.from_pretrained(llm, folder)
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    _refuse_other_names(folder / ADAPTER_WEIGHTS, set(load_file(folder / ADAPTER_WEIGHTS)), expected)
    return adapted.requires_grad_(False).eval()


def _load_trained(model: Any, folder: Path) -> None:
    tensors = load_file(folder / TRAINED_WEIGHTS)
    network, constants = model.emotion_llama, model.constants()
    expected = {name for name in network.state_dict() if not name.startswith("llm.")}
    expected |= {f"{part}.{name}" for part, module in constants.items() for name in module.state_dict()}
    _refuse_other_names(folder / TRAINED_WEIGHTS, set(tensors), expected)
    for part, module in constants.items():
        module.load_state_dict({name: tensors.pop(f"{part}.{name}") for name in module.state_dict()}, assign=True)
    network.load_state_dict(tensors, strict=False, assign=True)


def _refuse_other_names(path: Path, names: set[str], expected: set[str]) -> None:
    """Raise WeightsError if the tensors of a file have other names than expected; all are listed."""
    problems = [f"missing: {name}" for name in sorted(expected - names)]
    problems += [f"unexpected: {name}" for name in sorted(names - expected)]
    if problems:
        raise WeightsError(
            path.name,
            expected="every trained weight, and no others",
            got=f"{len(problems)} that differ",
            next_step="Export the run again.",
            problems=problems,
        )
