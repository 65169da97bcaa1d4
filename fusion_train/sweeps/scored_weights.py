"""Which split of a sweep's clips is scored, and with which weights of each trial.

Weights that are the best of several scorings on some clips look better on these clips than on others. So the list's
`test` split is scored where it answers the task. Where the scored split is the one that chooses checkpoints, its clips
are cross-fitted: each half is scored with the weights that the other half chose (`data.halves`). Where a half would
have fewer than `MIN_CLUSTERS` clusters to choose by, the last weights are scored, which no score chose. `split` and
`weights` of the sweep file overrule this. A trial that is scored once has no choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featurecache.clips.clip_list import ClipList, load_clips
from fusion_train.config import Config
from fusion_train.data.answers import with_answers
from fusion_train.data.halves import num_clusters, split_halves
from fusion_train.errors import CheckpointError, ConfigError, DataError
from fusion_train.prompts.prompt import find_task
from fusion_train.run import Run
from fusion_train.statistics.intervals import MIN_CLUSTERS
from fusion_train.sweeps.sweep_file import Sweep, Trial

TEST = "test"
DEFAULT = "val"
BEST, LAST, CROSS_FITTED = "best", "last", "cross-fitted"


def resolve_scoring(sweep: Sweep, clips: str) -> Sweep:
    """Return the sweep with `split` and `weights` filled in, where its file leaves them open, and why these weights.

    Raises:
        ClipListError: a clip list that cannot be read.
        ConfigError: cross-fitting is asked for where nothing is chosen by the scored clips, or there are no two halves.
    """
    if sweep.why_weights:
        return sweep
    listed = load_clips(clips)
    split = sweep.split or (TEST if answers_in(listed, TEST, sweep.task) else _eval_split(sweep))
    weights, why = _weights(sweep, listed, split)
    return replace(sweep, split=split, weights=weights, why_weights=why)


def _weights(sweep: Sweep, clips: ClipList, split: str) -> tuple[str, str]:
    """The weights to score, and why these."""
    chooses = split in choosing_splits(sweep)
    if sweep.weights == CROSS_FITTED:
        lacking = "" if chooses else f"{split} chooses no weights"
        lacking = lacking or ("" if min(_clusters_per_half(sweep, clips, split)[0]) else f"{split} has one cluster")
        if lacking:
            raise ConfigError(
                "weights: cross-fitted",
                expected="a scored split that chooses weights and has two halves",
                got=lacking,
                next_step="Leave weights out of the sweep file.",
            )
    if sweep.weights:
        return sweep.weights, "as the sweep file asks"
    if not chooses:
        return BEST, f"{split} did not choose them"
    counts, name = _clusters_per_half(sweep, clips, split)
    if min(counts) >= MIN_CLUSTERS:
        return CROSS_FITTED, f"{split} also chooses them"
    return LAST, (
        f"{split} also chooses weights, and cross-fitting takes {MIN_CLUSTERS} {name} in each half of it "
        f"(there are {counts[0]} and {counts[1]})"
    )


def keeps_halves(config: Config, weights: str, split: str) -> bool:
    """Whether a trial keeps the weights that each half of its held-out clips chooses, to be scored with them."""
    return weights == CROSS_FITTED and config.data.eval_split == split and _chooses(config)


def refuse_without_halves(sweep: Sweep, trials: Sequence[Trial], out: Path) -> None:
    """Refuse to cross-fit trials that began without keeping the weights which each half chooses.

    Raises:
        DataError: there are such trials; all are named.
    """
    problems = []
    for trial in trials:
        run = Run(trial.folder(out, len(trial.stages) - 1))
        if not keeps_halves(trial.config, sweep.weights, sweep.split) or not run.exists:
            continue
        try:
            problems += [] if run.record().halves else [str(run.folder)]
        except CheckpointError:
            continue  # a damaged record is that trial's fault, and told as such
    if problems:
        raise DataError(
            str(out),
            expected=f"trials that kept the weights which each half of {sweep.split} chose",
            got=f"{len(problems)} begun without",
            problems=problems,
            next_step="Set weights: last in the sweep file, or delete these folders, to train them again:",
        )


def choosing_splits(sweep: Sweep) -> list[str]:
    """Splits on which the last stage of some trial chooses among checkpoints."""
    return sorted({str(trial.config.data.eval_split) for trial in sweep.trials if _chooses(trial.config)})


def optimism_notice(weights: str, split: str, chosen_on: list[str]) -> str | None:
    """What must stand beside scores of weights that the scored clips chose; None where they did not."""
    if weights != BEST or split not in chosen_on:
        return None
    return f"scored on the clips that chose the weights ({split}): scores are too high"


def answers_in(clips: ClipList, split: str, task: str) -> bool:
    """Whether a split of the list has clips that answer the task."""
    if split not in clips.splits:
        return False
    try:
        return len(with_answers(clips.in_split(split), find_task(task))) > 0
    except DataError:
        return False


def _clusters_per_half(sweep: Sweep, clips: ClipList, split: str) -> tuple[list[int], str]:
    """How many clusters of clips each half chooses by, and their name."""
    halves = split_halves(clips.in_split(split))
    answered = with_answers(clips.in_split(split), find_task(sweep.task))
    counts, name = num_clusters(answered, halves)
    limits = [trial.config.data.eval_clips for trial in sweep.trials if trial.config.data.eval_clips]
    return [min([count, *(limit // len(halves) for limit in limits)]) for count in counts], name


def _eval_split(sweep: Sweep) -> str:
    return sweep.trials[0].config.data.eval_split or DEFAULT


def _chooses(config: Config) -> bool:
    return config.data.eval_split is not None and config.log.eval_every < config.optim.steps
