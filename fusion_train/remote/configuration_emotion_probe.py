"""Configuration of an exported probe: encoders, fusion and labels, without a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from featurecache.spec import Spec
from fusion_train.models.token_streams import FeatureShapes
from fusion_train.remote.configuration_emotion_llama import read_shapes, read_spec


class EmotionProbeConfig(PreTrainedConfig):
    """Encoders, fusion and label sets of one probe."""

    model_type = "emotion_probe"
    answers_in_batches = True

    def __init__(
        self,
        encoders: Mapping[str, Any] | None = None,
        networks: Mapping[str, Any] | None = None,
        shapes: Mapping[str, Any] | None = None,
        fusion: Mapping[str, Any] | None = None,
        label_sets: Mapping[str, Any] | None = None,
        stage: str | None = None,
        tasks: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        """Store the fields that an export wrote; all are as in `EmotionLlamaConfig`.

        Args:
            label_sets: also decides the class numbers (`probe_classes`).
        """
        self.encoders = dict(encoders or {})
        self.networks = dict(networks or {})
        self.shapes = dict(shapes or {})
        self.fusion = dict(fusion or {})
        self.label_sets = dict(label_sets or {})
        self.stage = stage
        self.tasks = list(tasks)
        super().__init__(**kwargs)

    @property
    def feature_shapes(self) -> FeatureShapes:
        """Return the feature shapes of every modality."""
        return read_shapes(self.shapes)

    @property
    def specs(self) -> dict[str, Spec]:
        """Return modality -> spec of the feature that the probe was trained on."""
        return {modality: read_spec(entry["spec"]) for modality, entry in self.encoders.items()}
