"""The report of a bench: report.html, scores.csv, scores.tex and scores.json in one folder.

The first table has ours beside published rivals, in per cent, with the means; then each set: interval, counts by which
to judge the figure, classes, confusion matrix, further metrics, tagged clips against the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from featurecache.files.publish import replace_bytes
from fusion_train.evaluation.benchmarks import Baseline
from fusion_train.evaluation.figures import draw_confusion
from fusion_train.evaluation.scoring import BenchmarkScores, SetScore
from fusion_train.evaluation.wording import NOT_STATED
from fusion_train.metrics.scored import Scored
from fusion_train.report.page import Page
from fusion_train.report.tables import Cell, Table
from fusion_train.statistics.intervals import clusters_missing
from fusion_train.statistics.selection import Selection

OURS = "ours"
ASKED = "asked"
CORRECTED = ("corrected", "corrected from", "corrected to", "best of")
"""Columns of scores that are the best of several, chosen on the same clips."""
ANSWERED = {"choose": "choose, a label among the closed set", "generate": "generate, free text"}
NO_CORRECTION = "no correction is possible from one cluster"


def write_report(scores: BenchmarkScores, folder: Path) -> Path:
    """Write all four files; returns the page."""
    overview = overview_table(scores)
    replace_bytes(folder / "scores.csv", overview.csv().encode())
    replace_bytes(folder / "scores.tex", overview.latex().encode())
    replace_bytes(folder / "scores.json", (json.dumps(as_json(scores), indent=2, ensure_ascii=False) + "\n").encode())
    return page_of(scores, overview).write(folder / "report.html")


def overview_table(scores: BenchmarkScores) -> Table:
    """One row a set, then the means; one column for us, its interval, and one for each rival."""
    baselines, selected = scores.benchmark.published, is_selected(scores)
    corrected = CORRECTED if selected else ()
    table = Table(["set", "figure", OURS, "from", "to", *corrected, ASKED, *map(rival_name, baselines)])
    rows: list[list[Cell]] = []
    for name, asked in scores.benchmark.sets.items():
        published = [baseline.scores.get(name) for baseline in baselines]
        each = scores.sets.get(name)
        if each is None:
            rows.append([asked.title or name, None, None, None, None, None, *[None] * len(corrected), *published])
            continue
        scale = scale_of(each.scored)
        interval = (each.interval.low * scale, each.interval.high * scale) if each.interval else (None, None)
        rows.append(
            [
                each.title,
                figure_name(each.scored),
                each.scored.value * scale,
                *interval,
                *(_corrected(each.selection, scale) if each.selection else ()),
                asked_text(each),
                *published,
            ]
        )
    for name, mean in scores.means.items():
        value, lowered = (None if share is None else share * 100 for share in (mean.value, mean.corrected))
        beside = [lowered, None, None, None] if selected else []
        rows.append(
            [
                f"mean: {name}",
                None,
                value,
                None,
                None,
                *beside,
                None,
                *(baseline.means.get(name) for baseline in baselines),
            ]
        )
    table.rows = rows  # type: ignore[assignment]
    table.emphasised = frozenset(range(len(scores.benchmark.sets), len(rows)))
    return table


def rival_name(baseline: Baseline) -> str:
    """A rival's name, and how its answers came about where that is known."""
    return f"{baseline.name} ({baseline.answer})" if baseline.answer else baseline.name


def asked_text(each: SetScore) -> str:
    """`choose, own wording`."""
    return each.answered if each.wording == NOT_STATED else f"{each.answered}, {each.wording}"


def rival_lines(scores: BenchmarkScores) -> list[str]:
    """Of each rival: source, what must be known, how its answers came about."""
    return [
        ": ".join(filter(None, [baseline.name, "; ".join(filter(None, [baseline.source, baseline.note]))]))
        + f". Its answers: {ANSWERED.get(baseline.answer or '', NOT_STATED)}."
        for baseline in scores.benchmark.published
    ]


def asked_lines(scores: BenchmarkScores) -> list[str]:
    """How our answers and those of the rivals came about, one line per way."""
    ours: dict[str, list[str]] = {}
    for each in scores.sets.values():
        ours.setdefault(asked_text(each), []).append(each.title)
    lines = [f"asked: {way}" + (f" ({', '.join(titles)})" if len(ours) > 1 else "") for way, titles in ours.items()]
    baselines: dict[str, list[str]] = {}
    for baseline in scores.benchmark.published:
        baselines.setdefault(ANSWERED.get(baseline.answer or "", NOT_STATED), []).append(baseline.name)
    return lines + [f"published ({way}): {', '.join(names)}" for way, names in baselines.items()]


def is_selected(scores: BenchmarkScores) -> bool:
    """Whether the sets' answers are the best of several candidates."""
    return any(each.selection for each in scores.sets.values())


def _corrected(found: Selection, scale: float) -> list[Cell]:
    """The columns `CORRECTED`."""
    bounds = (found.interval.low, found.interval.high) if found.interval else (None, None)
    numbers = (found.corrected, *bounds)
    return [*(None if number is None else number * scale for number in numbers), found.num_candidates]


def selection_table(scores: BenchmarkScores) -> Table:
    """For a terminal: one row per set whose answers are the best of several, with and without the correction."""
    rows: list[Sequence[Cell]] = []
    for each in scores.sets.values():
        if each.selection is not None:
            scale = scale_of(each.scored)
            value, low, high, count = _corrected(each.selection, scale)
            between = (
                NO_CORRECTION
                if value is None
                else clusters_missing(len(set(each.clusters)), f"{each.clustered_by}s")
                if low is None
                else f"{low:.2f} to {high:.2f}"
            )
            rows.append([each.title, each.scored.value * scale, value, between, count])
    return Table(["set", "as chosen", "corrected", "interval 95 %", "best of"], rows)


def summary_table(scores: BenchmarkScores) -> Table:
    """What a terminal has room for: one row a set."""
    rows: list[list[Cell]] = []
    for each in scores.sets.values():
        scored, scale = each.scored, scale_of(each.scored)
        others = ", ".join(f"{name} {v * scale:.2f}" for name, v in scored.figures.items() if name != scored.main)
        interval = interval_text(each)
        count = int(scored.counts.get("clips", len(scored.clip_ids)))
        rows.append([each.title, figure_name(scored), scored.value * scale, interval, others, count])
    return Table(["set", "figure", OURS, "interval 95 %", "besides", "clips"], rows)  # type: ignore[arg-type]


def confusion_table(scored: Scored) -> Table:
    """Counts of reference by answer."""
    assert scored.confusion is not None
    rows = [[label, *counts] for label, counts in zip(scored.labels, scored.confusion.tolist(), strict=True)]
    return Table(["", *scored.labels, "(other)"], rows)


def page_of(scores: BenchmarkScores, overview: Table) -> Page:
    page = Page(scores.benchmark.title, scores.benchmark.about)
    if not scores.comparable:
        page.text("Not every score here may stand beside the published ones; the notes of the sets say why.", "warning")
    page.table(overview)
    for name, mean in scores.means.items():
        if mean.missing:
            page.text(f"{name} is not formed: no answers to {', '.join(mean.missing)}.", "note")
    page.text("Per cent, except ratings from 1 to 10. Intervals: 95 % over clusters of clips (jackknife, t).", "note")
    for line in selection_lines(scores):
        page.text(line, "warning")
    for line in (*asked_lines(scores), *rival_lines(scores)):
        page.text(line, "note")
    for each in scores.sets.values():
        _add_set(page, each)
    return page


def _add_set(page: Page, each: SetScore) -> None:
    scored, scale = each.scored, scale_of(each.scored)
    page.heading(each.title)
    figures = ", ".join(f"{name} {value * scale:.2f}" for name, value in scored.figures.items())
    count = len(set(each.clusters))
    page.text(f"{figures}. {scored.main}: {interval_text(each)}, over {count} clusters by {each.clustered_by}.")
    page.text("; ".join(f"{name}: {_listed(value)}" for name, value in scored.counts.items()), "note")
    for note in each.notes:
        page.text(note, "warning")
    for text in each.instructions:
        page.text(f"Asked ({asked_text(each)}): {text}", "note")
    for note in scored.notes:
        page.text(note, "note" if scored.comparable else "warning")
    parts: list[Table | Figure] = [_classes(scored)] if scored.per_class else []
    if scored.confusion is not None:
        parts.append(_confusion(scored))
    if parts:
        page.side_by_side(*parts)
    if each.also:
        rows = [
            [name, figure, value * scale_of(other)]
            for name, other in each.also.items()
            for figure, value in other.figures.items()
        ]
        page.table(Table(["metric of the same answers", "figure", "value"], rows))
    if each.subsets:
        page.table(_subsets(each.subsets))


def _classes(scored: Scored) -> Table:
    names = list(next(iter(scored.per_class.values())))
    rows: list[list[Cell]] = [
        [label, *(int(row[n]) if n == "clips" else row[n] * 100 for n in names)]
        for label, row in scored.per_class.items()
    ]
    return Table(["class", *names], rows)  # type: ignore[arg-type]


def _subsets(subsets: Mapping[str, Scored | str]) -> Table:
    rows: list[list[Cell]] = []
    for name, part in subsets.items():
        if isinstance(part, str):
            rows.append([name, None, None, part])
        else:
            rows.append([name, part.value * scale_of(part), len(part.clip_ids), part.main])
    return Table(["clips", "score", "scored", "figure"], rows)  # type: ignore[arg-type]


def _confusion(scored: Scored) -> Figure:
    assert scored.confusion is not None
    side = 1.6 + 0.42 * len(scored.labels)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    draw_confusion(figure.subplots(), scored.confusion, scored.labels)
    return figure


def as_json(scores: BenchmarkScores) -> dict[str, Any]:
    """Everything but drawings, as shares."""
    return {
        "bench": scores.benchmark.title,
        "comparable": scores.comparable,
        "published": [baseline.model_dump() for baseline in scores.benchmark.published],
        "sets": {name: _set_json(each) for name, each in scores.sets.items()},
        "means": {
            name: {"value": mean.value, "missing": list(mean.missing), "corrected": mean.corrected}
            for name, mean in scores.means.items()
        },
    }


def _set_json(each: SetScore) -> dict[str, Any]:
    subsets = {name: part if isinstance(part, str) else _scored_json(part) for name, part in each.subsets.items()}
    return {
        **_scored_json(each.scored),
        "asked": {"answer": each.answered, "wording": each.wording, "instructions": list(each.instructions)},
        "clip_notes": list(each.notes),
        "interval": {
            **(asdict(each.interval) if each.interval else {"low": None, "high": None, "level": None}),
            "clusters": len(set(each.clusters)),
            "clustered_by": each.clustered_by,
        },
        "selection": each.selection and {**asdict(each.selection), "method": each.selection.method},
        "also": {name: _scored_json(other) for name, other in each.also.items()},
        "subsets": subsets,
    }


def _scored_json(scored: Scored) -> dict[str, Any]:
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
    """How scores were corrected that are the best of several; the same method is said once."""
    methods = dict.fromkeys(each.selection.method for each in scores.sets.values() if each.selection)
    return [f"Chosen and scored on the same clips: {method}." for method in methods]


def interval_text(each: SetScore) -> str:
    """`71.20 to 80.15`, or why there is none."""
    if each.interval is None:
        return clusters_missing(len(set(each.clusters)), f"{each.clustered_by}s")
    scale = scale_of(each.scored)
    return f"{each.interval.low * scale:.2f} to {each.interval.high * scale:.2f}"


def figure_name(scored: Scored) -> str:
    """The main figure; with it how many labels were predicted, where naming many is not punished."""
    labels = scored.counts.get("labels predicted a clip")
    return scored.main if labels is None else f"{scored.main}, {labels:.2f} labels a clip"


def scale_of(scored: Scored) -> int:
    """Shares are shown in per cent, ratings as they are."""
    return 100 if scored.highest == 1 else 1


def _listed(value: Any) -> str:
    return ", ".join("–" if item is None else str(item) for item in value) if isinstance(value, list) else str(value)
