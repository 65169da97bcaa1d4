"""The report of a sweep: report.html, results.csv, results.tex and results.json beside its runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from featurecache.files.publish import replace_bytes
from featurecache.outside_text import figure_text
from featurecache.tables import Cell
from fusion_train.evaluation.wording import asked_in_training
from fusion_train.report.page import Page
from fusion_train.report.tables import Table
from fusion_train.run import Run
from fusion_train.statistics.comparison import Comparison
from fusion_train.sweeps.results import Results
from fusion_train.sweeps.sweep_file import PROBE
from fusion_train.sweeps.trials import DONE, Outcome

POINT, MEAN = "#0072B2", "#D55E00"
"""Colours of Okabe and Ito's palette, which colour-blind readers can tell apart."""
COLORS = 10
"""Number of colours of matplotlib; further variants are dashed."""
REFERENCE = "the reference"
SPREAD = "± over seeds"
COMPARED = ("difference", "from", "to", "p", "p (Holm)")
VERDICT = "against the reference"


def write_report(results: Results, out: Path | None = None) -> Path:
    """Write all files into the sweep's folder, the page to `out` if given; returns the page."""
    variants = variant_table(results)
    folder = results.folder
    replace_bytes(folder / "results.csv", variants.csv().encode())
    replace_bytes(folder / "results.tex", paper_table(results).latex().encode())
    replace_bytes(folder / "results.json", (json.dumps(as_json(results), indent=2) + "\n").encode())
    return page_of(results, variants).write(out or folder / "report.html")


def variant_table(results: Results) -> Table:
    """One row per variant, best first: scores in per cent, time, and the difference to the reference in points."""
    verdicts = {comparison.variant: comparison for comparison in results.comparisons}
    rows: list[list[Cell]] = []
    for variant in results.about["variants"]:
        outcomes = results.of(variant)
        score, *other_figures = (results.mean_and_spread(variant, name) for name in results.figures)
        compared = verdicts.get(variant)
        finished = sum(outcome.state == DONE for outcome in outcomes)
        verdict = (
            REFERENCE if variant == results.about["reference"] else compared.verdict if compared else _states(outcomes)
        )
        rows.append(
            [
                variant,
                score[0] * 100 if score else None,
                score[1] * 100 if score and score[1] is not None else None,
                *(comparison[0] * 100 if comparison else None for comparison in other_figures),
                f"{finished} of {len(outcomes)}",
                sum(outcome.seconds or 0.0 for outcome in outcomes),
                *(_compared(compared) if compared else [None] * len(COMPARED)),
                f"{results.weights}; {results.optimism}" if results.optimism else results.weights,
                verdict,
            ]
        )
    rows.sort(key=lambda row: -1.0 if row[1] is None else float(row[1]), reverse=True)
    header = [
        "variant",
        results.figures[0],
        SPREAD,
        *results.figures[1:],
        "seeds",
        "seconds",
        *COMPARED,
        "weights",
        VERDICT,
    ]
    return Table(
        header,
        rows,
        note=results.how_scored,
        warned=results.optimism is not None,
        emphasised=frozenset(number for number, row in enumerate(rows) if row[0] == results.about["reference"]),
    )


def _compared(comparison: Comparison) -> list[Cell]:
    """The columns `COMPARED`."""
    bounds = (
        [bound * 100 for bound in (comparison.interval.low, comparison.interval.high)]
        if comparison.interval
        else [None, None]
    )
    return [comparison.difference * 100, *bounds, comparison.p, comparison.p_holm]


def page_of(results: Results, variants: Table) -> Page:
    about = results.about
    clips = max((len(entry.clip_ids) for entry in results.scored.values()), default=0)
    page = Page(
        f"Sweep {about['name']}",
        f"{about['task']} on {clips} clips of {about['split']}, "
        f"{results.measure.main}; "
        f"every variant is compared with {about['reference']} on the same clips.",
    )
    failed = [outcome for outcome in results.outcomes if outcome.error]
    if failed:
        page.text(f"{len(failed)} of {len(results.outcomes)} trials failed; their errors stand below.", "warning")
    page.table(variants.only([name for name in variants.header if name not in (*COMPARED, "weights", VERDICT)]))
    page.text("Per cent, means over seeds.", "note")
    for note in results.notes:
        page.text(note, "note")
    page.heading(f"Against {about['reference']}")
    page.table(variants.only(["variant", *COMPARED, VERDICT]))
    page.text(
        f"Points of {results.measure.main}. Intervals and p (two-sided t) hold for other clips and other seeds: "
        f"both {results.clustered_by} and seeds are random effects; p is corrected by Holm for all comparisons "
        f"({len(results.comparisons)}). Told before the run: {about.get('told_before', 'nothing')}.",
        "note",
    )
    if results.scored:
        page.drawing(
            draw_scores(results),
            f"Left: {results.measure.main} of every seed, and the mean. Right: "
            f"difference to {about['reference']} in points, with 95 % intervals.",
        )
    if any(entry.variance for entry in results.comparisons):
        page.table(_sources(results))
        page.text(
            "Standard deviations in points: of a variant's score over seeds, without the noise of clips; and of "
            "the difference, as far as seeds and clips make it. More clips do not lower the first, more seeds "
            "do not lower the last.",
            "note",
        )
    for caveat in results.caveats:
        page.text(caveat, "warning")
    curves = _curves(results)
    if curves is not None:
        page.heading("Training")
        page.drawing(curves, "Loss per supervised token and held-out accuracy, means over seeds.")
    if results.rungs:
        page.heading("Stopping early")
        page.table(_rungs(results))
        for rung, value in results.correlations.items():
            correlation = "too few finished to tell" if value is None else f"{value:.2f}"
            page.text(f"Rank correlation of the scores {_at(rung)} with those at the end: {correlation}.")
        page.text(
            "Held-out accuracy before the end, in per cent, mean over seeds. What was stopped was behind there, "
            "which is not the same as worse.",
            "note",
        )
    page.heading("Settings")
    page.table(_settings(results))
    page.heading("Trials")
    page.table(_trials(results))
    for outcome in failed:
        page.text(f"{outcome.name}: {outcome.error}", "warning")
    return page


def _settings(results: Results) -> Table:
    """Settings that the trials share; where values differ, all of them."""
    configs = [
        Run(results.folder / outcome.name).config()
        for outcome in results.outcomes
        if (results.folder / outcome.name / "config.yaml").is_file()
    ]
    shown: dict[str, list[str]] = {}
    for config in configs:
        values = {
            "stage": config.stage,
            "steps": config.optim.steps,
            "clips per step": config.optim.batch_size,
            "learning rate": config.optim.lr,
            "language model": config.model.llm or "none",
            "features": ", ".join(filter(None, config.features.used.values())),
            "trained on": config.data.train_split,
            "checkpoints chosen on": config.data.eval_split or "none",
            "scored on": results.about["split"],
            "clips asked": asked_in_training(config, results.about["task"]),
            "weights scored": results.weights,
        }
        for name, value in values.items():
            shown.setdefault(name, []).append(str(value))
    rows = [
        [name, values[0] if len(set(values)) == 1 else "differs: " + ", ".join(dict.fromkeys(values))]
        for name, values in shown.items()
    ]
    return Table(["setting", "value"], rows)


def as_json(results: Results) -> dict[str, object]:
    return {
        "sweep": {key: results.about[key] for key in ("name", "task", "metric", "main", "split", "reference")}
        | {"weights": results.weights, "optimism": results.optimism},
        "trials": [asdict(entry) | {"figures": _figures(results, entry)} for entry in results.outcomes],
        "comparisons": [{**asdict(entry), "verdict": entry.verdict} for entry in results.comparisons],
        "rank_correlations": results.correlations,
    }


def _trials(results: Results) -> Table:
    header = ["trial", "state", "step", *results.figures, "trained with", "seconds"]
    rows: list[list[Cell]] = []
    for outcome in results.outcomes:
        figures = _figures(results, outcome)
        percent = [figures[name] * 100 if figures else None for name in results.figures]
        others = None if outcome.together is None else outcome.together - 1
        rows.append([outcome.name, outcome.state, outcome.step, *percent, others, outcome.seconds])
    return Table(header, rows)


def _figures(results: Results, outcome: Outcome) -> dict[str, float]:
    """Figures as shares; empty for a trial that is not done."""
    scored = results.scored.get(outcome.name)
    return dict(scored.figures) if scored else {}


def _rungs(results: Results) -> Table:
    """One row per variant, in the order of the file: its score at every rung, and its state."""
    rows: list[list[Cell]] = []
    for variant in results.about["variants"]:
        early = [scores.get(variant) for scores in results.rungs.values()]
        end = results.mean_and_spread(variant, results.measure.main)
        shares = [*early, end[0] if end else None]
        rows.append(
            [variant, *(None if share is None else share * 100 for share in shares), _states(results.of(variant))]
        )
    header = ["variant", *map(_at, results.rungs), f"{results.measure.main} at the end", "state"]
    return Table(header, rows)


def _at(rung: str) -> str:
    return "in the probe" if rung == PROBE else f"after step {rung}"


def paper_table(results: Results) -> Table:
    """The table for a paper: mean ± sd over n seeds, difference with interval, p; one row per variant."""
    compared = {comparison.variant: comparison for comparison in results.comparisons}
    rows: list[list[Cell]] = []
    for variant in results.about["variants"]:
        score = results.mean_and_spread(variant, results.measure.main)
        if score is None:
            continue
        count = sum(outcome.name in results.scored for outcome in results.of(variant))
        spread = f" ± {score[1] * 100:.2f}" if score[1] is not None else ""
        comparison = compared.get(variant)
        difference = None if comparison is None else f"{comparison.difference * 100:+.2f}"
        if comparison is not None and comparison.interval is not None:
            difference = f"{difference} [{comparison.interval.low * 100:.2f}, {comparison.interval.high * 100:.2f}]"
        p = (
            None
            if comparison is None or comparison.p_holm is None
            else "< 0.001"
            if comparison.p_holm < 0.001
            else f"{comparison.p_holm:.3f}"
        )
        rows.append([variant, f"{score[0] * 100:.2f}{spread} ({count})", difference, p])
    return Table(
        ["variant", f"{results.measure.main} (seeds)", "difference [95 %]", "p (Holm)"],
        rows,
        note=results.how_scored,
    )


def _sources(results: Results) -> Table:
    """Where the uncertainty of each difference comes from."""
    rows: list[list[Cell]] = []
    for comparison in results.comparisons:
        if comparison.variance is None:
            continue
        seeds = comparison.variance.seeds * sum(1 / count for count in comparison.num_seeds)
        clips = (
            comparison.variance.clusters
            + comparison.variance.interaction * sum(1 / count for count in comparison.num_seeds)
        ) / comparison.num_clusters
        rows.append([comparison.variant, *(100 * value**0.5 for value in (comparison.variance.seeds, seeds, clips))])
    header = ["variant", "sd over seeds", "of the difference, from seeds", "from clips"]
    return Table(header, rows)


def draw_scores(results: Results) -> Figure:
    """Left, one point per seed and the mean; right, the differences with their intervals."""
    variants = [name for name in results.about["variants"] if results.mean_and_spread(name, results.measure.main)][::-1]
    compared = {comparison.variant: comparison for comparison in results.comparisons}
    figure = Figure(figsize=(9.0, 1.1 + 0.42 * len(variants)), layout="constrained")
    scores, differences = figure.subplots(1, 2, sharey=True)
    for place, variant in enumerate(variants):
        values = [
            results.scored[outcome.name].value * 100
            for outcome in results.of(variant)
            if outcome.name in results.scored
        ]
        scores.plot(values, [place] * len(values), "o", color=POINT, alpha=0.55, markersize=5)
        scores.plot([sum(values) / len(values)], [place], "|", color=MEAN, markersize=16, markeredgewidth=2.5)
        comparison = compared.get(variant)
        if comparison is None:
            continue
        color = POINT if comparison.distinguishable else "0.55"
        if comparison.interval is not None:
            bounds = [comparison.interval.low * 100, comparison.interval.high * 100]
            differences.plot(bounds, [place, place], color=color, linewidth=2.5, solid_capstyle="butt")
        differences.plot(comparison.difference * 100, place, "o", color=color)
    differences.axvline(0, color="0.3", linewidth=1)
    scores.set_yticks(range(len(variants)), variants)
    scores.set(xlabel=f"{results.measure.main}, per cent", ylim=(-0.6, len(variants) - 0.4))
    differences.set(xlabel=f"points against {results.about['reference']}")
    for axes in (scores, differences):
        axes.grid(axis="x", alpha=0.3)
    return figure


def _curves(results: Results) -> Figure | None:
    """Loss and held-out accuracy over the steps; None without logged steps."""
    variants = results.about["variants"]
    rows = {
        variant: [Run(results.folder / outcome.name).metric_rows() for outcome in results.of(variant)]
        for variant in variants
    }
    curves = {
        label: {variant: points for variant in variants if (points := _mean_curve(rows[variant], name))}
        for label, name in (("loss", "loss"), ("held-out accuracy", "accuracy"))
    }
    # A single logged point is no curve: its axes would be empty.
    curves = {label: lines for label, lines in curves.items() if any(len(points) > 1 for points in lines.values())}
    if not curves:
        return None
    figure = Figure(figsize=(5 * len(curves), 4.2), layout="constrained")
    handles: dict[str, Line2D] = {}
    for axes, (label, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for variant, points in lines.items():
            number = variants.index(variant)
            dotted = label != "loss" or len(points) == 1
            (handles[variant],) = axes.plot(
                *zip(*points, strict=True),
                color=f"C{number % COLORS}",
                linestyle="-" if number < COLORS else "--",
                marker="o" if dotted else None,
                markersize=3,
            )
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if label == "loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    figure.legend(handles.values(), map(figure_text, handles), loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _mean_curve(runs: Sequence[Sequence[dict[str, float]]], name: str) -> list[tuple[float, float]]:
    """(step, mean) over runs, of `name` or the mean of all `name/TASK`."""
    at: dict[float, list[float]] = {}
    for row in (row for rows in runs for row in rows):
        values = [
            value for key, value in row.items() if key == name or (name == "accuracy" and key.startswith("accuracy/"))
        ]
        if values:
            at.setdefault(row["step"], []).append(sum(values) / len(values))
    return [(step, sum(values) / len(values)) for step, values in sorted(at.items())]


def _states(outcomes: Sequence[Outcome]) -> str:
    return ", ".join(
        sorted({outcome.state if outcome.stopped is None else f"stopped, {outcome.stopped}" for outcome in outcomes})
    )
