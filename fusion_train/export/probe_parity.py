"""Measure an exported probe against the run it was made from, on raw clips.

    A  the trained probe, features from the store
    C  the exported folder in a fresh process without this package: features from the store, then from the raw media

The difference of A and C on the same features is the cost of writing and loading; of C on the store's features and C on
raw media, the cost of encoding again. Questions are chosen as for a run with a language model (`parity`).
Shapes: C classes of the question, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion_train.data.samples import Sample
from fusion_train.errors import DivergedError
from fusion_train.export.parity import divergence, feature_differences, withheld
from fusion_train.run_context import RunContext


@dataclass
class ProbeReference:
    """A's answer to one question."""

    sample: Sample
    labels: list[str]
    """Labels of the question, sorted."""
    classes: list[int]
    """Their class numbers (C,)."""
    present: list[bool]
    """Which modalities the clip has and the question shows (M,)."""
    features: dict[str, Tensor]
    """Modality -> features (1, K, D) from the store."""
    logits: Tensor
    """(C,) float32."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what the fresh process reads."""
        return {f"features.{modality}": tensor.contiguous() for modality, tensor in self.features.items()}


@torch.no_grad()
def probe_references(context: RunContext, samples: Sequence[Sample]) -> list[ProbeReference]:
    """Ask A: the trained probe, on the store's features, clip by clip.

    Raises:
        DivergedError: scores that are not finite.
    """
    context.model.eval()
    references = []
    for sample in samples:
        batch = context.collator([sample]).to(context.device)
        logits = context.model.logits(batch.features, batch.present, batch.allowed)[0].cpu()
        labels = sorted(sample.labels)
        classes = context.collator.classes.numbers(sample.clip, sample.task, labels)
        if not torch.isfinite(logits[classes]).all():
            raise DivergedError(f'clip "{sample.clip.id}"', expected="finite scores", got="NaN or infinity")
        present = context.collator.present(sample.clip, sample.hidden)
        mask = torch.tensor([present])
        features = context.reader.read([sample.clip.id], mask)
        features = {name: torch.where(mask[:, m, None, None], features[name], 0) for m, name in enumerate(features)}
        references.append(ProbeReference(sample, labels, classes, present, features, logits[classes]))
    return references


def compare_probe(reference: ProbeReference, out: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return all measurements of one question; `certificate.judge_probe` compares them with bounds.

    Args:
        out: tensors that `fresh_process.py` wrote.
    """
    cached, raw = (out[f"logits.{kind}"][0][reference.classes] for kind in ("cached", "raw"))
    best, own_best = int(raw.argmax()), int(reference.logits.argmax())
    return {
        "id": reference.sample.clip.id,
        "task": reference.sample.task.name,
        "absent": [name for name, has in zip(reference.features, reference.present, strict=True) if not has],
        "withheld": withheld(reference.sample),
        "stand_ins": {},
        "classes_equal": out["classes"][0].tolist() == reference.classes,
        "present_equal": out["present"][0].tolist() == reference.present,
        "features": feature_differences(reference.features, reference.present, out),
        "reload_logits": float((cached - reference.logits).abs().max()),
        "raw_kl": float(divergence(cached[None], raw[None]).max()),
        "total_kl": float(divergence(reference.logits[None], raw[None]).max()),
        "raw_logits": float((raw - cached).abs().max()),
        "probabilities": float((out["probabilities"][0] - reference.logits.softmax(0)).abs().max()),
        "text_equal": best == own_best,
        "text_margin": float(reference.logits[own_best] - reference.logits[best]),
    }
