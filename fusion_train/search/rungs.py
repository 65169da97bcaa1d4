"""Train the trials of a search rung by rung: successive halving across all trials, in stacks, under a budget.

At each rung every trial that reached it is trained anew from its initial weights for the epochs of the rung, in the
folds where it goes on; training again costs less than keeping the weights of thousands of models would. Which trials
reach the next rung is decided once for each fold, by the scores on its inner clips only, and once over all folds. A fit
goes on if its trial survives in its fold or over all. So the choice for a fold never saw the fold, and the trials that
survive over all have predictions of every clip.

Budget. The first rung may use half of the minutes: draws that do not fit are left out. At later rungs as many trials go
on as the rest of the time has room for, at the speed of the rungs before, but at least `MIN_SURVIVORS`.

Fits of one shape (head, widths of the features, hidden width, batch size) form stacks. Several threads train stacks at
the same time, one core each; all read the same vectors.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import nn

from featurecache.terminal import show_progress
from fusion_train.evaluation.append_only import AppendedLines
from fusion_train.models.utterance_heads import build_head
from fusion_train.search.draws import Trial
from fusion_train.search.parts import Parts
from fusion_train.search.search_file import SearchFile
from fusion_train.search.stacked_training import Fit, Fitted, Schedule, Standardisation, products_in, train_stack
from fusion_train.search.trial_results import WHOLE, FitKey, TrialResults
from fusion_train.search.utterance_vectors import SearchData
from fusion_train.seeding import derive

STACK_BYTES = 128 << 20
"""Memory of a stack: weights, gradients, moments, best weights and one batch of all its models."""
MAX_STACK = 512
MIN_SURVIVORS = 2
COPIES = 6
"""Tensors of the size of the weights that a stack holds."""


@dataclass(frozen=True, eq=False)
class Searching:
    """A search at work."""

    search: SearchFile
    data: SearchData
    trials: dict[str, Trial]
    parts: Sequence[Parts]
    results: TrialResults
    threads: int

    def network(self, trial: Trial) -> nn.Module:
        """Build the head of a trial."""
        dims = [self.data.vectors[name].shape[1] for name in trial.features]
        return build_head(
            trial.head, dims, num_classes=len(self.data.classes), hidden=trial.hidden, dropout=trial.dropout
        )

    def shape(self, trial: Trial) -> Hashable:
        """What trials of one stack share."""
        dims = tuple(self.data.vectors[name].shape[1] for name in trial.features)
        return trial.head, dims, trial.hidden, trial.batch_size

    def fit(self, trial: Trial, parts: Parts, seed: int, standards: dict[tuple[str, int], Standardisation]) -> Fit:
        """The model of a trial in a fold."""
        return Fit(
            [self.data.vectors[name] for name in trial.features],
            parts.train,
            parts.inner,
            parts.outer,
            seed,
            trial.lr,
            trial.weight_decay,
            trial.balance,
            [standards[name, id(parts)] for name in trial.features] if self.search.standardise else (),
        )


def run_rungs(searching: Searching, lines: AppendedLines, say: Callable[[str], None]) -> None:
    """Train all rungs, continuing after what the results have."""
    search, results, started = searching.search, searching.results, time.monotonic()
    limit_s = None if search.budget.minutes is None else search.budget.minutes * 60 * searching.threads
    standards = _standards(searching)
    for rung, epochs in enumerate(search.rungs):
        last = rung == len(search.rungs) - 1
        if rung and rung not in results.survivors:
            results.add_survivors(lines, rung, _survivors(searching, rung, limit_s))
        keys = list(_keys(searching, rung, last))
        waiting = [key for key in keys if key not in results.fits]
        reached = len({key.trial for key in keys})
        say(f"rung {rung + 1} of {len(search.rungs)}: {reached} trials, {len(keys)} models, {epochs} epochs")
        deadline_s = None if limit_s is None else limit_s if last else limit_s / 2
        _train(searching, lines, rung, waiting, standards, None if rung in results.survivors else deadline_s, last)
        if rung not in results.survivors:
            complete = [name for name in searching.trials if _complete(searching, name, last)]
            if len(complete) < len(searching.trials):
                say(f"the budget has room for {len(complete)} of {len(searching.trials)} trials")
            results.add_survivors(lines, 0, {WHOLE: complete})
    say(f"{len(results.fits)} models in {time.monotonic() - started:.0f} s")


def _standards(searching: Searching) -> dict[tuple[str, int], Standardisation]:
    """(feature, id of the parts) -> standardisation by the training clips of the fold."""
    if not searching.search.standardise:
        return {}
    return {
        (name, id(parts)): Standardisation.of(vectors[torch.from_numpy(parts.train)])
        for name, vectors in searching.data.vectors.items()
        for parts in searching.parts
    }


def _complete(searching: Searching, name: str, last: bool) -> bool:
    """Whether a trial is trained in all folds of the first rung."""
    keys = [FitKey(0, name, fold, seed) for fold in range(len(searching.parts)) for seed in _seeds(searching, last)]
    return all(key in searching.results.fits for key in keys)


def _seeds(searching: Searching, last: bool) -> Sequence[int]:
    return searching.search.seeds if last else searching.search.seeds[:1]


def _keys(searching: Searching, rung: int, last: bool) -> Iterator[FitKey]:
    """The fits of a rung, in the order of the draws."""
    survivors = searching.results.survivors.get(rung, {WHOLE: list(searching.trials)})
    tournaments = {tournament: set(names) for tournament, names in survivors.items()}
    for name in searching.trials:
        for fold in range(len(searching.parts)):
            if name in tournaments[WHOLE] or name in tournaments.get(str(fold), ()):
                for seed in _seeds(searching, last):
                    yield FitKey(rung, name, fold, seed)


def _survivors(searching: Searching, rung: int, limit_s: float | None) -> dict[str, list[str]]:
    """Tournament -> trials that reach a rung, best first."""
    results, folds = searching.results, range(len(searching.parts))
    assert searching.search.halving is not None, "one rung without halving"
    before = results.survivors[rung - 1]
    count = math.ceil(len(before[WHOLE]) * searching.search.halving.keep)
    if limit_s is not None:
        rungs = searching.search.rungs
        done = [fit for key, fit in results.fits.items() if key.rung == rung - 1]
        per_fit_s = sum(fit.seconds for fit in done) / max(len(done), 1) * rungs[rung] / rungs[rung - 1]
        seeds = len(_seeds(searching, rung == len(rungs) - 1))
        share = (limit_s - results.seconds) / (len(rungs) - rung)
        fits = 2 * len(folds) * seeds  # of one trial over all folds, and of another in each fold
        count = min(count, int(share / max(per_fit_s * fits, 1e-9)))
    count = min(max(count, MIN_SURVIVORS), len(before[WHOLE]))
    survivors = {}
    seeds_before = _seeds(searching, last=False)
    scores = {name: [results.score(rung - 1, name, fold, seeds_before) for fold in folds] for name in searching.trials}
    for tournament in (WHOLE, *map(str, folds)):
        means = {}
        for name in before.get(tournament, before[WHOLE]):
            own = scores[name] if tournament == WHOLE else [scores[name][int(tournament)]]
            if all(score is not None for score in own):
                means[name] = sum(score for score in own if score is not None) / len(own)
        survivors[tournament] = sorted(means, key=lambda name: -means[name])[:count]
    return survivors


def _train(
    searching: Searching,
    lines: AppendedLines,
    rung: int,
    keys: Sequence[FitKey],
    standards: dict[tuple[str, int], Standardisation],
    limit_s: float | None,
    last: bool,
) -> None:
    """Train fits in stacks; no new stack begins once the fits of this search have taken `limit_s`."""
    search, stopping = searching.search, threading.Event()
    seeds = {key: _seed_of(searching, key) for key in keys}

    def train(stack: Sequence[FitKey]) -> tuple[list[Fitted], float]:
        started = time.perf_counter()
        trials = [searching.trials[key.trial] for key in stack]
        fits = [
            searching.fit(trial, searching.parts[key.fold], seeds[key], standards)
            for key, trial in zip(stack, trials, strict=True)
        ]
        schedule = Schedule(search.rungs[rung], trials[0].batch_size, search.patience, search.main)
        fitted = train_stack(
            lambda number: searching.network(trials[number]), fits, searching.data.targets, schedule, stopping.is_set
        )
        return fitted, time.perf_counter() - started

    waiting = list(_stacks(searching, keys))
    running: dict[Future[tuple[list[Fitted], float]], list[FitKey]] = {}
    done = 0
    with (
        products_in(search.precision),
        show_progress(f"rung {rung + 1}", "models") as progress,
        ThreadPoolExecutor(searching.threads, "stack", initializer=torch.set_num_threads, initargs=(1,)) as threads,
    ):
        try:
            while waiting or running:
                while waiting and len(running) < searching.threads:
                    if limit_s is not None and searching.results.seconds >= limit_s:
                        waiting = []
                        break
                    stack = waiting.pop(0)
                    running[threads.submit(train, stack)] = stack
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    stack = running.pop(future)
                    fitted, seconds = future.result()
                    share = [seconds / len(stack)] * len(stack)
                    searching.results.add(lines, zip(stack, fitted, share, strict=True), probabilities=last)
                    done += len(stack)
                    progress(done, len(keys), "")
        finally:
            stopping.set()  # after an error or Ctrl-C; otherwise nothing runs any more


def _seed_of(searching: Searching, key: FitKey) -> int:
    """A seed for the weights, the order and the dropout of one model, whatever the rung."""
    draw = searching.trials[key.trial].draw
    return derive(searching.search.seed, "fit", draw, key.fold, key.seed)


def _stacks(searching: Searching, keys: Sequence[FitKey]) -> Iterator[list[FitKey]]:
    """Group fits of one shape, in the order of the first of each group."""
    open_stacks: dict[Hashable, list[FitKey]] = {}
    sizes: dict[Hashable, int] = {}
    for key in keys:
        trial = searching.trials[key.trial]
        shape = searching.shape(trial)
        if shape not in sizes:
            weights = sum(parameter.numel() for parameter in searching.network(trial).parameters())
            width = sum(searching.data.vectors[name].shape[1] for name in trial.features)
            num_bytes = 4 * (COPIES * weights + 3 * trial.batch_size * width)
            sizes[shape] = max(1, min(MAX_STACK, STACK_BYTES // num_bytes))
        stack = open_stacks.setdefault(shape, [])
        stack.append(key)
        if len(stack) == sizes[shape]:
            yield open_stacks.pop(shape)
    yield from open_stacks.values()
