"""Tables and files of folds: report.html, folds.csv, folds.tex and scores.json in their folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featurecache.files.publish import replace_bytes
from featurecache.tables import Cell
from fusion_train.evaluation.score_report import confusion_figure
from fusion_train.folds.results import (
    FIGURES,
    FoldResults,
    PairedDifference,
    compare_folders,
    compare_seeds,
    paired_difference,
)
from fusion_train.report.page import Page
from fusion_train.report.tables import Table

MAIN = FIGURES[0]


def write_report(results: FoldResults) -> Path:
    """Write all four files; return the path of the page."""
    tables = [score_table(results), fold_table(results)]
    replace_bytes(results.folder / "folds.csv", tables[1].csv().encode())
    replace_bytes(results.folder / "folds.tex", tables[1].latex().encode())
    text = json.dumps(as_json(results), indent=2, ensure_ascii=False) + "\n"
    replace_bytes(results.folder / "scores.json", text.encode())
    page = Page(f"{results.name}, folds by {results.about['by']}", remark(results))
    for table in tables:
        page.table(table)
    page.text(baseline_difference(results).verdict)
    page.heading("reference by prediction")
    page.drawing(confusion_figure(results.main.pooled[MAIN]))
    return page.write(results.folder / "report.html")


def score_table(results: FoldResults) -> Table:
    """Return one row per set of answers: each pooled figure with its interval, and mean and sd over folds."""
    table = Table(["answers", *(part for figure in FIGURES for part in (figure, "from", "to")), "mean UAR", "sd"])
    for answers in results.shown:
        cells: list[Cell] = [answers.name]
        for figure in FIGURES:
            interval = answers.interval(figure, results.clusters)
            bounds = (interval.low, interval.high) if interval else (None, None)
            cells += [_percent(answers.pooled[figure].value), *map(_percent, bounds)]
        table.add([*cells, *map(_percent, answers.mean_and_sd(MAIN))])
    table.caption = "all clips, each answered by a run that did not train on it; per cent"
    table.emphasised = frozenset({len(results.shown) - 2})
    return table


def fold_table(results: FoldResults) -> Table:
    """Return one row per fold, then mean and standard deviation over folds, and the pooled figures."""
    main, linear = results.main, results.linear
    table = Table(["fold", "clips", *FIGURES, f"linear {MAIN}"])
    sizes = {fold: sum(row["fold"] == fold for row in main.rows) for fold in results.about["folds"]}
    for fold in results.about["folds"]:
        figures = [_percent(main.by_fold[fold][figure]) for figure in FIGURES]
        table.add([fold, sizes[fold], *figures, _percent(linear.by_fold[fold][MAIN])])
    columns = [*(main.mean_and_sd(figure) for figure in FIGURES), linear.mean_and_sd(MAIN)]
    for place, name in enumerate(("mean", "sd")):
        table.add([name, None, *(_percent(column[place]) for column in columns)])
    pooled = [_percent(main.pooled[figure].value) for figure in FIGURES]
    table.add(["pooled", len(main.rows), *pooled, _percent(linear.pooled[MAIN].value)])
    table.caption = f"{main.name}, per fold; per cent"
    table.emphasised = frozenset({len(table.rows) - 1})
    return table


def baseline_difference(results: FoldResults, figure: str = MAIN) -> PairedDifference:
    """Compare the main answers with the linear baseline."""
    return paired_difference(results.main, results.linear, figure, results.clusters)


def remark(results: FoldResults) -> str:
    """Return how intervals and tests are to be read."""
    count, group = len(set(results.clusters.values())), results.about["group"] or "clip"
    return (
        f"95 % intervals by jackknife over {count} {group}s (t); differences are paired on the same clips. The linear "
        "baseline is a logistic regression on averaged tokens. Other training clips are not in the intervals."
    )


def comparison_table(results: Sequence[FoldResults]) -> Table:
    """Return one row per figure and folder: its pooled figure, and the difference to the first folder."""
    table = Table(["figure", "folds", "score", "difference", "from", "to", "p (Holm)"])
    for figure in FIGURES:
        differences = compare_folders(results, figure)
        table.add([figure, differences[0].reference, _percent(results[0].main.pooled[figure].value), *[None] * 4])
        for result, gap in zip(results[1:], differences, strict=True):
            bounds = (gap.interval.low, gap.interval.high) if gap.interval else (None, None)
            score = _percent(result.main.pooled[figure].value)
            table.add(["", gap.name, score, *map(_percent, (gap.value, *bounds)), gap.p_holm])
    return table


def comparison_lines(results: Sequence[FoldResults]) -> list[str]:
    """Return the verdicts on the main figure: on these answers and, with several seeds each, over seeds too."""
    lines = [f"{gap.name}: {gap.verdict}" for gap in compare_folders(results, MAIN)]
    return lines + [f"{item.variant}, over seeds: {item.verdict}" for item in compare_seeds(results, MAIN)]


def as_json(results: FoldResults) -> dict[str, Any]:
    """Return all figures in shares, under names that stay."""
    scores: dict[str, Any] = {}
    for answers in results.shown:
        intervals = {figure: answers.interval(figure, results.clusters) for figure in FIGURES}
        scores[answers.name] = {
            "pooled": {figure: answers.pooled[figure].value for figure in FIGURES},
            "intervals": {figure: [bounds.low, bounds.high] for figure, bounds in intervals.items() if bounds},
            "mean": {figure: answers.mean_and_sd(figure)[0] for figure in FIGURES},
            "sd": {figure: answers.mean_and_sd(figure)[1] for figure in FIGURES},
            "folds": {fold: {figure: values[figure] for figure in FIGURES} for fold, values in answers.by_fold.items()},
        }
    gap = baseline_difference(results)
    against: dict[str, Any] = {"difference": gap.value, "p": gap.p, "figure": gap.figure}
    if gap.interval is not None:
        against |= {"interval": [gap.interval.low, gap.interval.high]}
    return {
        "by": results.about["by"],
        "task": results.about["task"],
        "main": results.main.name,
        "scores": scores,
        "against_linear_baseline": against,
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
