"""The best of several candidates where the truth is known: the corrected score is nearly unbiased, intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fusion_train.metrics.metric_result import MetricResult, mean_of
from fusion_train.metrics.registry import score
from fusion_train.statistics.selection import bound, correct, expected_maximum

ALIKE_IN_CLUSTER = 0.05


def accuracy_of(hits: np.ndarray) -> MetricResult:
    return MetricResult(
        "accuracy", {"accuracy": float(hits.mean())}, tuple(map(str, range(len(hits)))), **mean_of(hits)
    )


def draw(random, clusters: int, size: int, truth: np.ndarray, correlation: float) -> list[MetricResult]:
    """Answers of candidates with these true accuracies; hard clips are hard for all of them."""
    shared = random.standard_normal((clusters, size, 1)) * (correlation - ALIKE_IN_CLUSTER) ** 0.5
    shared = shared + random.standard_normal((clusters, 1, 1)) * ALIKE_IN_CLUSTER**0.5
    own = random.standard_normal((clusters, size, len(truth))) * (1 - correlation) ** 0.5
    hits = (shared + own < stats.norm.ppf(truth)).astype(float).reshape(clusters * size, -1)
    return [accuracy_of(column) for column in hits.T]


def truths(random, kind: str, count: int) -> np.ndarray:
    if kind == "equal":
        return np.full(count, 0.6)
    if kind == "epochs":  # rise, then stay
        return 0.6 - 0.3 * np.exp(-np.arange(count) / (count / 6))
    return 0.6 + 0.03 * random.standard_normal(count)


def simulate(clusters: int, size: int, count: int, correlation: float, kind: str, repetitions: int, known: bool):
    """Bias of the naive and of the corrected score in points, and how often the interval covers."""
    random, rows = np.random.default_rng(5), []
    members = np.repeat(np.arange(clusters), size).tolist()
    for _ in range(repetitions):
        truth = truths(random, kind, count)
        candidates = draw(random, clusters, size, truth, correlation)
        if known:
            found = correct(candidates, members)
            true = truth[found.best]
        else:
            best = int(np.argmax([candidate.value for candidate in candidates]))
            found, true = bound(candidates[best], members, count), truth[best]
        rows.append(
            [
                100 * (found.naive - true),
                100 * (found.corrected - true),
                found.interval.low <= true <= found.interval.high,
            ]
        )
    return np.mean(rows, axis=0)


@pytest.mark.parametrize(("clusters", "size"), [(36, 1), (30, 10)])
def test_the_corrected_score_is_nearly_unbiased_where_the_naive_one_is_not(clusters, size):
    naive, corrected, covered = simulate(clusters, size, 20, 0.5, "equal", 40, known=True)
    assert naive > 1
    assert abs(corrected) < min(naive / 3, 3 * 7 / 40**0.5)
    assert covered >= 0.87


GRID = [(clusters, size, count, correlation, kind)
        for clusters, size in ((10, 10), (36, 1), (300, 1), (30, 20))
        for count in (5, 20) for correlation in (0.3, 0.8) for kind in ("equal", "epochs", "spread")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("cell", GRID, ids=str)
def test_the_corrected_score_is_nearly_unbiased_in_every_cell(cell):
    naive, corrected, covered = simulate(*cell, 300, known=True)
    assert naive > 0.5
    assert -1.7 < corrected < 1.2  # errs low by up to 1.2 in the long run, and 0.45 is a standard error
    assert covered >= 0.91


@pytest.mark.parametrize("kind", ["equal", "spread"])
def test_the_bound_from_the_number_of_candidates_is_not_above_the_truth_and_covers(kind):
    naive, corrected, covered = simulate(36, 1, 20, 0.3, kind, 60, known=False)
    assert naive > 5
    assert corrected < 1.0
    assert covered >= 0.9


def test_the_expected_maximum_is_that_of_the_tables():
    assert [expected_maximum(count) for count in (1, 2, 10, 100)] == pytest.approx(
        [0, np.pi**-0.5, 1.538753, 2.507594], abs=1e-5
    )


def test_one_candidate_has_no_optimism():
    found = correct([accuracy_of(np.arange(40) % 2.0)], range(40))
    assert (found.corrected, found.optimism) == (0.5, 0.0)
    assert bound(accuracy_of(np.arange(40) % 2.0), range(40), 1).corrected == pytest.approx(0.5)


def test_correlated_candidates_are_bounded_less():
    best = accuracy_of((np.arange(100) % 4 > 0).astype(float))
    lowered = [bound(best, range(100), 20, correlation=each).optimism for each in (0.0, 0.75, 1.0)]
    error = np.std(best.per_clip, ddof=1) / 10
    assert lowered == pytest.approx([error * 1.867475, error * 1.867475 / 2, 0], abs=1e-6)


@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_below_five_clusters_there_is_no_interval(clusters):
    members = (np.arange(40) % clusters).tolist()
    candidates = draw(np.random.default_rng(0), 40, 1, np.full(5, 0.6), 0.3)
    for found in (correct(candidates, members), bound(candidates[0], members, 5)):
        assert found.interval is None
        assert (found.corrected is None) == (clusters == 1)


def test_figures_that_belong_to_the_set_are_corrected_too():
    random, labels = np.random.default_rng(2), ["angry", "happy", "sad"]
    references = {str(n): labels[n % 3] for n in range(90)}
    candidates = [
        score(
            "classification",
            references,
            {
                clip: label if random.random() < 0.5 else str(random.choice(labels))
                for clip, label in references.items()
            },
            main="UAR",
        )
        for _ in range(20)
    ]
    found = correct(candidates, range(90))
    assert found.naive == max(each.value for each in candidates)
    assert 0.6 < found.corrected < found.naive - 0.03  # 2 in 3 are right in truth
    assert found.interval.low < found.corrected < found.interval.high
