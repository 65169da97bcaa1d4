"""Gather evidence for an answer: the modality weights of the fusion, and the answer without each modality.

Shapes: K tokens of the fusion, M modalities in use, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from featurecache.views import AudioView
from fusion_train.predict.opening import OpenedModel
from fusion_train.remote.clip_processor import ClipInputs


@dataclass(frozen=True)
class AudioTiming:
    """Division of a clip's time into audio tokens."""

    sampling_rate: int
    tokens: int
    """Number of audio tokens."""
    window_s: float
    """Duration of one token."""

    def num_filled(self, num_samples: int) -> int:
        """Return the number of tokens that contain sound of a clip of this length; the last may be partly filled."""
        return min(self.tokens, math.ceil(num_samples / self.sampling_rate / self.window_s - 1e-9))


@dataclass(frozen=True)
class Evidence:
    """Evidence for the answer about one clip."""

    views: Mapping[str, np.ndarray]
    """Modality -> frames (F, H, W, 3) uint8 or waveform (S,) float32 that its encoder received."""
    weights: Mapping[str, np.ndarray] | None
    """Modality -> weights (K,) in the attention branch of the fusion; None for a fusion without one."""
    without: Mapping[str, Mapping[str, float]]
    """Modality -> label -> probability if the modality is left out."""

    sound: AudioTiming | None
    """None for a clip without sound."""
    num_tokens: int
    """Number K of fusion tokens."""

    def drops(self, probabilities: Mapping[str, float], label: str) -> dict[str, float]:
        """Return modality -> decrease of the probability of `label` without it; negative for an increase."""
        return {modality: probabilities[label] - row[label] for modality, row in self.without.items()}


def gather_evidence(
    opened: OpenedModel,
    clips: Sequence[ClipInputs],
    prompt: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    labels: Sequence[str],
) -> list[Evidence]:
    """Return the evidence for every clip of a batch.

    Args:
        prompt: tensors of the batch that no encoder reads: `present`, and the prompt or the classes.
        features: modality -> encoded features of the batch.
        labels: the closed set; empty for an open question, which has no probabilities to compare.
    """
    model = opened.model
    weights = model.modality_weights(features, prompt["present"])  # [b, k, m]
    modalities = list(opened.processor.encoders)
    without: list[dict[str, dict[str, float]]] = [{} for _ in clips]
    for modality in modalities if labels else ():
        rows_with_modality = [row for row, clip in enumerate(clips) if modality in clip.inputs]
        if not rows_with_modality:
            continue
        reduced = model.leave_out(modality, **prompt)
        label_inputs = reduced | opened.processor.label_inputs(labels)
        rows = model.label_probabilities(**label_inputs, features=features).tolist()
        for row in rows_with_modality:
            if all(map(math.isfinite, rows[row])):
                without[row][modality] = dict(zip(labels, rows[row], strict=True))
    return [
        Evidence(
            clip.views,
            _weights_by_modality(weights, row, modalities, clip),
            without[row],
            _audio_timing(opened, clip),
            model.fusion_tokens,
        )
        for row, clip in enumerate(clips)
    ]


def _audio_timing(opened: OpenedModel, clip: ClipInputs) -> AudioTiming | None:
    """Return how audio tokens divide the clip's time; None without sound.

    The encoder averages over its whole input, padding included, or over the clip's own duration (`valid`).
    """
    if "audio" not in clip.views:
        return None
    encoder = opened.model.encoders()["audio"]
    view, num_tokens = encoder.view, encoder.shape[0]
    assert isinstance(view, AudioView)
    capacity = round(view.max_duration_s * view.sampling_rate)
    samples = min(len(clip.views["audio"]), capacity) if "audio" in clip.valid else capacity
    return AudioTiming(view.sampling_rate, num_tokens, samples / view.sampling_rate / num_tokens)


def _weights_by_modality(
    weights: Tensor | None, row: int, modalities: Sequence[str], clip: ClipInputs
) -> dict[str, np.ndarray] | None:
    """Return the weights of the modalities that the clip has; the weights of absent modalities multiply zeros."""
    if weights is None or not clip.inputs:
        return None
    values = weights[row].float().cpu().numpy()  # [k, m]
    return {modality: values[:, m] for m, modality in enumerate(modalities) if modality in clip.inputs}
