"""Answers of the linear baseline to the questions of a probe, from the clips that the probe is trained on.

Shapes: N clips, K averages of width D per modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featurecache.clips.clip_list import Clip
from featurecache.outside_text import first_ids
from fusion_train.data.answers import answer_of
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.data.halves import clusters_in, clusters_of
from fusion_train.data.pooled_features import PooledFeatures
from fusion_train.errors import DataError
from fusion_train.evaluation.linear_baseline import linear_baseline
from fusion_train.prompts.prompt import Task, find_task
from fusion_train.run_context import RunContext

NUM_TOKENS = 8
"""Averaged tokens of a clip that the baseline reads; each is a column of its own."""
MAX_VALUES = 1 << 27
"""With more values than this, the baseline reads one average per modality: 1 GiB in float64."""


@dataclass(frozen=True)
class BaselineInputs:
    """Averaged tokens and labels of N clips."""

    clip_ids: tuple[str, ...]
    labels: Mapping[str, str]
    groups: Mapping[str, str]
    """Clip id -> speaker or dialogue, which the inner folds of the baseline keep together."""
    tokens: Mapping[str, np.ndarray]
    """Modality -> (N, K, D) float16, zero where a clip lacks the modality."""
    present: Mapping[str, np.ndarray]
    """Modality -> (N,) bool."""

    @classmethod
    def read(
        cls, reader: FeatureReader, labels: Mapping[str, str], groups: Mapping[str, str], num_tokens: int = NUM_TOKENS
    ) -> BaselineInputs:
        """Read the averaged tokens of all clips that have a label.

        Raises:
            DataError: NaN or infinite values; the clips are named.
        """
        ids = sorted(labels)
        if len(ids) * sum(reader.shapes.fusion_dims()) * num_tokens > MAX_VALUES:
            num_tokens = 1
        pooled = PooledFeatures(reader, num_tokens)
        pooled.load(ids)
        present = torch.tensor([reader.shown(clip_id) for clip_id in ids], dtype=torch.bool)
        averages = pooled.take(ids, present)
        problems = []
        for modality, tokens in averages.items():
            sound = tokens.isfinite().all(dim=(1, 2)).tolist()
            if broken := [clip_id for clip_id, is_sound in zip(ids, sound, strict=True) if not is_sound]:
                name = reader.features[modality].name
                problems.append(f"{modality} ({name}): {len(broken)} clips, {first_ids(broken)}")
        if problems:
            raise DataError(
                "features",
                expected="finite numbers",
                got="NaN, infinity or values too large for 16 bits",
                next_step="Look at them with fcache show ID, extract them again, or leave the clips out with "
                "data.exclude.",
                problems=problems,
            )
        has = {modality: present[:, m].numpy() for m, modality in enumerate(reader.modalities)}
        arrays = {modality: tensor.numpy() for modality, tensor in averages.items()}
        return cls(tuple(ids), labels, groups, arrays, has)

    def answers(self, held_out: set[str], task: Task) -> list[dict[str, Any]]:
        """Return rows about the clips `held_out`, by a baseline that is trained on all others.

        Raises:
            DataError: the others have one label only.
        """
        is_held_out = np.array([clip_id in held_out for clip_id in self.clip_ids])
        rows = np.flatnonzero(is_held_out)
        predicted = linear_baseline(
            self.tokens,
            [self.labels[clip_id] for clip_id in self.clip_ids],
            np.flatnonzero(~is_held_out),
            rows,
            groups=[self.groups.get(clip_id, clip_id) for clip_id in self.clip_ids],
            present=self.present,
        )
        return [
            {
                "id": self.clip_ids[row],
                "task": task.name,
                "reference": self.labels[self.clip_ids[row]],
                "prediction": label,
                "probabilities": {
                    name: round(float(p), 6) for name, p in zip(predicted.classes, probabilities, strict=True)
                },
                "penalty": predicted.penalty,
            }
            for row, label, probabilities in zip(rows, predicted.labels, predicted.probabilities, strict=True)
        ]


def linear_rows(context: RunContext, task_name: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Return the answers of a baseline, trained on the training clips of a probe, to the questions of `rows`.

    A row keeps all fields but the answer, so both can be scored alike. None for a run with a language model, and where
    the baseline cannot be trained: the clips were trained on, or training clips have fewer than two labels.

    Raises:
        DataError: NaN or infinite features.
    """
    task, data = find_task(task_name), context.config.data
    if context.tokenizer is not None or task.answer != "label" or any(row["hidden"] for row in rows):
        return None
    asked = {row["id"]: row for row in rows}
    trained = [
        clip
        for clip in context.reader.usable(context.clips.in_split(data.train_split), data.failed_clips)
        if answer_of(clip, task)
    ]
    labels = {clip.id: answer_of(clip, task) or "" for clip in trained}
    if len(set(labels.values())) < 2 or labels.keys() & asked.keys():
        return None
    labels |= {clip_id: str(row["reference"]) for clip_id, row in asked.items()}
    inputs = BaselineInputs.read(context.reader, labels, groups_of(trained))
    return [dict(asked[row["id"]]) | row for row in inputs.answers(set(asked), task)]


def groups_of(clips: Sequence[Clip]) -> dict[str, str]:
    """Return clip id -> dialogue or speaker, or the clip itself."""
    ids = [clip.id for clip in clips]
    return dict(zip(ids, map(repr, clusters_of(ids, clusters_in(clips)[1])), strict=True))
