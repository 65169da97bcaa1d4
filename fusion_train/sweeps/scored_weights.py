"""Which split of a sweep's clips is scored, and with which weights of each trial.

Weights that are the best of several scorings on some clips look better on these clips than on others. So the list's
`test` split is scored where it answers the task; else, where the scored split is the one that chooses checkpoints, the
last weights, which no score chose. `split` and `weights` of the sweep file overrule both. A trial that is scored once
has no choice.
"""

from __future__ import annotations

from dataclasses import replace

from featurecache.clips import ClipList, load_clips
from fusion_train.config import Config
from fusion_train.data.prompts import find_task
from fusion_train.data.samples import with_answers
from fusion_train.errors import DataError
from fusion_train.sweeps.sweep_file import Sweep

TEST = "test"
DEFAULT = "val"
BEST, LAST = "best", "last"


def resolve_scoring(sweep: Sweep, clips: str) -> Sweep:
    """Return the sweep with `split` and `weights` filled in, where its file leaves them open.

    Raises:
        ClipListError: a clip list that cannot be read.
    """
    if sweep.split and sweep.weights:
        return sweep
    split = sweep.split
    if not split:
        split = TEST if answers_in(load_clips(clips), TEST, sweep.task) else _eval_split(sweep)
    weights = sweep.weights or (LAST if split in choosing_splits(sweep) else BEST)
    return replace(sweep, split=split, weights=weights)


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


def _eval_split(sweep: Sweep) -> str:
    return sweep.trials[0].config.data.eval_split or DEFAULT


def _chooses(config: Config) -> bool:
    return config.data.eval_split is not None and config.log.eval_every < config.optim.steps
