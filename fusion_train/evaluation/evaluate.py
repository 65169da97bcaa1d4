"""Ask a model about held-out clips and score the answers.

A closed label set needs no generation: every label is scored as a continuation of one shared prompt
(`models.answering`), and the most probable label is chosen. Open answers are generated greedily, in batches, with the
key-value cache. `evaluate` keeps all answers in memory, for validation during training and in sweeps. `predictions`
writes answers to disk as they come, for benchmarks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.files.publish import replace_bytes
from fusion_train.data.answers import answer_of, answers_of, closed_set, with_answers
from fusion_train.data.probe_batches import ProbeCollator
from fusion_train.data.samples import Sample, label_sets
from fusion_train.data.too_long import fitting_samples
from fusion_train.errors import DataError, DivergedError
from fusion_train.evaluation.append_only import sealed_lines
from fusion_train.metrics import ClassificationScores, RegressionScores, classification_scores, regression_scores
from fusion_train.metrics.labels import conclusion
from fusion_train.models.answering import greedy_text, label_log_probabilities
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.model_group import GroupAnswering, ModelGroup, OneModel
from fusion_train.planning.scoring_batch import clips_at_once
from fusion_train.prompts.limits import MAX_NEW_TOKENS
from fusion_train.prompts.prompt import Task, encode_answer, find_task
from fusion_train.run_context import RunContext

NO_MODALITIES = "none"
"""Value of `--modalities` that hides every modality."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one task, and their scores if the task has a closed set of labels, or a number."""

    task: str
    predictions: list[dict[str, Any]]
    scores: ClassificationScores | None
    numbers: RegressionScores | None = None
    """Scores of a task with one number per clip."""

    def write(self, path: Path) -> None:
        """Publish the predictions as a JSON Lines file."""
        replace_bytes(path, sealed_lines(self.predictions))

    def summary(self) -> dict[str, float | int]:
        """Return the scores by name, and the number of clips."""
        if self.numbers is not None:
            return {
                "ccc": self.numbers.ccc,
                "rmse": self.numbers.rmse,
                "mae": self.numbers.mae,
                "r": self.numbers.pearson,
                "num_clips": len(self.predictions),
            }
        if self.scores is None:
            return {"num_clips": len(self.predictions)}
        return {
            "accuracy": self.scores.accuracy,
            "uar": self.scores.uar,
            "weighted_f1": self.scores.weighted_f1,
            "num_clips": self.scores.num_clips,
        }


def evaluate(
    context: RunContext,
    clips: ClipList,
    task_name: str,
    *,
    modalities: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Ask the task `task_name` about every clip that has a reference answer to it.

    Args:
        modalities: shown to the model; the others are hidden (the token ablation). Default: the modalities of the task.
        batch_size: clips asked at once; None: as many as fit a GPU, see `planning.scoring_batch`.

    Raises:
        DataError: no clip has a reference answer to the task, or an unknown modality.
        DivergedError: the scores of a clip are not finite; every such clip is named.
    """
    task = find_task(task_name)
    samples = questions(context, with_answers(clips, task), task, hidden=hidden_modalities(context, task, modalities))
    samples = fitting_samples(samples, context.collator, task_name, lambda text: None)
    was_training = context.model.training
    context.model.eval()
    predictions: list[dict[str, Any]] = []
    not_finite: list[str] = []
    for group in groups(samples, batch_size or clips_at_once(context.config, context.model, context.device)):
        for sample, answer_fields in zip(group, answer(context, group), strict=True):
            if answer_fields is None:
                not_finite.append(sample.clip.id)
            else:
                predictions.append(row_of(sample) | answer_fields | {"reference": sample.answer})
    context.model.train(was_training)
    refuse_not_finite(f'task "{task_name}"', not_finite, len(samples))
    predictions.sort(key=lambda row: row["id"])
    return scored(task, predictions)


def closed_tasks(context: RunContext, clips: ClipList) -> list[str]:
    """Return the configured tasks with one label per clip that some of `clips` has an answer to, in configured
    order."""
    tasks = [find_task(name) for name in context.config.data.tasks]
    return [task.name for task in tasks if task.answer == "label" and any(answer_of(c, task) for c in clips)]


def number_tasks(context: RunContext, clips: ClipList) -> list[str]:
    """Return the configured tasks with one number per clip that differs among `clips`, in configured order."""
    tasks = [find_task(name) for name in context.config.data.tasks]
    return [t.name for t in tasks if t.answer == "number" and len({answer_of(clip, t) for clip in clips} - {None}) > 1]


def hidden_modalities(context: RunContext, task: Task, modalities: Sequence[str] | None) -> tuple[str, ...]:
    """Return the modalities that are hidden from the model.

    Args:
        modalities: shown if the task shows them; None shows all of the task, ["none"] shows nothing.

    Raises:
        DataError: a modality that the run does not read.
    """
    shown = [] if modalities == [NO_MODALITIES] else modalities
    unknown = [name for name in shown or () if name not in context.reader.modalities]
    if unknown:
        known = ", ".join(context.reader.modalities)
        raise DataError("--modalities", expected=f"among {known}, or {NO_MODALITIES}", got=", ".join(unknown))
    visible = [name for name in task.modalities if shown is None or name in shown]
    return tuple(name for name in context.reader.modalities if name not in visible)


def questions(
    context: RunContext,
    clips: Sequence[Clip],
    task: Task,
    *,
    hidden: tuple[str, ...] = (),
    vocabulary: Sequence[str] | None = None,
) -> list[Sample]:
    """Return one sample per clip; a closed task offers the labels that the run was trained on.

    For a dataset that the run was not trained on, the labels are `vocabulary`, or else the labels of these clips.

    Raises:
        DataError: a probe is asked for anything but one label.
    """
    if context.tokenizer is None and task.answer not in ("label", "number"):
        raise DataError(
            f'task "{task.name}"', expected="a task with one label, since a probe has no language model", got="another"
        )
    if context.tokenizer is not None and task.answer == "number":
        raise DataError(
            f'task "{task.name}"',
            expected="a task that a language model answers in words",
            got="one with a number",
            next_step="Numbers are learnt and answered by a probe: fusion-train --stage probe.",
        )
    sets_of_clips = label_sets(ClipList(clips))
    samples = []
    for clip in clips:
        reference = next(iter(answers_of(clip, task)), None)
        clip_task = task.among(clip.labels) if reference is None else reference.task
        labels = (
            closed_set(context.label_sets, clip, clip_task)
            or tuple(vocabulary or ())
            or closed_set(sets_of_clips, clip, clip_task)
        )
        text, question = ("", None) if reference is None else (reference.text, reference.question)
        samples.append(Sample(clip, clip_task, labels, text, hidden, question))
    return samples


def groups(samples: Sequence[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """Yield batches of samples; the samples of a batch choose among the same labels."""
    by_labels: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        by_labels.setdefault(sample.labels, []).append(sample)
    for group in by_labels.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def refuse_not_finite(subject: str, clip_ids: Sequence[str], count: int) -> None:
    """Raise DivergedError that names these clips, of `count`, for which the model returned NaN or infinity."""
    if clip_ids:
        all_clips = len(clip_ids) == count
        raise DivergedError(
            subject,
            expected="finite scores for every clip",
            got=f"NaN or infinity for {len(clip_ids)} of {count}",
            next_step="The weights are at fault: take an earlier checkpoint and a lower optim.lr. Clips:"
            if all_clips
            else "Compute in a wider dtype (model.llm_dtype=bfloat16 or float32), or leave these clips out "
            "(data.exclude):",
            problems=list(clip_ids),
        )


def answer(
    context: RunContext, samples: Sequence[Sample], *, generate: bool = False
) -> Iterator[dict[str, Any] | None]:
    """Answer samples of one task and one set of labels, in order.

    Args:
        generate: generate the answer even if it could be chosen among labels.

    Yields:
        `prediction`, `prompt_sha256`, and `probabilities` by label if a label was chosen; None for a clip for which the
        model returned NaN or infinity.
    """
    task, labels = samples[0].task, samples[0].labels
    device = context.device
    hashes = [{"prompt_sha256": prompt_hash(context, sample)} for sample in samples]
    if isinstance(context.collator, ProbeCollator) and task.answer == "number":
        for prompt, number in zip(hashes, context.collator.numbers(context.model, samples), strict=True):
            yield {"prediction": f"{number:.6g}"} | prompt if math.isfinite(number) else None
        return
    if isinstance(context.collator, ProbeCollator):
        for prompt, row in zip(hashes, context.collator.probabilities(context.model, samples), strict=True):
            yield _chosen_label(labels, row, prompt)
        return
    shown = [context.collator.present(sample.clip, sample.hidden) for sample in samples]
    prompts = [context.collator.prompt_ids(sample, mask) for sample, mask in zip(samples, shown, strict=True)]
    read, present = context.reader.read_visible([sample.clip.id for sample in samples], shown)
    features = {name: tensor.to(device) for name, tensor in read.items()}
    if task.answer == "label" and labels and not generate:
        label_ids = [encode_answer(context.tokenizer, label) for label in labels]
        scores = label_log_probabilities(context.model, prompts, features, present.to(device), label_ids)
        for prompt, row in zip(hashes, scores.softmax(dim=1).tolist(), strict=True):
            yield _chosen_label(labels, row, prompt)
        return
    texts = greedy_text(
        context.model,
        prompts,
        features,
        present.to(device),
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=context.tokenizer.eos_token_id,
    )
    for prompt, ids in zip(hashes, texts, strict=True):
        if ids is None:
            yield None
        else:
            yield {"prediction": context.tokenizer.decode(ids, skip_special_tokens=True).strip()} | prompt


def _chosen_label(
    labels: Sequence[str], probabilities: Sequence[float], prompt: dict[str, Any]
) -> dict[str, Any] | None:
    if not all(map(math.isfinite, probabilities)):
        return None
    best = labels[max(range(len(labels)), key=probabilities.__getitem__)]
    rounded = dict(zip(labels, (round(p, 6) for p in probabilities), strict=True))
    return {"prediction": best, "probabilities": rounded} | prompt


def prompt_hash(context: RunContext, sample: Sample) -> str:
    """Return the sha256 of a prompt, 16 hex digits: of its token ids with soft places, or of a probe's task and
    labels."""
    if isinstance(context.collator, ProbeCollator):
        content: list[Any] = [sample.task.name, list(sample.labels), list(sample.hidden)]
    else:
        content = list(context.collator.prompt_ids(sample, context.collator.present(sample.clip, sample.hidden)))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def row_of(sample: Sample) -> dict[str, Any]:
    """Return the fields of a prediction about its clip and task, so that the row can be scored without the clip
    list."""
    clip = sample.clip
    optional = {"split": clip.split, "speaker": clip.speaker, "dialogue": clip.dialogue, "tags": list(clip.tags)}
    return {
        "id": clip.id,
        "dataset": clip.dataset,
        "task": sample.task.name,
        "hidden": list(sample.hidden),
        **{key: value for key, value in optional.items() if value},
    }


def classified(task: Task, predictions: Sequence[dict[str, Any]]) -> ClassificationScores | None:
    """Return the scores of a task with one label; None for other tasks."""
    if task.answer not in ("label", "think"):
        return None
    references = {row["id"]: conclusion(row["reference"]) for row in predictions}
    return classification_scores(references, {row["id"]: conclusion(row["prediction"]) for row in predictions})


def concordant(task: Task, predictions: Sequence[dict[str, Any]]) -> RegressionScores | None:
    """Return the scores of a task with one number; None for other tasks."""
    if task.answer != "number":
        return None
    references = {row["id"]: row["reference"] for row in predictions}
    return regression_scores(references, {row["id"]: row["prediction"] for row in predictions})


def scored(task: Task, predictions: list[dict[str, Any]]) -> Evaluation:
    """Return predictions with their scores."""
    return Evaluation(task.name, predictions, classified(task, predictions), concordant(task, predictions))


def evaluate_together(
    context: RunContext,
    models: OneModel | ModelGroup,
    members: Sequence[nn.Module],
    clips: ClipList,
    task_name: str,
) -> list[Evaluation]:
    """Evaluate several models on the same clips; a stacked base answers for all of them in one pass.

    Args:
        context: run context of any of the models.
        members: the current members of `models`, in order.

    Returns:
        One evaluation per member, equal to that of `evaluate`.

    Raises:
        As `evaluate`.
    """
    if not (isinstance(models, ModelGroup) and models.stacked and models.batching):
        return [evaluate(replace(context, model=member), clips, task_name) for member in members]
    task, count = find_task(task_name), len(members)
    samples = questions(context, with_answers(clips, task), task, hidden=hidden_modalities(context, task, None))
    samples = fitting_samples(samples, context.collator, task_name, lambda text: None)
    group_context = replace(context, model=GroupAnswering(models, cast("Sequence[EmotionLlama]", members)))
    rows: list[list[dict[str, Any]]] = [[] for _ in members]
    not_finite: list[str] = []
    at_once = max(clips_at_once(context.config, context.model, context.device) // count, 1)
    for batch in groups(samples, at_once):
        answers = list(answer(group_context, [*batch] * count))
        for place, member_rows in enumerate(rows):
            member_answers = answers[place * len(batch) : (place + 1) * len(batch)]
            for sample, answer_fields in zip(batch, member_answers, strict=True):
                if answer_fields is None:
                    not_finite.append(sample.clip.id)
                else:
                    member_rows.append(row_of(sample) | answer_fields | {"reference": sample.answer})
    refuse_not_finite(f'task "{task_name}"', not_finite, len(samples) * count)
    for member_rows in rows:
        member_rows.sort(key=lambda row: row["id"])
    return [scored(task, member_rows) for member_rows in rows]
