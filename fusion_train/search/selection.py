"""What a search found, without flattering it: the winner's score for other clips, and what cannot be told from it.

    nested      for each fold the trial with the best inner score there, scored on the outer clips of the fold; the
                predictions of all folds are scored together. It estimates the score of what this search selects.
    best of N   the highest inner score over all folds; too high, since it was chosen by it.
    outer       score of one trial on the outer clips of all folds.

Interval of the nested score: clips are resampled by group (each with its inner and its outer predictions), seeds are
resampled, and the choice is made again in every fold for each resample; normal, on the logit scale.
Probability of being the best: share of the resamples in which a trial has the highest outer score.
Indistinguishable: the model confidence set of Hansen, Lunde and Nason (Econometrica 2011), statistic T_R, at `LEVEL`:
with this probability it has all trials that are best in truth. A set of one trial declares a winner.
Only trials that reached the last rung over all folds are compared; scores are shares. Pure functions.
Shapes: T trials, K folds, S seeds, G groups, R resamples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fusion_train.search.figures import figure
from fusion_train.statistics.intervals import LEVEL, MIN_CLUSTERS, Interval, cluster_numbers

RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class FoldAnswers:
    """Answers of the trials that reached the last rung in one fold."""

    trials: Sequence[str]
    inner_rows: np.ndarray
    outer_rows: np.ndarray
    inner: np.ndarray
    outer: np.ndarray
    """(T, S, clips, C) probabilities."""


@dataclass(frozen=True)
class Standing:
    """One trial of the leaderboard."""

    trial: str
    inner: float
    outer: float
    interval: Interval | None
    """Of `outer`, for other clips and seeds; it does not cover the selection."""
    probability_best: float
    indistinguishable: bool
    """Whether it is in the model confidence set."""


@dataclass(frozen=True)
class Honest:
    """A score of the whole procedure, chosen inside and scored outside of every fold."""

    value: float
    interval: Interval | None
    chosen: tuple[tuple[str, ...], ...]
    """Trials chosen for each fold."""


@dataclass(frozen=True)
class Selected:
    """What a search found."""

    board: list[Standing]
    """By inner score, best first."""
    num_trials: int
    """Trials that the first rung trained."""
    naive: float
    """Inner score of the first: best of `num_trials`."""
    nested: Honest
    ensemble: Honest
    num_groups: int
    num_seeds: int

    @property
    def winner(self) -> Standing | None:
        """The first trial if every other can be told from it."""
        alike = [standing for standing in self.board if standing.indistinguishable]
        return alike[0] if len(alike) == 1 and alike[0] is self.board[0] else None


def select(
    folds: Sequence[FoldAnswers],
    finalists: Sequence[str],
    targets: np.ndarray,
    groups: Sequence[Hashable],
    main: str,
    *,
    num_trials: int,
    num_classes: int,
    top: int,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Selected:
    """Score a search.

    Args:
        finalists: trials that are in all folds.
        targets: (n,) classes; groups: of each clip, resampled together.
        top: number of trials in the ensemble.
    """
    members = cluster_numbers(groups)
    num_groups = int(members.max()) + 1
    num_seeds = folds[0].inner.shape[1]
    random = np.random.default_rng(seed)
    weights = random.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=resamples)
    weights = np.concatenate([np.ones((1, num_groups)), weights]).astype(np.float32)  # the first is the sample itself
    seeds = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples) / num_seeds
    seeds = np.concatenate([np.full((1, num_seeds), 1 / num_seeds), seeds])

    def counts(answers: np.ndarray, rows: np.ndarray, which: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Confusions (R + 1, C, C), or those of some resamples, of answers (clips,)."""
        present, own = np.unique(members[rows], return_inverse=True)
        cells = np.zeros((len(present), num_classes**2), dtype=np.float32)
        np.add.at(cells, (own, targets[rows] * num_classes + answers), 1)
        return (weights[which][:, present] @ cells).reshape(-1, num_classes, num_classes)

    place = {name: number for number, name in enumerate(finalists)}
    outer = np.zeros((len(finalists), num_seeds, len(weights), num_classes, num_classes), dtype=np.float32)
    inner = np.zeros_like(outer)
    nested = np.zeros((num_seeds, len(weights), num_classes, num_classes))
    averaged = np.zeros((len(weights), num_classes, num_classes))
    chosen, chosen_top = [], []
    for fold in folds:
        inner_counts = np.stack([[counts(p.argmax(axis=1), fold.inner_rows) for p in trial] for trial in fold.inner])
        outer_counts = np.stack([[counts(p.argmax(axis=1), fold.outer_rows) for p in trial] for trial in fold.outer])
        for number, name in enumerate(fold.trials):
            if name in place:
                inner[place[name]] += inner_counts[number]
                outer[place[name]] += outer_counts[number]
        scores = (figure(main, inner_counts) * seeds.T).sum(axis=1)  # [t, r + 1]
        first = scores.argmax(axis=0)  # [r + 1]
        nested += outer_counts[first, :, np.arange(len(first))].swapaxes(0, 1)
        chosen.append((fold.trials[first[0]],))
        order = np.argsort(-scores, axis=0, kind="stable")[:top]  # [top, r + 1]
        chosen_top.append(tuple(fold.trials[number] for number in order[:, 0]))
        averaged += _ensemble_counts(fold.outer.mean(axis=1), order, counts, fold.outer_rows)
    inner_scores = (figure(main, inner) * seeds.T).sum(axis=1)
    outer_scores = (figure(main, outer) * seeds.T).sum(axis=1)  # [finalists, r + 1]
    nested_scores = (figure(main, nested) * seeds.T).sum(axis=0)
    ensemble_scores = figure(main, averaged)
    best = outer_scores[:, 1:].argmax(axis=0)
    alike = confidence_set(outer_scores)
    board = [
        Standing(
            name,
            float(inner_scores[number, 0]),
            float(outer_scores[number, 0]),
            resampled_interval(outer_scores[number], num_groups),
            float((best == number).mean()),
            bool(alike[number]),
        )
        for name, number in place.items()
    ]
    board.sort(key=lambda standing: -standing.inner)
    return Selected(
        board,
        num_trials,
        board[0].inner,
        Honest(float(nested_scores[0]), resampled_interval(nested_scores, num_groups), tuple(chosen)),
        Honest(float(ensemble_scores[0]), resampled_interval(ensemble_scores, num_groups), tuple(chosen_top)),
        num_groups,
        num_seeds,
    )


def _ensemble_counts(
    probabilities: np.ndarray, order: np.ndarray, counts: Callable[..., np.ndarray], rows: np.ndarray
) -> np.ndarray:
    """Confusions (R + 1, C, C) of the averaged probabilities of the trials `order` (top, R + 1) chooses."""
    sets, which = np.unique(np.sort(order, axis=0), axis=1, return_inverse=True)
    which = which.reshape(-1)
    num_classes = probabilities.shape[2]
    out = np.zeros((len(which), num_classes, num_classes))
    for number in range(sets.shape[1]):
        clip_rows = np.flatnonzero(which == number)
        out[clip_rows] = counts(probabilities[sets[:, number]].mean(axis=0).argmax(axis=1), rows, clip_rows)
    return out


def resampled_interval(scores: np.ndarray, num_groups: int, level: float = LEVEL) -> Interval | None:
    """Interval of a share from (R + 1,) scores, the first of the sample itself; None below `MIN_CLUSTERS` groups."""
    if num_groups < MIN_CLUSTERS:
        return None
    value, error = float(scores[0]), float(scores[1:].std(ddof=1))
    if not 0 < value < 1:
        low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2]).tolist()
        return Interval(low, high, level, num_groups)
    reach = float(stats.t.ppf(0.5 + level / 2, num_groups - 1)) * error / (value * (1 - value))
    middle = np.log(value / (1 - value))
    low, high = (float(1 / (1 + np.exp(-bound))) for bound in (middle - reach, middle + reach))
    return Interval(low, high, level, num_groups)


def confidence_set(scores: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Return (T,) which trials are in the model confidence set, from scores (T, R + 1), the first of the sample itself.

    Trials are left out from the worst on until the hypothesis that those that remain are equally good is not rejected.
    """
    centred = scores[:, 1:] - scores[:, 1:].mean(axis=1, keepdims=True)
    error = np.maximum(np.stack([(centred - row).std(axis=1) for row in centred]), 1e-12)  # [t, t] of differences
    statistic = (scores[None, :, 0] - scores[:, None, 0]) / error  # [i, j]: how far i is behind j
    inside = np.arange(len(scores))
    while len(inside) > 1:
        largest = np.zeros(centred.shape[1])
        for i in inside:
            noise = np.abs(centred[inside] - centred[i]) / error[i, inside, None]
            largest = np.maximum(largest, noise.max(axis=0))
        observed = statistic[np.ix_(inside, inside)]
        if observed.max() < 1e-9 or (largest >= observed.max()).mean() > 1 - level:
            break
        inside = np.delete(inside, observed.max(axis=1).argmax())
    return np.isin(np.arange(len(scores)), inside)
