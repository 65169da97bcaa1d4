"""Configuration of an exported model: the language model's own, and everything that decides features and prompt.

It holds no path. The spec of every encoder stands in it whole, so a loaded model can prove what it computes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from featurecache.spec import Spec
from fusion_train.models.token_streams import FeatureShapes


class EmotionLlamaConfig(PreTrainedConfig):
    """Language model, encoders, fusion, prompt and label sets of one run."""

    model_type = "emotion_llama"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  (transformers reads it from the class)

    def __init__(
        self,
        text_config: Mapping[str, Any] | PreTrainedConfig | None = None,
        encoders: Mapping[str, Any] | None = None,
        networks: Mapping[str, Any] | None = None,
        shapes: Mapping[str, Any] | None = None,
        fusion: Mapping[str, Any] | None = None,
        prompt: Mapping[str, Any] | None = None,
        label_sets: Mapping[str, Any] | None = None,
        stage: str | None = None,
        tasks: Sequence[str] = (),
        base_reference: Mapping[str, Any] | None = None,
        recall: Mapping[str, Any] | None = None,
        absent: str = "hidden",
        answers_in_batches: bool = True,
        **kwargs: Any,
    ) -> None:
        """Keep what an export wrote.

        Args:
            text_config: of the language model.
            encoders: modality -> {"spec": Spec.to_json as a mapping, "network": key of `networks`}.
            networks: key -> the settings from which an encoder's network is built.
            shapes: modality -> [K, D] or None.
            fusion: {"name": …, "options": {…}}.
            prompt: the fields of PromptFormat.
            label_sets: dataset -> label task -> labels.
            stage: of training.
            tasks: that it was trained on.
            base_reference: of the adapter-only form: {"name": …, "files": {name: sha256}, "dtype": …} of the base.
            recall: settings of the `Recall` over its training clips; None where it was trained without.
            answers_in_batches: whether prompts padded on the left, and labels that continue a cache, mean the same;
                False for recurrent layers and the like, whose prompts are answered one by one.
            absent: hidden, or visible: `AbsentConstants` are seen in place of a modality that a clip lacks.
        """
        if isinstance(text_config, Mapping):
            values = dict(text_config)
            text_config = CONFIG_MAPPING[values.pop("model_type")](**values)
        self.text_config = text_config
        self.encoders = dict(encoders or {})
        self.networks = dict(networks or {})
        self.shapes = dict(shapes or {})
        self.fusion = dict(fusion or {})
        self.prompt = dict(prompt or {})
        self.label_sets = dict(label_sets or {})
        self.stage = stage
        self.tasks = list(tasks)
        self.base_reference = None if base_reference is None else dict(base_reference)
        self.recall = dict(recall) if recall else None
        self.absent = absent
        self.answers_in_batches = answers_in_batches
        super().__init__(**kwargs)

    @property
    def feature_shapes(self) -> FeatureShapes:
        """The shapes as the model takes them."""
        return read_shapes(self.shapes)

    @property
    def specs(self) -> dict[str, Spec]:
        """Modality -> spec of the feature it was trained on."""
        return {modality: read_spec(entry["spec"]) for modality, entry in self.encoders.items()}


def read_shapes(shapes: Mapping[str, Any]) -> FeatureShapes:
    """JSON -> FeatureShapes."""
    return FeatureShapes(**{name: None if shape is None else tuple(shape) for name, shape in shapes.items()})


def read_spec(document: Mapping[str, Any]) -> Spec:
    """The mapping that `Spec.to_json` writes -> Spec; its fingerprint must belong to its fields.

    Raises:
        SpecError: it does not.
    """
    return Spec.from_json(json.dumps(document), f"encoder {document.get('encoder')}")


CERTIFICATE = "certificate.json"


def parity_notice(folder: Any) -> str | None:
    """Return one sentence that names the bounds which did not hold; None where all did, or there is no certificate."""
    path = Path(str(folder)) / CERTIFICATE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        passed, figures = document.get("passed"), document.get("figures")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if passed is True:
        return None
    listed = figures if isinstance(figures, list) else []
    failed = [str(one.get("name")) for one in listed if isinstance(one, dict) and one.get("passed") is not True]
    named = ": " + "; ".join(failed) if failed else ""
    return (
        f"{folder}: this model did not pass its own check: it does not compute what was trained{named}. "
        "See CERTIFICATE.md in the folder; export the run again before using its answers."
    )
