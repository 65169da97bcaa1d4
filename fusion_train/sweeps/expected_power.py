"""The least difference that a sweep can find, before it runs: from a pilot sweep, or from assumptions in its file.

The least detectable difference counts seeds and clusters of clips, at the strictest step of Holm's correction, with
80 % power. A pilot (`pilot: FOLDER`) gives the measured variances of an earlier sweep by the same figure. Without one
they are assumed (`assume:`): the standard deviation of a score over seeds, and the share of clips that two variants
answer differently; half of that is the same with every seed. A figure that weighs classes alike (UAR, macro F1) has a
larger variance where classes are rare; by how much follows from the class counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from featurecache.clips.clip_list import load_clips
from fusion_train.data.answers import answers_of, with_answers
from fusion_train.data.halves import clusters_in, clusters_of
from fusion_train.errors import ConfigError
from fusion_train.metrics.metric_result import MetricResult
from fusion_train.prompts.prompt import find_task
from fusion_train.statistics.comparison import Variance, detectable
from fusion_train.statistics.intervals import LEVEL, MIN_CLUSTERS
from fusion_train.sweeps.sweep_file import Assumptions, Sweep

RESULTS = "results.json"
ALIKE_WITHIN_CLUSTER = 0.05
"""Assumed correlation of the differences of two clips of one cluster."""
BY_CLASS = ("UAR", "macro F1")


@dataclass(frozen=True)
class Expectation:
    """The least difference that a sweep can find, as a share, and its basis."""

    least: float | None
    basis: str
    """Where the variances come from, as text."""


def expect(
    sweep: Sweep, references: MetricResult, labels: Sequence[Hashable], clusters: Sequence[Hashable]
) -> Expectation:
    """Return the least detectable difference of a sweep.

    Args:
        references: the right answers, scored.
        labels, clusters: (clips,) the right answer and the cluster of each clip.

    Raises:
        ConfigError: the pilot is no finished sweep, or compares another figure.
    """
    num_seeds = min(Counter(trial.variant for trial in sweep.trials).values())
    num_clusters = len(set(clusters))
    strict = 1 - (1 - LEVEL) / max(len(sweep.variants) - 1, 1)
    if sweep.pilot is not None:
        variance, basis = read_pilot(Path(sweep.pilot), references.main), f"variances measured by {sweep.pilot}"
    else:
        variance = assumed_variance(sweep.assume, references.main, labels, num_clusters)
        basis = (
            f"assuming {sweep.assume.seed_sd:g} points of standard deviation over seeds and "
            f"{sweep.assume.disagreement:.0%} of clips answered differently".replace("%", " %")
        )
    return Expectation(detectable(variance, num_seeds, num_clusters, level=strict), basis)


def said_before(expected: Expectation, figure: str, num_seeds: int, num_clusters: int, clustered_by: str) -> str:
    """Return one sentence for the terminal and the page."""
    counted = f"{num_seeds} seed{'s' if num_seeds != 1 else ''} and {num_clusters:,} {clustered_by}"
    if expected.least is None:
        return f"no verdict is possible from {counted}: at least 2 seeds and {MIN_CLUSTERS} {clustered_by} are needed"
    return (
        f"differences of {figure} from about {expected.least * 100:.1f} points can be told from chance with "
        f"{counted}, {expected.basis}"
    )


def assumed_variance(assume: Assumptions, figure: str, labels: Sequence[Hashable], num_clusters: int) -> Variance:
    """Return the variances that the sweep file assumes."""
    size = len(labels) / num_clusters
    per_cluster = assume.disagreement * (1 + (size - 1) * ALIKE_WITHIN_CLUSTER) / size
    if figure in BY_CLASS:
        counts = Counter(labels).values()
        per_cluster *= len(labels) / len(counts) ** 2 * sum(1 / count for count in counts)
    return Variance((assume.seed_sd / 100) ** 2, per_cluster / 2, per_cluster / 4)


def read_pilot(folder: Path, figure: str) -> Variance:
    """Return the mean variances over the comparisons of a finished sweep.

    Raises:
        ConfigError: no such sweep, none of its comparisons has variances, or it compares another figure.
    """
    try:
        results = json.loads((folder / RESULTS).read_text())
        measured = [comparison["variance"] for comparison in results["comparisons"] if comparison["variance"]]
        main = results["sweep"]["main"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"pilot: {folder}",
            expected=f"the folder of a finished sweep with its {RESULTS}",
            got="none",
            next_step="Run fusion-train report on that sweep, or state seed_sd under assume:.",
        ) from None
    if main != figure or not measured:
        raise ConfigError(
            f"pilot: {folder}",
            expected=f"a sweep that compares {figure}, with 2 or more seeds",
            got=f"one that compares {main}" if main != figure else "no measured variance",
        )
    return Variance(
        **{name: fmean(comparison[name] for comparison in measured) for name in ("seeds", "clusters", "interaction")}
    )


def power_notice(sweep: Sweep, clips: str) -> str:
    """Return the sentence on the least detectable difference, from the seeds and the clusters of clips.

    Raises:
        DataError: references that the metric cannot take.
        ConfigError: a pilot that cannot be used.
    """
    task = find_task(sweep.task)
    scored = with_answers(load_clips(clips).in_split(sweep.split), task)
    answers = {clip.id: answers_of(clip, task)[0].text for clip in scored}
    references = sweep.measure.scored(
        [{"id": clip_id, "reference": answer, "prediction": answer} for clip_id, answer in answers.items()]
    )
    clustered_by, cluster_names = clusters_in(scored)
    ids = references.clip_ids
    clusters = clusters_of(ids, cluster_names)
    power = expect(sweep, references, [str(answers[clip_id]) for clip_id in ids], clusters)
    num_seeds, comparisons = len({trial.seed for trial in sweep.trials}), len(sweep.variants) - 1
    return (
        f"{sweep.task} on {len(ids)} clips of {sweep.split}, {comparisons} "
        f"comparison{'s' if comparisons != 1 else ''} with {sweep.reference}: "
        + said_before(power, references.main, num_seeds, len(set(clusters)), clustered_by)
    )
