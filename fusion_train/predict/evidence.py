"""What the model looked at: how its fusion weighed the modalities, and what it answers without each of them.

Shapes: K tokens of the fusion, M modalities in use, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fusion_train.predict.opening import OpenedModel
from fusion_train.remote.processing_emotion_llama import ClipInputs


@dataclass(frozen=True)
class AudioTiming:
    """How audio tokens divide the time of a clip."""

    sampling_rate: int
    tokens: int
    window_s: float
    """Duration of one token."""

    def num_filled(self, num_samples: int) -> int:
        """Tokens in which the clip sounds, the last perhaps in part."""
        return min(self.tokens, math.ceil(num_samples / self.sampling_rate / self.window_s - 1e-9))


@dataclass(frozen=True)
class Evidence:
    """Of one clip."""

    views: Mapping[str, np.ndarray]
    """Modality -> the frames (F, H, W, 3) uint8 or the waveform (S,) float32 that its encoder was given."""
    weights: Mapping[str, np.ndarray] | None
    """Modality -> weight (K,) in the fusion's attention branch; None for a fusion without one."""
    without: Mapping[str, Mapping[str, float]]
    """Modality -> label -> probability where the clip is asked as if it did not have the modality."""

    sound: AudioTiming | None
    num_tokens: int
    """K of the fusion."""

    def drops(self, probabilities: Mapping[str, float], label: str) -> dict[str, float]:
        """Modality -> how much less probable `label` becomes without it; negative where it becomes more so."""
        return {modality: probabilities[label] - row[label] for modality, row in self.without.items()}


def gather_evidence(
    opened: OpenedModel,
    clips: Sequence[ClipInputs],
    prompt: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    labels: Sequence[str],
) -> list[Evidence]:
    """Evidence of every clip of a batch; features are encoded already.

    Args:
        labels: the closed set; empty for an open question, of which no probability can drop.
    """
    model = opened.model
    weights = model.modality_weights(features, prompt["present"])  # [b, k, m]
    modalities = list(opened.processor.encoders)
    without: list[dict[str, dict[str, float]]] = [{} for _ in clips]
    for modality in modalities if labels else ():
        shown = [row for row, clip in enumerate(clips) if modality in clip.inputs]
        if not shown:
            continue
        fewer = model.leave_out(modality, **prompt)
        rows = model.label_probabilities(opened.processor.label_ids(labels), **fewer, features=features).tolist()
        for row in shown:
            if all(map(math.isfinite, rows[row])):
                without[row][modality] = dict(zip(labels, rows[row], strict=True))
    return [
        Evidence(
            clip.views,
            _by_modality(weights, row, modalities, clip),
            without[row],
            _sound(opened, clip),
            model.emotion_llama.fusion_tokens,
        )
        for row, clip in enumerate(clips)
    ]


def _sound(opened: OpenedModel, clip: ClipInputs) -> AudioTiming | None:
    """The audio encoder averages over all it takes, padding included, or over the clip's own time."""
    if "audio" not in clip.views:
        return None
    spec = opened.model.config.specs["audio"]
    rate, capacity = spec.preprocessing["sampling_rate"], spec.preprocessing["samples"]
    samples = min(len(clip.views["audio"]), capacity) if "audio" in clip.valid else capacity
    return AudioTiming(rate, spec.shape[0], samples / rate / spec.shape[0])


def _by_modality(
    weights: Tensor | None, row: int, modalities: Sequence[str], clip: ClipInputs
) -> dict[str, np.ndarray] | None:
    """Weights of the modalities that the clip has: those of absent ones multiply zeros."""
    if weights is None or not clip.inputs:
        return None
    values = weights[row].float().cpu().numpy()  # [k, m]
    return {modality: values[:, m] for m, modality in enumerate(modalities) if modality in clip.inputs}
