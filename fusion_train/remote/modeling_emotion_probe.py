"""An exported probe: encoders, fusion and a linear head in one, from raw clips to label probabilities.

    processor(video="clip.mp4", task="emotion")
        -> present (B, M), classes (B, L), input_features, image_frames, video_frames,
           text_tokens as of an exported model
        -> label_probabilities: (B, L) · forward: logits (B, C)

Encoders stay frozen and in evaluation mode. The head computes in float32, on the averages of tokens that it was trained
on (`token_averages`), which are computed on the CPU as in training.
Shapes: B clips, M modalities in use, L labels of the question, C classes of all closed sets, K tokens of width D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from fusion_train.models.fusion_inputs import fusion_inputs
from fusion_train.models.probe import Probe
from fusion_train.models.token_averages import token_average
from fusion_train.remote.chosen_fusion import chosen_fusion
from fusion_train.remote.configuration_emotion_probe import EmotionProbeConfig
from fusion_train.remote.exported_model import ExportedModel, empty_networks
from fusion_train.remote.probe_classes import Classes


class EmotionProbe(ExportedModel):
    """Frozen encoders, a fusion and a linear head."""

    config_class = EmotionProbeConfig
    main_input_name = "present"
    input_modalities = ("audio", "image", "video", "text")  # type: ignore[assignment]  # any sequence will do
    _keep_in_fp32_modules_strict = ["probe"]  # noqa: RUF012

    def __init__(self, config: EmotionProbeConfig) -> None:
        super().__init__(config)
        options = config.fusion["options"]
        fusion = chosen_fusion(config.fusion["name"], config.feature_shapes.fusion_dims(), **options)
        assert fusion is not None  # a probe has one
        self.probe = Probe(
            fusion,
            fusion_width=options["out_dim"],
            fusion_tokens=config.fusion["tokens"],
            num_classes=len(Classes(config.label_sets)),
            normalised=config.feature_shapes.widths if config.fusion.get("normalised") else None,
        )
        self.networks = empty_networks(config.encoders, config.networks)
        self._specs = config.specs
        self.post_init()

    @property
    def fusion_tokens(self) -> int:
        """The number of tokens of the fusion."""
        return self.probe.fusion_tokens

    def forward(
        self,
        present: Tensor,
        classes: Tensor | None = None,
        input_features: Tensor | None = None,
        image_frames: Tensor | None = None,
        video_frames: Tensor | None = None,
        text_tokens: Tensor | None = None,
        valid: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits (B, C): minus infinity for classes that are not among `classes` (B, L), if these are given.

        Args:
            features: modality -> features (B, K, D) from a store; replaces the raw inputs.
        """
        features = features or self.encode(
            present,
            valid,
            input_features=input_features,
            image_frames=image_frames,
            video_frames=video_frames,
            text_tokens=text_tokens,
        )
        num_classes = self.probe.head.out_features
        allowed = torch.ones(len(present), num_classes, dtype=torch.bool, device=present.device)
        if classes is not None:
            allowed = torch.zeros_like(allowed).scatter(1, classes, True)
        return SequenceClassifierOutput(logits=self.probe.logits(self.averages(features), present, allowed))

    def averages(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return modality -> the averages (B, K, D) float16 that the fusion reads."""
        return {
            modality: token_average(modality, tokens, self.fusion_tokens).to(tokens.device)
            for modality, tokens in features.items()
        }

    @torch.inference_mode()
    def label_probabilities(
        self, present: Tensor, classes: Tensor, features: Mapping[str, Tensor] | None = None, **inputs: Tensor | None
    ) -> Tensor:
        """Return the probability of every label of the question, (B, L) float32, in the order of `classes`."""
        logits = self(present, classes, features=features, **inputs).logits
        return logits.softmax(dim=1).gather(1, classes)

    @torch.inference_mode()
    def modality_weights(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor | None:
        """Return weights (B, K or 1, M) of the attention branch of the fusion, in the order of `present`; None without
        one."""
        weights: Any = getattr(self.probe.fusion, "modality_weights", None)
        if weights is None:
            return None
        shown = self.probe.shown(self.averages(features), present)
        return weights(fusion_inputs(shown, self.fusion_tokens), present)

    def leave_out(self, modality: str, present: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Return the question as if the clips did not have `modality`; features stay as they are."""
        reduced = present.clone()
        reduced[:, list(self._specs).index(modality)] = False
        return {"present": reduced, "classes": classes}
