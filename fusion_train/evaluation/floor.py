"""The floor under a run: what classifiers of scikit-learn reach on averages of the tokens that it reads.

    logistic regression   `linear_baseline`: columns of all averaged tokens
    linear SVM            the same columns; its penalty is chosen in the same way
    gradient boosting     histogram gradient boosting on the mean over the tokens of each modality
    ridge regression      for numbers such as a valence: the same columns, penalty chosen by the CCC on inner folds

All of them are fitted on the training split of the run, one model per dataset, and answer the clips that the run is
asked about. Inner folds keep clips of a dialogue or speaker together. A probe that is not clearly above the floor has
learnt nothing that needs a network. Shapes: N clips, K averaged tokens of width D, F columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.svm import LinearSVC

from featurecache.clips.clip_list import Clip, ClipList
from fusion_train.data.answers import with_answers
from fusion_train.data.pooled_features import PooledFeatures
from fusion_train.errors import DataError
from fusion_train.evaluation.evaluate import hidden_modalities, questions, row_of
from fusion_train.evaluation.linear_baseline import (
    NUM_INNER_FOLDS,
    PENALTIES,
    inner_folds,
    linear_baseline,
    rotated,
    standardised_columns,
    uar_of,
)
from fusion_train.metrics.regression import concordance
from fusion_train.prompts.prompt import Task, find_task
from fusion_train.run_context import RunContext

DEFAULT_TOKENS = 8
"""Averages per modality for a run with a language model; a probe's own number otherwise."""
RIDGE_PENALTIES = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5)
BOOSTING = {"max_iter": 100, "early_stopping": False, "min_samples_leaf": 5}  # with the usual 20, 39 clips are one leaf


@dataclass(frozen=True)
class FloorInputs:
    """Averaged tokens and answers of the clips of one dataset; the training clips stand first."""

    tokens: Mapping[str, np.ndarray]
    """Modality -> (N, K, D) float32."""
    present: Mapping[str, np.ndarray]
    """Modality -> (N,) bool."""
    answers: Sequence[str]
    groups: Sequence[str]
    train: np.ndarray
    test: np.ndarray


Method = Callable[[FloorInputs, int], Sequence[str]]
"""Inputs and seed -> the answers to the test clips."""


def floor_rows(context: RunContext, split: str, task_name: str, *, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Fit every method on the training clips of a run and answer the clips of a split.

    Returns:
        Name of a method -> prediction rows, sorted by clip id, as `evaluate` returns them.

    Raises:
        ConfigError: no such task.
        DataError: a task without one label or number per clip, clips without an answer, a dataset without training
            clips, or a training split of one class.
    """
    task = find_task(task_name)
    if task.answer not in ("label", "number"):
        raise DataError(f'task "{task_name}"', expected="a task with one label or one number per clip", got="another")
    if split == context.config.data.train_split:
        raise DataError(
            "--split", expected="a split of held-out clips", got=f'"{split}", which the methods are fitted on'
        )
    train, test = (_answered(context, name, task) for name in (context.config.data.train_split, split))
    hidden = hidden_modalities(context, task, None)
    samples = questions(context, test, task, hidden=hidden)
    rows: dict[str, list[dict[str, Any]]] = {}
    for dataset in dict.fromkeys(clip.dataset for clip in test):
        asked = [sample for sample in samples if sample.clip.dataset == dataset]
        learnt = [sample for sample in questions(context, train, task, hidden=hidden) if sample.clip.dataset == dataset]
        if not learnt:
            raise DataError(
                f'task "{task_name}"', expected=f"training clips of dataset {dataset!r}", got="none to fit on"
            )
        inputs = _inputs(context, [*learnt, *asked], len(learnt))
        for name, method in methods_of(task).items():
            answers = method(inputs, seed)
            rows.setdefault(name, []).extend(
                row_of(sample) | {"prediction": answer, "reference": sample.answer, "by": {"floor": name}}
                for sample, answer in zip(asked, answers, strict=True)
            )
    return {name: sorted(of_method, key=lambda row: row["id"]) for name, of_method in rows.items()}


def _answered(context: RunContext, split: str, task: Task) -> list[Clip]:
    usable = context.reader.usable(context.clips.in_split(split), context.config.data.failed_clips)
    return with_answers(ClipList(usable), task)


def _inputs(context: RunContext, samples: Sequence[Any], num_train: int) -> FloorInputs:
    clips = [sample.clip for sample in samples]
    num_tokens = DEFAULT_TOKENS if context.tokenizer is not None else context.model.fusion_tokens
    pooled = PooledFeatures(context.reader, num_tokens)
    pooled.load([clip.id for clip in clips])
    shown = torch.tensor([context.reader.shown(sample.clip.id, sample.hidden) for sample in samples], dtype=torch.bool)
    averages = pooled.take([clip.id for clip in clips], shown)
    return FloorInputs(
        {modality: tokens.float().numpy() for modality, tokens in averages.items()},
        {modality: shown[:, m].numpy() for m, modality in enumerate(averages)},
        [sample.answer for sample in samples],
        [clip.dialogue or clip.speaker or clip.id for clip in clips],
        np.arange(num_train),
        np.arange(num_train, len(samples)),
    )


def methods_of(task: Task) -> dict[str, Method]:
    """Return name -> method of the floor for a task."""
    if task.answer == "number":
        return {"ridge regression": ridge_regression, "gradient boosting": boosted_numbers}
    return {"logistic regression": logistic_regression, "linear SVM": linear_svm, "gradient boosting": boosted_labels}


def logistic_regression(inputs: FloorInputs, seed: int) -> Sequence[str]:
    """Answer by `linear_baseline`."""
    return linear_baseline(
        inputs.tokens,
        inputs.answers,
        inputs.train,
        inputs.test,
        groups=inputs.groups,
        present=inputs.present,
        seed=seed,
    ).labels


def linear_svm(inputs: FloorInputs, seed: int) -> Sequence[str]:
    """Answer by a linear support vector machine, one class against the rest; its penalty by UAR on inner folds."""
    train, test = rotated(*standardised_columns(inputs.tokens, inputs.train, inputs.test, inputs.present))
    truth = np.array([inputs.answers[row] for row in inputs.train])
    folds = inner_folds(truth, np.array([inputs.groups[row] for row in inputs.train]), seed)

    def fitted(rows: np.ndarray, penalty: float) -> LinearSVC:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as in `linear_baseline`
            return LinearSVC(C=penalty, random_state=seed).fit(train[rows], truth[rows])

    def uar(penalty: float) -> float:
        answers = [fitted(fit, penalty).predict(train[held]) for fit, held in folds]
        return uar_of(truth[np.concatenate([held for _, held in folds])], np.concatenate(answers))

    penalty = max(PENALTIES, key=uar) if folds else PENALTIES[0]
    return list(map(str, fitted(np.arange(len(train)), penalty).predict(test)))


def boosted_labels(inputs: FloorInputs, seed: int) -> Sequence[str]:
    """Answer by gradient boosting on the mean over the tokens of each modality."""
    train, test = _mean_columns(inputs)
    truth = [inputs.answers[row] for row in inputs.train]
    return list(map(str, HistGradientBoostingClassifier(random_state=seed, **BOOSTING).fit(train, truth).predict(test)))


def ridge_regression(inputs: FloorInputs, seed: int) -> Sequence[str]:
    """Answer with numbers by ridge regression; its penalty by CCC on inner folds."""
    train, test = rotated(*standardised_columns(inputs.tokens, inputs.train, inputs.test, inputs.present))
    truth = np.array([float(inputs.answers[row]) for row in inputs.train])
    groups = [inputs.groups[row] for row in inputs.train]
    count = min(NUM_INNER_FOLDS, len(set(groups)))
    folds = list(GroupKFold(count).split(train, truth, groups)) if count > 1 else []

    def ccc(penalty: float) -> float:
        answers = [Ridge(alpha=penalty).fit(train[fit], truth[fit]).predict(train[held]) for fit, held in folds]
        return concordance(truth[np.concatenate([held for _, held in folds])], np.concatenate(answers))

    penalty = max(reversed(RIDGE_PENALTIES), key=ccc) if folds else RIDGE_PENALTIES[-1]
    return [f"{number:.6g}" for number in Ridge(alpha=penalty).fit(train, truth).predict(test)]


def boosted_numbers(inputs: FloorInputs, seed: int) -> Sequence[str]:
    """Answer with numbers by gradient boosting."""
    train, test = _mean_columns(inputs)
    truth = [float(inputs.answers[row]) for row in inputs.train]
    model = HistGradientBoostingRegressor(random_state=seed, **BOOSTING).fit(train, truth)
    return [f"{number:.6g}" for number in model.predict(test)]


def _mean_columns(inputs: FloorInputs) -> tuple[np.ndarray, np.ndarray]:
    """Return columns (N, F) of training and test clips: the mean over the tokens of each modality."""
    means = {modality: tokens.mean(axis=1) for modality, tokens in inputs.tokens.items()}
    return standardised_columns(means, inputs.train, inputs.test, inputs.present)
