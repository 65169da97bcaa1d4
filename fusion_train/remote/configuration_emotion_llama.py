"""Configuration of an exported model: language model, encoders, fusion, prompt and labels; and its parity notice.

The configuration holds no path. It contains the whole spec of every encoder, so a loaded model can prove what it
computes. `parity_notice` warns of an exported folder whose certificate records a failed bound. The code in an exported
folder runs it without this package, so it checks nothing else of the certificate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from featurecache.spec import Spec
from fusion_train.models.token_streams import FeatureShapes

CERTIFICATE = "certificate.json"
"""Name of the certificate in an exported folder."""


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
        scores_in_rows: bool = False,
        **kwargs: Any,
    ) -> None:
        """Store the fields that an export wrote.

        Args:
            text_config: configuration of the language model.
            encoders: modality -> {"spec": Spec.to_json as a mapping, "network": key of `networks`}; for an encoder of
                another package also "package": name==version, "required": whether it is imported and not copied.
            networks: key -> settings from which the network of an encoder is built.
            shapes: modality -> [K, D] or None.
            fusion: {"name": …, "options": {…}}.
            prompt: fields of PromptFormat.
            label_sets: dataset -> label task -> labels.
            stage: stage of training.
            tasks: tasks that the model was trained on.
            base_reference: base of the adapter-only form: {"name": …, "files": {name: sha256}, "dtype": …}.
            recall: settings of the `Recall` over the training clips; None for a model without retrieval.
            scores_in_rows: whether labels are scored as segments behind one prompt, as the run scores them; False for
                folders of earlier releases.
            answers_in_batches: whether prompts padded on the left, and labels that continue a cache, give the same
                answers as single prompts; False for models such as recurrent ones, which answer one by one.
            absent: "hidden", or "visible": the model sees `AbsentConstants` in place of an absent modality.
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
        self.scores_in_rows = scores_in_rows
        super().__init__(**kwargs)

    @property
    def feature_shapes(self) -> FeatureShapes:
        """Return the feature shapes of every modality."""
        return read_shapes(self.shapes)

    @property
    def specs(self) -> dict[str, Spec]:
        """Return modality -> spec of the feature that the model was trained on."""
        return {modality: read_spec(entry["spec"]) for modality, entry in self.encoders.items()}


def read_shapes(shapes: Mapping[str, Any]) -> FeatureShapes:
    """Return the FeatureShapes of their JSON form."""
    return FeatureShapes(**{name: None if shape is None else tuple(shape) for name, shape in shapes.items()})


def read_spec(document: Mapping[str, Any]) -> Spec:
    """Return the spec of a mapping that `Spec.to_json` wrote.

    Raises:
        SpecError: the fingerprint does not belong to the fields.
    """
    return Spec.from_json(json.dumps(document), f"encoder {document.get('encoder')}")


def parity_notice(folder: Any) -> str | None:
    """Return one sentence that names the failed bounds; None if all hold or there is no certificate."""
    path = Path(str(folder)) / CERTIFICATE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        passed, figures = document.get("passed"), document.get("figures")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if passed is True:
        return None
    listed = figures if isinstance(figures, list) else []
    failed = [str(check.get("name")) for check in listed if isinstance(check, dict) and check.get("passed") is not True]
    named = ": " + "; ".join(failed) if failed else ""
    return (
        f"{folder}: this model did not pass its parity check: it does not compute what was trained{named}. "
        "See CERTIFICATE.md in the folder; export the run again before using its answers."
    )
