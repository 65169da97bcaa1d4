"""Start and resume a run: its record, its first weights, its checkpoints."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from fusion_train import checkpoint
from fusion_train.config import Config
from fusion_train.data.halves import Halves, split_halves
from fusion_train.data.pool import Pool, list_hashes
from fusion_train.data.samples import DRAW_RULE
from fusion_train.errors import CheckpointError
from fusion_train.models.normalisation import fold_into
from fusion_train.models.probe import Probe
from fusion_train.run import Run, RunRecord, relative
from fusion_train.run_context import RunContext
from fusion_train.training.averaging import Averaged


def start_from(initial: Run, run: Run, model: nn.Module, known: RunRecord | None) -> dict[str, Any]:
    """Load another run's best trained weights; returns its description for `run.json`.

    Raises:
        CheckpointError: `initial` is not trained, or no longer holds the weights that `known` started from.
    """
    if known is not None and checkpoint.published(run.checkpoints):
        return dict(known.initial or {})  # the run has its own trained weights
    folder = checkpoint.choose(initial.checkpoints, "best")
    state, weights = checkpoint.read_state(folder), checkpoint.best_weights(folder)
    loaded = {
        "run": relative(str(initial.folder), run.folder),
        "step": state.step,
        "sha256": state.sha256[weights],
    }
    if known is not None and known.initial != loaded:
        raise CheckpointError(
            str(run.folder),
            expected=f"to start from {known.initial}",
            got=str(loaded),
            next_step=f"{initial.folder} was trained anew; delete {run.folder} and start it again.",
        )
    same_kind = (initial.config().model.llm is None) == isinstance(model, Probe)
    checkpoint.load_model(folder, model, name=weights, parts=None if same_kind else ("fusion",))
    if not same_kind:
        _read_plain_features(folder, weights, model, initial)
    return loaded


def _read_plain_features(folder: Path, weights: str, model: Any, initial: Run) -> None:
    """Let a fusion that was trained on normalised features in a probe compute the same from plain ones.

    Raises:
        CheckpointError: the fusion does not begin with a linear layer per modality.
    """
    normalisation = checkpoint.read_normalisation(folder, weights)
    if normalisation and not fold_into(model.fusion, normalisation):
        raise CheckpointError(
            str(initial.folder),
            expected="a probe trained without features.normalise, or a fusion that begins with linear layers",
            got="another",
            next_step="Train the probe anew with --set features.normalise=null.",
        )


def make_record(
    context: RunContext, store: str, clips: str, run: Run, initial: Mapping[str, Any] | None, halves: Halves = ()
) -> RunRecord:
    packages = ("torch", "transformers", "peft", "accelerate", "featurecache")
    return RunRecord(
        store=relative(store, run.folder),
        clips=relative(clips, run.folder),
        fingerprints=context.reader.fingerprints,
        shapes=context.reader.shapes,
        label_sets=context.label_sets,
        initial=initial,
        lists=list_hashes(context.config, clips),
        draw_rule=DRAW_RULE,
        versions={"python": platform.python_version()} | {name: version(name) for name in packages},
        halves=halves,
    )


def halves_of(run: Run, context: RunContext, known: RunRecord | None, per_half: bool) -> Halves:
    """Return the halves of the held-out clips whose best weights the run keeps; a new run gets new halves.

    Raises:
        CheckpointError: the run began without halves, and earlier weights are not there any more.
    """
    if known is None:
        return split_halves(context.clips.in_split(context.config.data.eval_split or "")) if per_half else ()
    if per_half and not known.halves:
        raise CheckpointError(
            str(run.folder),
            expected="a run that keeps the weights which each half of the held-out clips chooses",
            got="one begun without",
            next_step="Set weights: last in the sweep file, or delete the run.",
        )
    return known.halves


def refuse_other_configuration(run: Run, config: Config) -> None:
    """Raise CheckpointError where the folder holds a run of another configuration."""
    if run.exists and (differing := config.differences(run.config())):
        raise CheckpointError(
            str(run.folder),
            expected="no run, or one of this configuration",
            got="one of another configuration",
            next_step="Choose another folder with --out. Asked != there:",
            problems=differing,
        )


def refuse_other_draws(run: Run, known: RunRecord | None) -> None:
    """Raise CheckpointError where a run began with samples drawn by another rule than that of this release."""
    if known is not None and known.draw_rule != DRAW_RULE:
        raise CheckpointError(
            str(run.folder),
            expected=f"samples drawn by rule {DRAW_RULE}, that of this release",
            got=f"a run that drew them by rule {known.draw_rule}",
            next_step=f"Finish it with the release that it began with, or start another: --out NEW --init {run.folder} "
            "takes its best weights.",
        )


def refuse_other_pool(run: Run, known: RunRecord | None, pool: Pool) -> None:
    """Raise CheckpointError where the clips that would be drawn are not those that the run began with."""
    if known is not None and known.pool_sha256 not in (None, pool.sha256):
        raise CheckpointError(
            str(run.pool),
            expected=f"the clips that the run began with, sha256 {(known.pool_sha256 or '')[:12]}…",
            got=f"others, {pool.sha256[:12]}…",
            next_step="Take the pool, the clip list and the store from a copy, or start another run with --out.",
        )


def resume(
    run: Run,
    model: nn.Module,
    optimizer: Any,
    averaged: Averaged | None,
    accelerator: Accelerator,
    known: RunRecord | None,
) -> int:
    """Restore the newest checkpoint; returns the number of steps done.

    Raises:
        CheckpointError: a damaged checkpoint, or one trained on other features than the run.
    """
    folders = checkpoint.published(run.checkpoints) if known else []
    if not folders:
        return 0
    state = checkpoint.read_state(folders[-1])
    if known is not None and dict(state.fingerprints) != dict(known.fingerprints):
        raise CheckpointError(
            str(folders[-1]),
            expected=f"a checkpoint of {run.folder}",
            got="one trained on other features",
            next_step=f"Delete {folders[-1].name}; the run then resumes from the checkpoint before it.",
        )
    checkpoint.load_model(folders[-1], model)
    checkpoint.load_optimizer(folders[-1], model, optimizer.optimizer)
    if averaged is not None:
        averaged.load(checkpoint.load_averaged(folders[-1]))
    if accelerator.scaler is not None and state.scaler:
        accelerator.scaler.load_state_dict(dict(state.scaler))
    return state.step


def save_checkpoint(
    run: Run,
    context: RunContext,
    optimizer: Any,
    averaged: Averaged | None,
    accelerator: Accelerator,
    step: int,
    score: float | None,
    half_scores: Sequence[float | None] = (),
) -> None:
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
    state = checkpoint.State(step, context.config.hash, context.reader.fingerprints, scaler, score, half_scores)
    checkpoint.save(
        run.checkpoints,
        context.model,
        optimizer.optimizer,
        state,
        keep=context.config.checkpoint.keep,
        keep_every=context.config.checkpoint.keep_every,
        averaged=averaged.tensors() if averaged is not None else None,
    )
