"""Open an exported folder: check that it is complete and unchanged since its certificate, load it onto a device.

The code of this release runs, not the copy in the folder, so no code of a downloaded folder is executed.
`AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True)` runs the copy instead.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig

from featurecache.encoders import registered
from featurecache.encoders.network import resolve_device
from fusion_train.errors import ExportError
from fusion_train.llm.loading import loading_weights
from fusion_train.remote.configuration_emotion_probe import EmotionProbeConfig
from fusion_train.remote.integrity import read_certificate, refuse_changed_files
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM
from fusion_train.remote.modeling_emotion_probe import EmotionProbe
from fusion_train.remote.processing_emotion_llama import EmotionLlamaProcessor
from fusion_train.remote.processing_emotion_probe import EmotionProbeProcessor


@dataclass(frozen=True)
class Card:
    """What the model card of a folder (README.md) says at its beginning."""

    title: str
    summary: str
    """Its first paragraph; empty if there is none."""


@dataclass(frozen=True)
class OpenedModel:
    """An exported model, ready to answer."""

    model: Any
    """An `EmotionLlamaForCausalLM`, or an `EmotionProbe` without a language model."""
    processor: Any
    """An `EmotionLlamaProcessor` or an `EmotionProbeProcessor`."""
    name: str
    identity: str
    """Hash of all files of the folder, 16 hex digits; every answer carries it."""
    card: Card
    load_s: float
    """Seconds that opening took."""

    @property
    def answers_in_text(self) -> bool:
        """Whether there is a language model; a probe has labels and probabilities only."""
        return isinstance(self.model, EmotionLlamaForCausalLM)

    @property
    def device(self) -> torch.device:
        return self.model.device


def open_model(
    folder: Path, device: str = "auto", base: str | None = None, encoder_weights: Mapping[str, str] | None = None
) -> OpenedModel:
    """Open an exported folder.

    Args:
        device: auto, cpu, cuda or cuda:N.
        base, encoder_weights: paths or hub ids of base model and encoders for an adapter-only folder, if they are not
            found by their hub names.

    Raises:
        ExportError: no exported folder, or files that differ from those of its certificate.
        WeightsError: weights that do not fit the configuration.
        EncoderError: no such device.
    """
    began = time.perf_counter()
    certificate = read_certificate(folder)
    refuse_changed_files(folder, certificate)
    refuse_missing_encoders(folder)
    target = resolve_device(device)
    try:
        with loading_weights("exported model", folder):
            if is_probe(folder):
                model = EmotionProbe.from_pretrained(folder)
            else:
                model = EmotionLlamaForCausalLM.from_pretrained(folder, base=base, encoder_weights=encoder_weights)
            model = model.to(target).eval()
        processor = open_processor(folder, model.config)
    except (OSError, ValueError, SafetensorError) as error:
        raise ExportError(
            str(folder),
            expected="an exported model that this release reads",
            got=" ".join(str(error).split())[:300],
            next_step="Export the run again.",
        ) from error
    files = json.dumps(certificate["files"], sort_keys=True).encode()
    identity = hashlib.sha256(files).hexdigest()[:16]
    name = certificate["run"]["name"]
    return OpenedModel(model, processor, name, identity, read_card(folder, name), time.perf_counter() - began)


def read_card(folder: Path, name: str) -> Card:
    """Return the first heading and the first paragraph of README.md; `name` is the title if there is no heading."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n|(?<=\n)(?=#)", body) if block.strip()]
    title = next((block.lstrip("# ") for block in blocks if block.startswith("# ")), name)
    summary = next((block for block in blocks if block[0] not in "#|<`![-"), "")
    return Card(_unescaped(title) or name, _unescaped(summary))


def _unescaped(markdown: str) -> str:
    """Remove the backslashes of escaped characters in Markdown."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)


def refuse_missing_encoders(folder: Path) -> None:
    """Raise ExportError if an encoder of another package is not installed here; its copy in the folder is not run."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    installed = registered()
    missing = {
        entry["spec"]["encoder"]: entry["package"]
        for entry in config.get("encoders", {}).values()
        if "package" in entry and entry["spec"]["encoder"] not in installed
    }
    if missing:
        raise ExportError(
            str(folder),
            expected="its encoders to be installed: " + ", ".join(missing),
            got="none of these names",
            next_step=f"pip install {' '.join(sorted(set(missing.values())))}; or load the folder in Python with "
            "trust_remote_code=True, which runs its own copy if it has one.",
        )


def is_probe(folder: Path) -> bool:
    """Whether an exported folder holds a probe, by its configuration."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("model_type") == EmotionProbeConfig.model_type


def open_processor(folder: Path, config: PreTrainedConfig) -> EmotionLlamaProcessor | EmotionProbeProcessor:
    """Load the processor without the folder's own code, which `from_pretrained` of its class would run."""
    if isinstance(config, EmotionProbeConfig):
        settings, _ = EmotionProbeProcessor.get_processor_dict(folder)
        return EmotionProbeProcessor(**settings)
    settings, _ = EmotionLlamaProcessor.get_processor_dict(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    return EmotionLlamaProcessor(tokenizer, **settings)
