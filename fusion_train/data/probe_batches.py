"""Batches, classes and answers of the probe, the stage without a language model.

The training loop of the whole model trains a probe too; only batches and model differ.
Shapes: B clips, M modalities, K averaged tokens of width D, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from featurecache.clips.clip_list import Clip, ClipList
from fusion_train.config import Config
from fusion_train.data.answers import LabelSets
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.data.pooled_features import PooledFeatures
from fusion_train.data.samples import Sample, SampleStats
from fusion_train.errors import ConfigError
from fusion_train.models.emotion_llama import fusion_token_count
from fusion_train.models.fusions import build_fusion
from fusion_train.models.host_copies import to_device
from fusion_train.models.probe import Probe
from fusion_train.prompts.prompt import find_task
from fusion_train.remote.probe_classes import Classes
from fusion_train.seeding import derive


@dataclass
class ProbeBatch:
    """The inputs of a forward pass of the probe: `Probe.forward(**batch.tensors())`."""

    features: dict[str, Tensor]
    """Modality -> (B, K, D) float16."""
    present: Tensor
    """(B, M) bool."""
    allowed: Tensor
    """(B, C) bool."""
    targets: Tensor
    """(B,) int64; -1 if the answer is no class, which happens only in evaluation."""
    clip_ids: list[str]
    num_supervised: int
    sample_stats: list[SampleStats]

    @property
    def num_tokens(self) -> int:
        """B · K, summed over the modalities."""
        return sum(tensor.shape[:2].numel() for tensor in self.features.values())

    def tensors(self) -> dict[str, Any]:
        """Return the keyword arguments of `Probe.forward`."""
        return {"features": self.features, "present": self.present, "allowed": self.allowed, "targets": self.targets}

    def to(self, device: torch.device) -> ProbeBatch:
        """Copy to a device, without waiting for the copy."""

        def move(tensor: Tensor) -> Tensor:
            return to_device(tensor, device)

        features = {name: move(tensor) for name, tensor in self.features.items()}
        return replace(
            self, features=features, present=move(self.present), allowed=move(self.allowed), targets=move(self.targets)
        )


class ProbeCollator:
    """Samples -> ProbeBatch; all clips of a split are read when the first of them is in a batch."""

    def __init__(self, reader: FeatureReader, clips: ClipList, classes: Classes, num_tokens: int) -> None:
        self._reader, self.classes = reader, classes
        self._pooled = PooledFeatures(reader, num_tokens)
        self._in_split: dict[str | None, list[str]] = {}
        for clip in clips:
            self._in_split.setdefault(clip.split, []).append(clip.id)
        self._loaded: set[str | None] = set()

    def present(self, clip: Clip, hidden: Sequence[str] = ()) -> list[bool]:
        """Return (M,) which modalities of a clip the model is shown."""
        return self._reader.shown(clip.id, hidden)

    def __call__(self, samples: Sequence[Sample]) -> ProbeBatch:
        """Look up the averaged tokens and the class numbers of the labels."""
        for split in {sample.clip.split for sample in samples} - self._loaded:
            self._pooled.load(self._in_split[split])
            self._loaded.add(split)
        allowed = torch.zeros(len(samples), len(self.classes), dtype=torch.bool)
        targets = torch.full((len(samples),), -1)
        for row, sample in enumerate(samples):
            numbers = self.classes.numbers(sample.clip, sample.task, sample.labels)
            allowed[row, numbers] = True
            if sample.answer in sample.labels:
                targets[row] = numbers[sample.labels.index(sample.answer)]
        present = torch.tensor([self.present(sample.clip, sample.hidden) for sample in samples], dtype=torch.bool)
        clip_ids = [sample.clip.id for sample in samples]
        features = self._pooled.take(clip_ids, present)
        stats = [SampleStats.of(sample, self._reader.presence(sample.clip.id), 1, 1) for sample in samples]
        return ProbeBatch(features, present, allowed, targets, clip_ids, len(samples), stats)

    def probabilities(self, model: Probe, samples: Sequence[Sample]) -> list[list[float]]:
        """Return the probability of every label of each sample's closed set, in its order."""
        device = model.head.weight.device
        batch = self(samples).to(device)
        with torch.inference_mode():
            scores = model.logits(batch.features, batch.present, batch.allowed).softmax(dim=1).cpu()
        return [
            row[self.classes.numbers(sample.clip, sample.task, sample.labels)].tolist()
            for sample, row in zip(samples, scores, strict=True)
        ]


def build_probe(config: Config, reader: FeatureReader, sets: LabelSets, clips: ClipList) -> tuple[Probe, ProbeCollator]:
    """Build the probe, whose initial weights depend only on the seed, and its collator.

    Raises:
        ConfigError: a task without a closed set of labels, or no fusion.
    """
    open_tasks = [name for name in config.data.tasks if find_task(name).answer != "label"]
    if open_tasks:
        raise ConfigError(
            "data.tasks",
            expected="tasks with one label a clip, since there is no language model to answer others",
            got=", ".join(open_tasks),
            next_step="Set model.llm, or data.tasks=[emotion].",
        )
    settings = config.model.fusion
    count = settings.num_tokens or fusion_token_count(reader.shapes)
    classes = Classes(sets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "initial weights"))
        options: Mapping[str, Any] = settings.model_dump(exclude={"name"}) | {"num_tokens": count}
        fusion = build_fusion(settings.name, reader.shapes.fusion_dims(), **options)
        if fusion is None:
            raise ConfigError("model.fusion.name", expected="a fusion, since the probe trains nothing else", got="none")
        probe = Probe(fusion, fusion_width=settings.out_dim, fusion_tokens=count, num_classes=len(classes))
    return probe, ProbeCollator(reader, clips, classes, count)
