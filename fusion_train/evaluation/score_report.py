"""Write the report of a benchmark: report.html, scores.csv, scores.tex and scores.json in one folder.

The first table compares our scores with published baselines, in per cent, with the means. Then follows each set:
interval, counts, classes, confusion matrix, further metrics, tagged clips against the rest, and some wrong clips.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from featurecache.clips.clip_list import ClipList
from featurecache.files.publish import replace_bytes
from featurecache.tables import Cell
from fusion_train.evaluation.benchmarks import Baseline
from fusion_train.evaluation.figures import draw_confusion
from fusion_train.evaluation.scoring import BenchmarkScores, SetScore
from fusion_train.evaluation.wording import NOT_STATED
from fusion_train.evaluation.wrong_answers import SHOWN, cards
from fusion_train.metrics.metric_result import MetricResult, mean_of
from fusion_train.report.page import Page
from fusion_train.report.tables import Table
from fusion_train.statistics.intervals import MIN_CLUSTERS, Interval, clusters_missing, interval_of, jackknife
from fusion_train.statistics.selection import Selection

OURS = "ours"
ASKED = "asked"
CORRECTED = ("corrected", "corrected from", "corrected to", "best of")
"""Further columns for scores that are the best of several candidates, chosen on the same clips."""
ANSWERED = {"choose": "choose, a label among the closed set", "generate": "generate, free text"}
NO_CORRECTION = "no correction is possible from one cluster"


def write_report(scores: BenchmarkScores, folder: Path, clips: ClipList | None = None) -> Path:
    """Write all four files; return the path of the page.

    Args:
        clips: the clips that were scored, whose frames and sounds are shown where the answer is wrong.
    """
    overview = overview_table(scores)
    replace_bytes(folder / "scores.csv", overview.csv().encode())
    replace_bytes(folder / "scores.tex", overview.latex().encode())
    replace_bytes(folder / "scores.json", (json.dumps(as_json(scores), indent=2, ensure_ascii=False) + "\n").encode())
    return page_of(scores, overview, clips).write(folder / "report.html")


def overview_table(scores: BenchmarkScores) -> Table:
    """Return one row per set, then the means; columns for our score, its interval, and each published baseline."""
    baselines, selected = scores.benchmark.published, is_selected(scores)
    corrected = CORRECTED if selected else ()
    table = Table(["set", "figure", OURS, "from", "to", *corrected, ASKED, *map(baseline_name, baselines)])
    for name, benchmark_set in scores.benchmark.sets.items():
        published = [baseline.scores.get(name) for baseline in baselines]
        score = scores.sets.get(name)
        if score is None:
            empty: list[Cell] = [None] * (5 + len(corrected))  # every column between the title and the baselines
            table.add([benchmark_set.title or name, *empty, *published])
            continue
        scale = scale_of(score.scored)
        interval = (score.interval.low * scale, score.interval.high * scale) if score.interval else (None, None)
        table.add(
            [
                score.title,
                figure_name(score.scored),
                score.scored.value * scale,
                *interval,
                *(_corrected(score.selection, scale) if score.selection else ()),
                asked_text(score),
                *published,
            ]
        )
    for name, mean in scores.means.items():
        scale = mean_scale(scores, name)
        value, corrected_value = (None if figure is None else figure * scale for figure in (mean.value, mean.corrected))
        selection_cells: list[Cell] = [corrected_value, None, None, None] if selected else []
        published = [baseline.means.get(name) for baseline in baselines]
        table.add([f"mean: {name}", None, value, None, None, *selection_cells, None, *published])
    table.emphasised = frozenset(range(len(scores.benchmark.sets), len(table.rows)))
    return table


def baseline_name(baseline: Baseline) -> str:
    """Return the name of a baseline, and how its answers were obtained if that is known."""
    return f"{baseline.name} ({baseline.answer})" if baseline.answer else baseline.name


def asked_text(score: SetScore) -> str:
    """Return how a set was answered and the source of its wording, such as `choose, own wording`."""
    return score.answered if score.wording == NOT_STATED else f"{score.answered}, {score.wording}"


def baseline_lines(scores: BenchmarkScores) -> list[str]:
    """Return one line per baseline: source, note, and how its answers were obtained."""
    return [
        ": ".join(filter(None, [baseline.name, "; ".join(filter(None, [baseline.source, baseline.note]))]))
        + f". Its answers: {ANSWERED.get(baseline.answer or '', NOT_STATED)}."
        for baseline in scores.benchmark.published
    ]


def asked_lines(scores: BenchmarkScores) -> list[str]:
    """Return one line per way in which our answers, and those of the baselines, were obtained."""
    ours: dict[str, list[str]] = {}
    for score in scores.sets.values():
        ours.setdefault(asked_text(score), []).append(score.title)
    lines = [f"asked: {way}" + (f" ({', '.join(titles)})" if len(ours) > 1 else "") for way, titles in ours.items()]
    baselines: dict[str, list[str]] = {}
    for baseline in scores.benchmark.published:
        baselines.setdefault(ANSWERED.get(baseline.answer or "", NOT_STATED), []).append(baseline.name)
    return lines + [f"published ({way}): {', '.join(names)}" for way, names in baselines.items()]


def is_selected(scores: BenchmarkScores) -> bool:
    """Whether the sets' answers are the best of several candidates."""
    return any(score.selection for score in scores.sets.values())


def _corrected(selection: Selection, scale: float) -> tuple[float | None, float | None, float | None, int]:
    """Return the values of the columns `CORRECTED`."""
    bounds = (selection.interval.low, selection.interval.high) if selection.interval else (None, None)
    value, low, high = (None if number is None else number * scale for number in (selection.corrected, *bounds))
    return value, low, high, selection.num_candidates


def selection_table(scores: BenchmarkScores) -> Table:
    """Return a table for a terminal: sets whose answers are the best of several, with and without the correction."""
    table = Table(["set", "as chosen", "corrected", "interval 95 %", "best of"])
    for score in scores.sets.values():
        if score.selection is not None:
            scale = scale_of(score.scored)
            value, low, high, count = _corrected(score.selection, scale)
            if value is None:
                interval = NO_CORRECTION
            elif low is None:
                interval = clusters_missing(len(set(score.clusters)), f"{score.clustered_by}s")
            else:
                interval = f"{low:.2f} to {high:.2f}"
            table.add([score.title, score.scored.value * scale, value, interval, count])
    return table


def summary_table(scores: BenchmarkScores) -> Table:
    """Return a table for a terminal: one row per set."""
    table = Table(["set", "figure", OURS, "interval 95 %", "besides", "clips"])
    for score in scores.sets.values():
        scored, scale = score.scored, scale_of(score.scored)
        others = ", ".join(f"{name} {v * scale:.2f}" for name, v in scored.figures.items() if name != scored.main)
        count = int(scored.counts.get("clips", len(scored.clip_ids)))
        table.add([score.title, figure_name(scored), scored.value * scale, interval_text(score), others, count])
    return table


def confusion_table(scored: MetricResult) -> Table:
    """Return the counts of answers, one row per reference label."""
    assert scored.confusion is not None
    table = Table(["", *scored.labels, "(other)"])
    for label, counts in zip(scored.labels, scored.confusion.tolist(), strict=True):
        table.add([label, *counts])
    return table


def page_of(scores: BenchmarkScores, overview: Table, clips: ClipList | None = None) -> Page:
    """Return the page: overview, remarks, then each set."""
    page = Page(scores.benchmark.title, scores.benchmark.about)
    if not scores.comparable:
        page.text(
            "Not every score here is comparable with the published ones; the notes of the sets say why.", "warning"
        )
    page.table(overview)
    for name, mean in scores.means.items():
        if mean.missing:
            page.text(f"{name} is not computed: no answers to {', '.join(mean.missing)}.", "note")
    page.text(
        "Per cent; ratings from 1 to 10, CCC, r and errors as they are. "
        "Intervals: 95 % over clusters of clips (jackknife, t).",
        "note",
    )
    for line in selection_lines(scores):
        page.text(line, "warning")
    for line in (*asked_lines(scores), *baseline_lines(scores)):
        page.text(line, "note")
    for score in scores.sets.values():
        page.heading(score.title)
        add_set(page, score, clips)
    return page


def add_set(page: Page, score: SetScore, clips: ClipList | None = None) -> None:
    """Add the scores of one set to a page, and up to `SHOWN` of its wrong clips if `clips` are at hand."""
    scored, scale = score.scored, scale_of(score.scored)
    figures = ", ".join(f"{name} {value * scale:.2f}" for name, value in scored.figures.items())
    count = len(set(score.clusters))
    page.text(f"{figures}. {scored.main}: {interval_text(score)}, over {count} clusters by {score.clustered_by}.")
    page.text("; ".join(f"{name}: {_listed(value)}" for name, value in scored.counts.items()), "note")
    for note in score.notes:
        page.text(note, "warning")
    for text in score.instructions:
        page.text(f"Asked ({asked_text(score)}): {text}", "note")
    for note in scored.notes:
        page.text(note, "note" if scored.comparable else "warning")
    panels: list[Table | Figure] = [_classes(score)] if scored.per_class else []
    if scored.confusion is not None:
        panels.append(confusion_figure(scored))
    if panels:
        page.side_by_side(*panels)
    if score.also:
        table = Table(["metric of the same answers", "figure", "value"])
        for name, other in score.also.items():
            for figure, value in other.figures.items():
                table.add([name, figure, value * scale_of(other)])
        page.table(table)
    if score.subsets:
        page.table(_subsets(score.subsets))
    if score.wrong and clips is not None:
        page.heading("Wrong answers", level=3)
        shown = score.wrong[:SHOWN]
        page.text(f"{len(shown)} of {len(score.wrong):,}, the most frequent confusions first: label → answer.", "note")
        page.cards(cards(shown, clips))


def _classes(score: SetScore) -> Table:
    """Return the figures of each class, and the interval of its recall where the set has one label per clip."""
    scored = score.scored
    names = list(next(iter(scored.per_class.values())))
    recalls = recall_intervals(score)
    table = Table(["class", *names, *(["recall 95 %"] if recalls else [])])
    if None in recalls.values():
        table.note = f"– fewer than {MIN_CLUSTERS} {score.clustered_by}s of this class, which allow no interval"
    for label, row in scored.per_class.items():
        cells: list[Cell] = [int(row[name]) if name == "clips" else row[name] * 100 for name in names]
        if recalls:
            interval = recalls[label]
            cells.append(f"{interval.low * 100:.0f} to {interval.high * 100:.0f}" if interval else None)
        table.add([label, *cells])
    return table


def recall_intervals(score: SetScore) -> dict[str, Interval | None]:
    """Return the interval of each class's recall over the clusters of its clips; None with too few clusters.

    Empty for a metric whose clips have no single label.
    """
    scored = score.scored
    if scored.outcomes is None:
        return {}
    intervals: dict[str, Interval | None] = {}
    for number, label in enumerate(scored.labels):
        places = np.flatnonzero(scored.outcomes[:, 0] == number)
        right = (scored.outcomes[places, 1] == number).astype(float)
        clusters = [score.clusters[place] for place in places]
        intervals[label] = interval_of(
            jackknife(clusters=clusters, statistic=mean_of(right)["resample"], per_clip=right)
        )
    return intervals


def _subsets(subsets: Mapping[str, MetricResult | str]) -> Table:
    table = Table(["clips", "score", "scored", "figure"])
    for name, subset in subsets.items():
        if isinstance(subset, str):
            table.add([name, None, None, subset])
        else:
            table.add([name, subset.value * scale_of(subset), len(subset.clip_ids), subset.main])
    return table


def confusion_figure(scored: MetricResult) -> Figure:
    """Draw references by predictions."""
    assert scored.confusion is not None
    side = 1.6 + 0.42 * len(scored.labels)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    draw_confusion(figure.subplots(), scored.confusion, scored.labels)
    return figure


def as_json(scores: BenchmarkScores) -> dict[str, Any]:
    """Return everything but the drawings as JSON values; figures are shares."""
    return {
        "bench": scores.benchmark.title,
        "comparable": scores.comparable,
        "published": [baseline.model_dump() for baseline in scores.benchmark.published],
        "sets": {name: _set_json(score) for name, score in scores.sets.items()},
        "means": {
            name: {"value": mean.value, "missing": list(mean.missing), "corrected": mean.corrected}
            for name, mean in scores.means.items()
        },
    }


def _set_json(score: SetScore) -> dict[str, Any]:
    subsets = {
        name: subset if isinstance(subset, str) else _scored_json(subset) for name, subset in score.subsets.items()
    }
    return {
        **_scored_json(score.scored),
        "asked": {"answer": score.answered, "wording": score.wording, "instructions": list(score.instructions)},
        "clip_notes": list(score.notes),
        "interval": {
            **(asdict(score.interval) if score.interval else {"low": None, "high": None, "level": None}),
            "clusters": len(set(score.clusters)),
            "clustered_by": score.clustered_by,
        },
        "selection": score.selection and {**asdict(score.selection), "method": score.selection.method},
        "also": {name: _scored_json(other) for name, other in score.also.items()},
        "subsets": subsets,
    }


def _scored_json(scored: MetricResult) -> dict[str, Any]:
    return {
        "main": scored.main,
        "figures": dict(scored.figures),
        "counts": dict(scored.counts),
        "per_class": {label: dict(row) for label, row in scored.per_class.items()},
        "labels": list(scored.labels),
        "confusion": None if scored.confusion is None else np.asarray(scored.confusion).tolist(),
        "notes": list(scored.notes),
        "comparable": scored.comparable,
    }


def selection_lines(scores: BenchmarkScores) -> list[str]:
    """Return one line per method by which scores were corrected for the choice of the best of several candidates."""
    methods = dict.fromkeys(score.selection.method for score in scores.sets.values() if score.selection)
    return [f"Chosen and scored on the same clips: {method}." for method in methods]


def interval_text(score: SetScore) -> str:
    """Return the interval as text, such as `71.20 to 80.15`, or why there is none."""
    if score.interval is None:
        return clusters_missing(len(set(score.clusters)), f"{score.clustered_by}s")
    scale = scale_of(score.scored)
    return f"{score.interval.low * scale:.2f} to {score.interval.high * scale:.2f}"


def figure_name(scored: MetricResult) -> str:
    """Return the name of the main figure, with the labels predicted per clip if the metric does not punish many."""
    labels = scored.counts.get("labels predicted a clip")
    return scored.main if labels is None else f"{scored.main}, {labels:.2f} labels per clip"


def scale_of(scored: MetricResult) -> int:
    """Return the factor for display: shares are shown in per cent, ratings, CCC and errors as they are."""
    return 100 if scored.is_share else 1


def mean_scale(scores: BenchmarkScores, mean: str) -> int:
    """Return the factor for display of a mean of main figures: per cent if all of them are shares."""
    members = [scores.sets[member] for member in scores.benchmark.means[mean] if member in scores.sets]
    return 100 if all(member.scored.is_share for member in members) else 1


def _listed(value: Any) -> str:
    return ", ".join("–" if item is None else str(item) for item in value) if isinstance(value, list) else str(value)
