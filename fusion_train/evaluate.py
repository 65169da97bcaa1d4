"""Answer questions about held-out clips and score the answers.

Closed label sets need no generation: every label is scored as a continuation of one shared prompt. Open tasks are
generated greedily. Every prediction is kept, one JSON line a clip.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.clips import Clip, ClipList
from featurecache.store.publish import replace_bytes
from fusion_train.assemble import Workbench
from fusion_train.errors import DataError
from fusion_train.metrics import ClassificationScores, classification_scores
from fusion_train.metrics.labels import conclusion
from fusion_train.models.answering import greedy_text, label_log_probabilities
from fusion_train.probing import ProbeCollator
from fusion_train.prompts import Task, encode_answer, find_task
from fusion_train.samples import Sample, answer_of, answers_of, closed_set

MAX_NEW_TOKENS = 200
EVAL_BATCH_SIZE = 8


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one task, and their scores where the task has a closed set of labels."""

    task: str
    predictions: list[dict[str, Any]]
    scores: ClassificationScores | None

    def write(self, path: Path) -> None:
        """Publish the predictions as JSON lines."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.predictions)
        replace_bytes(path, "".join(lines).encode())

    def summary(self) -> dict[str, float | int]:
        if self.scores is None:
            return {"num_clips": len(self.predictions)}
        return {
            "accuracy": self.scores.accuracy,
            "uar": self.scores.uar,
            "weighted_f1": self.scores.weighted_f1,
            "num_clips": self.scores.num_clips,
        }


def evaluate(
    bench: Workbench,
    clips: ClipList,
    task_name: str,
    *,
    modalities: Sequence[str] | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
) -> Evaluation:
    """Ask `task_name` of every clip that has an answer to it.

    Args:
        modalities: shown to the model; the others are hidden (the token ablation). Default: those that the task shows.

    Raises:
        DataError: no clip of these has an answer to the task, or an unknown modality.
    """
    task = find_task(task_name)
    unknown = [name for name in modalities or () if name not in bench.reader.modalities]
    if unknown:
        raise DataError("--modalities", expected="among " + ", ".join(bench.reader.modalities), got=", ".join(unknown))
    shown = [name for name in task.modalities if modalities is None or name in modalities]
    hidden = tuple(name for name in bench.reader.modalities if name not in shown)
    asked = [(clip, *answers[0]) for clip in clips if (answers := answers_of(clip, task))]
    if not asked:
        raise DataError(
            f'task "{task_name}"', expected="clips with an answer to it", got=f"none of {len(clips)} clips",
            next_step="Choose another with --task, or add it to the clip list.",
        )  # fmt: skip
    if bench.tokenizer is None and task.answer != "label":
        raise DataError(
            f'task "{task_name}"', expected="a task with one label, since a probe has no language model", got="another"
        )
    was_training = bench.model.training
    bench.model.eval()
    predictions: list[dict[str, Any]] = []
    for group in _groups(bench, asked, task, hidden, batch_size):
        predictions += _answer(bench, group)
    bench.model.train(was_training)
    predictions.sort(key=lambda row: row["id"])
    return Evaluation(task_name, predictions, _score(task, predictions))


def closed_tasks(bench: Workbench, clips: ClipList) -> list[str]:
    """Tasks of the configuration with one label a clip, in its order, that some of `clips` has an answer to."""
    chosen = [find_task(name) for name in bench.config.data.tasks]
    return [task.name for task in chosen if task.answer == "label" and any(answer_of(c, task) for c in clips)]


def _groups(
    bench: Workbench,
    asked: Sequence[tuple[Clip, str | None, str]],
    task: Task,
    hidden: tuple[str, ...],
    batch_size: int,
) -> Iterator[list[Sample]]:
    """Batches of clips that share one set of labels."""
    by_labels: dict[tuple[str, ...], list[Sample]] = {}
    for clip, question, answer in asked:
        labels = closed_set(bench.label_sets, clip, task)
        by_labels.setdefault(labels, []).append(Sample(clip, task, labels, answer, hidden, question))
    for samples in by_labels.values():
        for start in range(0, len(samples), batch_size):
            yield samples[start : start + batch_size]


def _answer(bench: Workbench, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    task, labels = samples[0].task, samples[0].labels
    device = bench.device
    if isinstance(bench.collator, ProbeCollator):
        for sample, row in zip(samples, bench.collator.probabilities(bench.model, samples), strict=True):
            yield _closed(sample, row)
        return
    shown = [bench.collator.present(sample.clip, sample.hidden) for sample in samples]
    prompts = [bench.collator.prompt_ids(sample, here) for sample, here in zip(samples, shown, strict=True)]
    read, present = bench.reader.read_seen([sample.clip.id for sample in samples], shown)
    features = {name: tensor.to(device) for name, tensor in read.items()}
    if task.answer == "label":
        label_ids = [encode_answer(bench.tokenizer, label) for label in labels]
        scores = label_log_probabilities(bench.model, prompts, features, present.to(device), label_ids)
        for sample, row in zip(samples, scores.softmax(dim=1).tolist(), strict=True):
            yield _closed(sample, row)
        return
    texts = greedy_text(
        bench.model, prompts, features, present.to(device),
        max_new_tokens=MAX_NEW_TOKENS, eos_token_id=bench.tokenizer.eos_token_id,
    )  # fmt: skip
    for sample, ids in zip(samples, texts, strict=True):
        yield _row(sample, bench.tokenizer.decode(ids, skip_special_tokens=True).strip())


def _closed(sample: Sample, probabilities: Sequence[float]) -> dict[str, Any]:
    chosen = sample.labels[max(range(len(sample.labels)), key=probabilities.__getitem__)]
    rounded = (round(p, 6) for p in probabilities)
    return _row(sample, chosen) | {"probabilities": dict(zip(sample.labels, rounded, strict=True))}


def _row(sample: Sample, prediction: str) -> dict[str, Any]:
    return {
        "id": sample.clip.id,
        "dataset": sample.clip.dataset,
        "task": sample.task.name,
        "hidden": list(sample.hidden),
        "reference": sample.answer,
        "prediction": prediction,
    }


def _score(task: Task, predictions: Sequence[dict[str, Any]]) -> ClassificationScores | None:
    if task.answer not in ("label", "think"):
        return None
    references = {row["id"]: conclusion(row["reference"]) for row in predictions}
    return classification_scores(references, {row["id"]: conclusion(row["prediction"]) for row in predictions})
