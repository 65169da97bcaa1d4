"""Run a search from its file to what it selected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fusion_train.errors import DataError
from fusion_train.search.draws import RandomSampler, draw_trials
from fusion_train.search.parts import divide
from fusion_train.search.rungs import Searching, run_rungs
from fusion_train.search.search_file import SearchFile
from fusion_train.search.selection import FoldAnswers, Selected, select
from fusion_train.search.trial_results import WHOLE, FitKey, TrialResults
from fusion_train.search.utterance_vectors import read_data


def run_search(
    search: SearchFile, *, store: str, clips: str, out: Path, say: Callable[[str], None], threads: int | None = None
) -> tuple[Searching, Selected]:
    """Read, draw, train all rungs and select; the same call continues a search that was stopped.

    Raises:
        DataError: clips or features that cannot serve the search, or a folder with another one.
    """
    data = read_data(search, store, clips)
    parts, groups = divide(data, search.folds, search.group, search.seed)
    trials = {trial.name: trial for trial in draw_trials(search, RandomSampler(search.seed))}
    searching = Searching(search, data, trials, parts, TrialResults(out), threads or os.cpu_count() or 1)
    # More minutes for the same search continue it.
    about = search.model_dump(mode="json", exclude={"budget", "submission", "columns"}) | {"data": data.identity}
    with searching.results.begin(about) as lines:
        run_rungs(searching, lines, say)
    return searching, selected_of(searching, groups)


def selected_of(searching: Searching, groups: list[str]) -> Selected:
    """Score a search whose rungs are all trained.

    Raises:
        DataError: no trial reached the last rung.
    """
    search, results = searching.search, searching.results
    last = len(search.rungs) - 1
    survivors = results.survivors[last]
    finalists = survivors[WHOLE]
    if not finalists:
        raise DataError(
            str(results.folder),
            expected="a trial that reached the last rung",
            got="none",
            next_step="Set more minutes.",
        )
    folds = []
    for fold, parts in enumerate(searching.parts):
        names = list(dict.fromkeys([*survivors.get(str(fold), ()), *finalists]))
        found = [[results.fits[FitKey(last, name, fold, seed)] for seed in search.seeds] for name in names]
        inner, outer = (np.stack([[fit.probabilities[n] for fit in seeds] for seeds in found]) for n in (0, 1))
        folds.append(FoldAnswers(names, parts.inner, parts.outer, inner, outer))
    return select(
        folds,
        finalists,
        searching.data.targets.numpy(),
        groups,
        search.main,
        num_trials=len(results.survivors[0][WHOLE]),
        num_classes=len(searching.data.classes),
        top=search.ensemble,
        seed=search.seed,
    )
