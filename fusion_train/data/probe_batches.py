"""Batches, classes and answers of the probe, the stage without a language model.

The training loop of the whole model trains a probe too; only batches and model differ.
Shapes: B clips, M modalities, K averaged tokens of width D, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.clip_rows import SCORE_SUFFIX
from fusion_train.config import Config
from fusion_train.data.answers import LabelSets
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.data.pooled_features import PooledFeatures
from fusion_train.data.samples import Sample, SampleStats
from fusion_train.errors import ConfigError, DataError
from fusion_train.models.emotion_llama import fusion_token_count
from fusion_train.models.fusions import build_fusion
from fusion_train.models.host_copies import to_device
from fusion_train.models.probe import NumberTargets, Probe
from fusion_train.prompts.prompt import Task, find_task
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
    numbers: NumberTargets | None = None
    """None if every clip is asked for a label."""

    @property
    def num_tokens(self) -> int:
        """B · K, summed over the modalities."""
        return sum(tensor.shape[:2].numel() for tensor in self.features.values())

    def tensors(self) -> dict[str, Any]:
        """Return the keyword arguments of `Probe.forward`."""
        return {
            "features": self.features,
            "present": self.present,
            "allowed": self.allowed,
            "targets": self.targets,
        } | ({} if self.numbers is None else {"numbers": self.numbers})

    def to(self, device: torch.device) -> ProbeBatch:
        """Copy to a device, without waiting for the copy."""

        def move(tensor: Tensor) -> Tensor:
            return to_device(tensor, device)

        return replace(
            self,
            features={name: move(tensor) for name, tensor in self.features.items()},
            present=move(self.present),
            allowed=move(self.allowed),
            targets=move(self.targets),
            numbers=self.numbers
            and NumberTargets(**{name: move(tensor) for name, tensor in self.numbers.tensors().items()}),
        )


class NumberOutputs:
    """The output of the head for every number of every dataset, such as the valence of one dataset."""

    def __init__(self, sets: LabelSets) -> None:
        """Number the outputs; `sets`: dataset -> label task, of which those that end in `_score` are numbers."""
        keys = [
            (dataset, key) for dataset in sorted(sets) for key in sorted(sets[dataset]) if key.endswith(SCORE_SUFFIX)
        ]
        self._number = {key: number for number, key in enumerate(keys)}

    def __len__(self) -> int:
        return len(self._number)

    def knows(self, clip: Clip, task: Task) -> bool:
        """Whether clips of this dataset had the number in training."""
        return (clip.dataset or "", task.key) in self._number

    def number(self, clip: Clip, task: Task) -> int:
        """Return the output of a task for clips of this dataset.

        Raises:
            DataError: no training clip of the dataset had the number.
        """
        if not self.knows(clip, task):
            known = sorted({dataset for dataset, key in self._number if key == task.key})
            raise DataError(
                clip.id,
                expected=f"a dataset whose {task.key} was trained on: {', '.join(known) or 'none'}",
                got=f"{clip.dataset!r}",
            )
        return self._number[clip.dataset or "", task.key]

    def scales(self, clips: ClipList, split: str) -> tuple[tuple[float, float], ...]:
        """Return mean and standard deviation of every number over the clips of a split; 0 and 1 without clips."""
        if not self._number:
            return ()
        values: dict[tuple[str, str], list[float]] = {key: [] for key in self._number}
        for clip in clips:
            for dataset, key in self._number if clip.split == split else ():
                if (clip.dataset or "") == dataset and clip.labels.get(key) is not None:
                    values[dataset, key].append(float(clip.labels[key]))
        return tuple(
            (float(np.mean(numbers)), float(np.std(numbers)) or 1.0) if numbers else (0.0, 1.0)
            for numbers in values.values()
        )


class ProbeCollator:
    """Samples -> ProbeBatch; all clips of a split are read when the first of them is in a batch."""

    def __init__(
        self,
        reader: FeatureReader,
        clips: ClipList,
        classes: Classes,
        num_tokens: int,
        *,
        numbers: NumberOutputs | None = None,
        by_speaker: bool = False,
    ) -> None:
        """Args:
        numbers: outputs for labels that are numbers; None: there are none.
        by_speaker: normalise the clips of each speaker and split by their own mean and standard deviation.
        """
        self._reader, self.classes, self._by_speaker = reader, classes, by_speaker
        self.number_outputs = numbers or NumberOutputs({})
        self._pooled = PooledFeatures(reader, num_tokens)
        self._in_split: dict[str | None, list[Clip]] = {}
        for clip in clips:
            self._in_split.setdefault(clip.split, []).append(clip)
        self._loaded: set[str | None] = set()

    def present(self, clip: Clip, hidden: Sequence[str] = ()) -> list[bool]:
        """Return (M,) which modalities of a clip the model is shown."""
        return self._reader.shown(clip.id, hidden)

    def __call__(self, samples: Sequence[Sample]) -> ProbeBatch:
        """Look up the averaged tokens and the class numbers of the labels."""
        self._load({sample.clip.split for sample in samples})
        allowed = torch.zeros(len(samples), len(self.classes), dtype=torch.bool)
        targets = torch.full((len(samples),), -1)
        number_rows = [row for row, sample in enumerate(samples) if sample.task.answer == "number"]
        for row, sample in enumerate(samples):
            if sample.task.answer == "number":
                continue
            numbers = self.classes.numbers(sample.clip, sample.task, sample.labels)
            allowed[row, numbers] = True
            if sample.answer in sample.labels:
                targets[row] = numbers[sample.labels.index(sample.answer)]
        present = torch.tensor([self.present(sample.clip, sample.hidden) for sample in samples], dtype=torch.bool)
        clip_ids = [sample.clip.id for sample in samples]
        features = self._pooled.take(clip_ids, present)
        stats = [SampleStats.of(sample, self._reader.presence(sample.clip.id), 1, 1) for sample in samples]
        return ProbeBatch(
            features,
            present,
            allowed,
            targets,
            clip_ids,
            len(samples),
            stats,
            self._number_targets(samples, number_rows) if number_rows else None,
        )

    def _number_targets(self, samples: Sequence[Sample], rows: Sequence[int]) -> NumberTargets:
        asked = set(rows)
        return NumberTargets(
            torch.tensor([row for row in range(len(samples)) if row not in asked], dtype=torch.int64),
            torch.tensor(rows),
            torch.tensor([self.number_outputs.number(samples[row].clip, samples[row].task) for row in rows]),
            torch.tensor([float(samples[row].answer) for row in rows], dtype=torch.float32),
        )

    def numbers(self, model: Probe, samples: Sequence[Sample]) -> list[float]:
        """Return the number of each sample, in the unit of its label."""
        device = model.head.weight.device
        batch = self([replace(sample, answer=sample.answer or "0") for sample in samples]).to(device)
        assert batch.numbers is not None
        with torch.inference_mode():
            return model.numbers(batch.features, batch.present, batch.numbers.outputs).tolist()

    def fit_normalisation(self, model: Probe, clips: Sequence[Clip]) -> None:
        """Give the model the means and standard deviations of the features of the training clips."""
        if model.normalisation is not None:
            self._load({clip.split for clip in clips})
            model.normalisation.fit(self._pooled.of([clip.id for clip in clips]))

    def _load(self, splits: set[str | None]) -> None:
        for split in splits - self._loaded:
            clips = self._in_split[split]
            self._pooled.load([clip.id for clip in clips])
            if self._by_speaker:
                self._pooled.normalise(_by_speaker(clips))
            self._loaded.add(split)

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


def _by_speaker(clips: Sequence[Clip]) -> list[list[str]]:
    """Return the clip ids of each speaker.

    Raises:
        DataError: clips without a speaker; all are named.
    """
    unnamed = [clip.id for clip in clips if not clip.speaker]
    if unnamed:
        raise DataError(
            "features.normalise: speaker",
            expected="a speaker for every clip",
            got=f"none for {len(unnamed)} of {len(clips)}",
            next_step="Add speakers to the clip list, or set features.normalise=training. Clips:",
            problems=unnamed,
        )
    groups: dict[tuple[str | None, str | None], list[str]] = {}
    for clip in clips:
        groups.setdefault((clip.dataset, clip.speaker), []).append(clip.id)
    return list(groups.values())


def build_probe(config: Config, reader: FeatureReader, sets: LabelSets, clips: ClipList) -> tuple[Probe, ProbeCollator]:
    """Build the probe, whose initial weights depend only on the seed, and its collator.

    Raises:
        ConfigError: a task without a closed set of labels, or no fusion.
    """
    open_tasks = [name for name in config.data.tasks if find_task(name).answer not in ("label", "number")]
    if open_tasks:
        raise ConfigError(
            "data.tasks",
            expected="tasks with one label a clip or one number, since there is no language model to answer others",
            got=", ".join(open_tasks),
            next_step="Set model.llm, or data.tasks=[emotion].",
        )
    settings = config.model.fusion
    count = settings.num_tokens or fusion_token_count(reader.shapes)
    classes, numbers = Classes(sets), NumberOutputs(sets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "initial weights"))
        options: Mapping[str, Any] = settings.model_dump(exclude={"name"}) | {"num_tokens": count}
        fusion = build_fusion(settings.name, reader.shapes.fusion_dims(), **options)
        if fusion is None:
            raise ConfigError("model.fusion.name", expected="a fusion, since the probe trains nothing else", got="none")
        probe = Probe(
            fusion,
            fusion_width=settings.out_dim,
            fusion_tokens=count,
            num_classes=len(classes),
            normalised=reader.shapes.widths if config.features.normalise == "training" else None,
            number_scales=numbers.scales(clips, config.data.train_split),
            number_loss=config.model.number_loss,
        )
    by_speaker = config.features.normalise == "speaker"
    return probe, ProbeCollator(reader, clips, classes, count, numbers=numbers, by_speaker=by_speaker)
