"""The report of a search: report.html, leaderboard.csv and .tex, and the tables of the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from featurecache.files.publish import replace_bytes
from featurecache.outside_text import figure_text
from featurecache.tables import Cell
from fusion_train.report.page import Page
from fusion_train.report.tables import Table
from fusion_train.search.draws import Trial
from fusion_train.search.rungs import Searching
from fusion_train.search.search_file import ALONE
from fusion_train.search.selection import Honest, Selected
from fusion_train.search.trial_results import FitKey
from fusion_train.statistics.intervals import LEVEL, Interval

POINT, MEAN = "#0072B2", "#D55E00"
"""Colours of Okabe and Ito's palette, which colour-blind readers can tell apart."""
SHOWN_TRIALS = 20
"""Trials of the leaderboard in the report and in the terminal; the CSV has all."""
SLICED = ("hidden", "dropout", "lr", "weight_decay", "balance", "batch_size")
LOGARITHMIC = ("lr", "weight_decay")


def write_report(searching: Searching, selected: Selected, out: Path | None = None) -> Path:
    """Write all files into the folder of the search; returns the page."""
    folder = searching.results.folder
    board = leaderboard(searching, selected)
    replace_bytes(folder / "leaderboard.csv", board.csv().encode())
    replace_bytes(folder / "leaderboard.tex", _first(board).latex().encode())
    return page_of(searching, selected, board).write(out or folder / "report.html")


def leaderboard(searching: Searching, selected: Selected) -> Table:
    """One row per trial that reached the last rung over all folds, best inner score first; figures in per cent."""
    rows: list[list[Cell]] = []
    for place, standing in enumerate(selected.board, start=1):
        trial = searching.trials[standing.trial]
        rows.append(
            [
                place,
                " + ".join(trial.features),
                trial.head,
                standing.inner * 100,
                standing.outer * 100,
                *_bounds(standing.interval),
                standing.probability_best * 100,
                "yes" if standing.indistinguishable else "no",
                *(getattr(trial, name) for name in SLICED),
            ]
        )
    header = ["", "features", "head", "inner", "outer", "from", "to", "best, %", "alike", *SLICED]
    return Table(header, rows, emphasised=frozenset([0] if rows else []))


def summary(searching: Searching, selected: Selected) -> list[str]:
    """What the search found, in sentences."""
    main, first = searching.search.main, selected.board[0]
    alike = sum(standing.indistinguishable for standing in selected.board)
    lines = [
        f"first: {first.trial}",
        f"best of {selected.num_trials}: {main} {selected.naive * 100:.2f} on the clips that chose it; corrected: "
        f"{honest_text(selected.nested)}, chosen inside each fold and scored outside",
        f"ensemble of the first {searching.search.ensemble}: {honest_text(selected.ensemble)}, chosen in the same way",
        f"probability that the first is the best of the {len(selected.board)} finalists: "
        f"{first.probability_best * 100:.0f} %",
    ]
    if selected.winner:
        lines.append(f"winner: every other finalist can be told from {selected.winner.trial}")
    else:
        lines.append(f"no winner: {alike} of {len(selected.board)} finalists cannot be told from the best")
    if selected.num_seeds == 1:
        lines.append("one seed: the intervals do not cover other seeds; name several with seeds:")
    return lines


def honest_text(score: Honest) -> str:
    """`62.10 [60.31, 63.85]`, in per cent."""
    low, high = _bounds(score.interval)
    interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{score.value * 100:.2f}{interval}"


def feature_table(searching: Searching) -> Table:
    """What each feature gives by itself against the mean of its modality, paired by draw, by head; points.

    Scores are those of the first rung, which all trials reach: a mean over folds. The interval is for other draws.
    """
    scores = first_scores(searching)
    rows: list[list[Cell]] = []
    for head in searching.search.heads:
        for modality, names in searching.search.features.items():
            by_draw: dict[int, dict[str, float]] = {}
            for name, score in scores.items():
                trial = searching.trials[name]
                if trial.combined == ALONE and trial.head == head and trial.features[0] in names:
                    by_draw.setdefault(trial.draw, {})[trial.features[0]] = score
            whole = [found for found in by_draw.values() if len(found) == len(names)]
            if not whole:
                continue
            means = {name: float(np.mean([found[name] for found in whole])) for name in names}
            for name in sorted(names, key=lambda name: -means[name]):
                differences = [found[name] - float(np.mean(list(found.values()))) for found in whole]
                rows.append([modality, head, name, means[name] * 100, *_paired(differences)])
    return Table(["modality", "head", "feature", "mean", "difference", "from", "to", "draws"], rows)


def _paired(differences: Sequence[float]) -> list[Cell]:
    mean, count = float(np.mean(differences)), len(differences)
    if count < 2:
        return [mean * 100, None, None, count]
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, count - 1)) * float(np.std(differences, ddof=1)) / count**0.5
    return [mean * 100, (mean - reach) * 100, (mean + reach) * 100, count]


def first_scores(searching: Searching) -> dict[str, float]:
    """Trial -> mean inner score over the folds at the first rung, of trials with a score in each."""
    by_trial: dict[str, list[float]] = {}
    seed = searching.search.seeds[0]
    for name in searching.trials:
        for fold in range(len(searching.parts)):
            fit = searching.results.fits.get(FitKey(0, name, fold, seed))
            if fit is not None:
                by_trial.setdefault(name, []).append(fit.score)
    return {name: float(np.mean(found)) for name, found in by_trial.items() if len(found) == len(searching.parts)}


def cost_table(searching: Searching) -> Table:
    """What each rung trained, and how long."""
    rows: list[list[Cell]] = []
    for rung, epochs in enumerate(searching.search.rungs):
        fits = {key: fit for key, fit in searching.results.fits.items() if key.rung == rung}
        trials = len({key.trial for key in fits})
        rows.append([rung + 1, epochs, trials, len(fits), sum(fit.seconds for fit in fits.values())])
    return Table(["rung", "epochs", "trials", "models", "core seconds"], rows)


def page_of(searching: Searching, selected: Selected, board: Table) -> Page:
    """The page."""
    search, data = searching.search, searching.data
    groups = f"{selected.num_groups} {search.group}s" if search.group else "single clips"
    page = Page(
        f"Search {searching.results.folder.name}",
        f"{search.main} of {search.task} on {len(data.clips)} clips with {len(data.classes)} classes; "
        f"{search.folds} folds by {groups}; {selected.num_trials} trials.",
    )
    for line in summary(searching, selected):
        page.text(line[0].upper() + line[1:] + ".")
    page.heading("Leaderboard")
    page.table(_first(board))
    page.text(
        "Per cent. Inner: on the clips by which a trial stopped early and was chosen; outer: on the clips of the folds "
        "that its models never saw, with the 95 % interval for other clips and seeds. Best: probability that the trial "
        "is the best of the finalists, by resampling. Alike: it is in the model confidence set, so it cannot be told "
        f"from the best. {len(board.rows)} trials reached the last rung; leaderboard.csv has all of them.",
        "note",
    )
    page.drawing(_standings(selected, search.main), "Outer scores of the finalists with 95 % intervals.")
    page.heading("Which feature matters")
    features = feature_table(searching)
    if features.rows:
        page.table(features)
    page.text(
        f"{search.main} at the first rung, mean over folds, in per cent; difference to the mean of the modality in "
        "points, paired by draw: each draw has the same hyperparameters for every feature. Intervals hold for other "
        "draws.",
        "note",
    )
    page.heading("Hyperparameters")
    page.drawing(
        _slices(searching), f"{search.main} at the first rung against each hyperparameter, one point per trial."
    )
    page.heading("Chosen for each fold")
    rows = [[f"fold {fold + 1}", chosen[0]] for fold, chosen in enumerate(selected.nested.chosen)]
    page.table(Table(["fold", "trial chosen without it"], rows))
    page.heading("Cost")
    page.table(cost_table(searching))
    return page


def _first(board: Table) -> Table:
    """The first rows of the leaderboard, without hyperparameters."""
    columns = [name for name in board.header if name not in SLICED]
    return Table(columns, [list(row)[: len(columns)] for row in board.rows[:SHOWN_TRIALS]], emphasised=board.emphasised)


def short_board(board: Table) -> Table:
    """The leaderboard of the terminal."""
    return _first(board)


def _standings(selected: Selected, main: str) -> Figure:
    shown = selected.board[:SHOWN_TRIALS][::-1]
    figure = Figure(figsize=(9.0, 1.0 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, standing in enumerate(shown):
        color = POINT if standing.indistinguishable else "0.6"
        low, high = _bounds(standing.interval)
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=color, linewidth=2.5, solid_capstyle="butt")
        axes.plot(standing.outer * 100, place, "o", color=color)
    axes.axvline(selected.nested.value * 100, color=MEAN, linewidth=1)
    axes.set_yticks(range(len(shown)), [figure_text(standing.trial) for standing in shown])
    axes.set(xlabel=f"{main}, per cent; line: the corrected score of the first")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _slices(searching: Searching) -> Figure:
    scores = first_scores(searching)
    trials: list[Trial] = [searching.trials[name] for name in scores]
    names = [name for name in SLICED if len({getattr(trial, name) for trial in trials}) > 1]
    figure = Figure(figsize=(2.6 * max(len(names), 1), 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, max(len(names), 1), squeeze=False)[0], names, strict=False):
        for number, head in enumerate(searching.search.heads):
            own = [trial for trial in trials if trial.head == head]
            points = [getattr(trial, name) for trial in own], [scores[trial.name] * 100 for trial in own]
            axes.plot(*points, "o", color=f"C{number}", markersize=3, alpha=0.5, label=figure_text(head))
        axes.set(xlabel=name)
        axes.grid(alpha=0.3)
        if name in LOGARITHMIC:
            axes.set_xscale("log")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _bounds(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low * 100, interval.high * 100)
