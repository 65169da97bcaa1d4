"""How often verdicts of sweeps are wrong, by simulation: equal variants called different, and intervals that miss.

Two variants answer the same clips (six classes, from 40 to 4 per cent of them); an answer is right with a chance that
the clip, its cluster and the seed decide. `null`: both variants are equal, every verdict is false. `cover`: each
variant is better in some clusters, at random, so that the difference over all clusters that there might be is 0: how
often the interval misses it. `power`: one is better by `--effect` points. Three methods are set side by side: the one
that sweeps use; the conservative sum of both t intervals (modified large sample); and a percentile bootstrap over seeds
and clusters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
from scipy import stats

from fusion_train.statistics.comparison import two_way_variance
from fusion_train.statistics.intervals import MAX_GROUPS, Jackknife

CLASSES = np.array([0.40, 0.25, 0.15, 0.10, 0.06, 0.04])
CLIPS = (36, 300, 1000, 2600)
CLUSTERS = {"alone": None, "30 dialogues": [1 / 30] * 30, "10": [0.1] * 10, "5 unequal": [0.40, 0.25, 0.15, 0.12, 0.08]}
SEED_SDS = (0.0, 0.5, 1.0, 2.0)
SEEDS = (2, 3, 5)
FIGURES = ("accuracy", "UAR", "weighted F1")
METHODS = ("used", "sum", "bootstrap")
BOOTSTRAP_DRAWS = 300

OPTIONS = [
    click.Option(["--repetitions"], type=int, default=1000, show_default=True, help="Per cell."),
    click.Option(["--world"], type=click.Choice(["null", "cover", "power"]), default="null", show_default=True),
    click.Option(["--effect"], type=float, default=4.0, show_default=True, help="Points, for --world power."),
    click.Option(["--methods"], default="used", show_default=True, help="Of " + ", ".join(METHODS) + "."),
    click.Option(["--clips", "only_clips"], type=int, default=None, help="One number of clips alone."),
]


def measure(repetitions: int, world: str, effect: float, methods: str, only_clips: int | None = None) -> dict[str, Any]:
    """Share of verdicts (null, power) or of intervals that miss (cover), by cell; and the worst per figure."""
    chosen = tuple(name.strip() for name in methods.split(","))
    shares: dict[str, float] = {}
    for clips, clusters, seed_sd in cells(only_clips):
        counted = run_cell(clips, clusters, seed_sd, world, effect / 100, repetitions, chosen)
        shares |= {f"{clips} clips, {clusters}, sd {seed_sd:g}, {key}": value for key, value in counted.items()}
        click.echo(json.dumps({"cell": [clips, clusters, seed_sd], **counted}), err=True)
    worst = {
        f"worst {method}, {figure}, {seeds} seeds": _worst(shares, f", {method}, {figure}, {seeds} seeds", world)
        for method in chosen
        for figure in FIGURES
        for seeds in SEEDS
    }
    return shares | worst


def cells(only_clips: int | None = None) -> Iterator[tuple[int, str, float]]:
    """Every combination of clips, clusters and standard deviation over seeds in points."""
    for clips in CLIPS if only_clips is None else (only_clips,):
        for clusters in CLUSTERS:
            for seed_sd in SEED_SDS:
                yield clips, clusters, seed_sd


def run_cell(
    clips: int, clusters: str, seed_sd: float, world: str, effect: float, repetitions: int, methods: tuple[str, ...]
) -> dict[str, float]:
    """Share of repetitions in which the interval leaves out 0."""
    random = np.random.default_rng([clips, list(CLUSTERS).index(clusters), round(10 * seed_sd)])
    excluded: dict[str, list[bool]] = {}
    for _ in range(repetitions):
        counts = simulate(random, clips, clusters, seed_sd / 100, world, effect)
        for figure in FIGURES:
            for seeds in SEEDS:
                sides = [[_jackknife(figure, counts[side, seed]) for seed in range(seeds)] for side in range(2)]
                for method in methods:
                    low, high = interval(method, sides, counts[:, :seeds], figure, random)
                    excluded.setdefault(f"{method}, {figure}, {seeds} seeds", []).append(not low <= 0 <= high)
    return {key: round(float(np.mean(values)), 4) for key, values in excluded.items()}


def simulate(
    random: np.random.Generator, clips: int, clusters: str, seed_sd: float, world: str, effect: float
) -> np.ndarray:
    """(2, S, C, 6, 6) counts of reference by answer, per variant, seed and cluster."""
    shares = CLUSTERS[clusters]
    if shares is None:
        cluster_of = np.arange(clips)
    else:
        cluster_of = np.minimum(np.searchsorted(np.cumsum(shares), (np.arange(clips) + 0.5) / clips), len(shares) - 1)
    count = int(cluster_of.max()) + 1
    labels = random.choice(len(CLASSES), p=CLASSES, size=clips)
    alike = 0.5 if shares is not None else 0.0
    ability = 0.6 + random.normal(0, alike, count)[cluster_of] + random.normal(0, 1.5, clips)
    by_variant = random.normal(0, 0.4, (2, count))[:, cluster_of] if world == "cover" else np.zeros((2, clips))
    chance = 1 / (1 + np.exp(-(ability + by_variant)))  # (2, clips)
    if world == "power":
        chance[0] += effect
    shift = random.normal(0, seed_sd, (2, max(SEEDS)))
    chances = np.clip(chance[:, None, :] + shift[:, :, None], 0, 1)
    right = random.random(chances.shape) < chances
    wrong = (labels + random.integers(1, len(CLASSES), chances.shape)) % len(CLASSES)
    answers = np.where(right, labels, wrong)
    groups = cluster_of
    if count > MAX_GROUPS:  # as figures of a whole set are left out
        groups, count = (np.random.default_rng(0).permutation(count) % MAX_GROUPS)[cluster_of], MAX_GROUPS
    size = len(CLASSES)
    cells_of = (groups * size + labels) * size + answers
    runs = np.arange(2 * max(SEEDS)).reshape(2, -1, 1) * count * size * size
    counts = np.bincount((runs + cells_of).ravel(), minlength=2 * max(SEEDS) * count * size * size)
    return counts.reshape(2, max(SEEDS), count, size, size).astype(float)


def figure_of(figure: str, counts: np.ndarray) -> np.ndarray:
    """(…, 6, 6) counts -> (…,) figure."""
    right, support, chosen = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)
    if figure == "accuracy":
        return right.sum(-1) / support.sum(-1)
    if figure == "UAR":
        seen = support > 0
        return (right / np.maximum(support, 1)).sum(-1) / seen.sum(-1)
    return (2 * right / np.maximum(support + chosen, 1e-12) * support).sum(-1) / support.sum(-1)


def _jackknife(figure: str, counts: np.ndarray) -> Jackknife:
    """(C, 6, 6) counts of one run."""
    total = counts.sum(0)
    return Jackknife(float(figure_of(figure, total)), figure_of(figure, total - counts), len(counts))


def interval(
    method: str, sides: list[list[Jackknife]], counts: np.ndarray, figure: str, random: np.random.Generator
) -> tuple[float, float]:
    """The 95 % interval of the difference by one of the methods."""
    difference = float(np.mean([each.value for each in sides[0]]) - np.mean([each.value for each in sides[1]]))
    if method == "bootstrap":
        return _bootstrap(counts, figure, random)
    if method == "used":
        variance, degrees, _ = two_way_variance(sides)
        reach = stats.t.ppf(0.975, degrees) * variance**0.5
        return difference - reach, difference + reach
    seeds, count = len(sides[0]), len(sides[0][0].without)
    values = [np.array([each.value for each in side]) for side in sides]
    pseudo = [np.mean([each.pseudo_values for each in side], axis=0) for side in sides]
    of_seeds = sum(each.var(ddof=1) for each in values) / seeds
    of_clusters = (pseudo[0] - pseudo[1]).var(ddof=1) / count
    t_seeds, t_clusters = stats.t.ppf(0.975, 2 * seeds - 2), stats.t.ppf(0.975, count - 1)
    reach = (t_seeds**2 * of_seeds + t_clusters**2 * of_clusters) ** 0.5
    return difference - reach, difference + reach


def _bootstrap(counts: np.ndarray, figure: str, random: np.random.Generator) -> tuple[float, float]:
    _, seeds, count = counts.shape[:3]
    drawn = []
    for _ in range(BOOTSTRAP_DRAWS):
        weights = np.bincount(random.integers(count, size=count), minlength=count).astype(float)
        scores = figure_of(figure, np.einsum("vsckl,c->vskl", counts, weights))
        drawn.append(
            scores[0, random.integers(seeds, size=seeds)].mean() - scores[1, random.integers(seeds, size=seeds)].mean()
        )
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _worst(shares: dict[str, float], ending: str, world: str) -> float:
    """Most (least, for power) over cells; intervals are promised from 10 clusters on."""
    values = [
        value for key, value in shares.items() if key.endswith(ending) and not (world == "cover" and "5 unequal" in key)
    ]
    return min(values) if world == "power" else max(values)
