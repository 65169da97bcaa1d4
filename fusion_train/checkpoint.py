"""Read and write checkpoints: trained parts, optimizer and position; published whole or not at all, never pickled.

    checkpoints/step-00001000/
        model.safetensors       trained parameters by name
        averaged.safetensors    their moving average, if the run keeps one
        optimizer.safetensors   AdamW's exp_avg, exp_avg_sq and step by parameter name
        state.json              step, configuration hash, fingerprints, gradient scaler, scores, sha256 of the files

`state.json` carries its own checksum (see `documents`), and every file is checked against its hash when it is loaded.
Samples and dropout are pure functions of (seed, step), so the step number is the whole position; no random state is
saved.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from featurecache.errors import WriteError
from featurecache.files.publish import make_folder, make_temporary_folder, publish_folder, writing
from fusion_train.documents import read_document, validate_document, write_document
from fusion_train.errors import CheckpointError
from fusion_train.models.parts import part_of, trained_parameters
from fusion_train.models.token_streams import MODALITIES

PARTIAL_PREFIX = ".partial-"
MODEL, AVERAGED = "model.safetensors", "averaged.safetensors"
OPTIMIZER_STATE = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class State:
    """The values of a checkpoint that are not tensors."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    step: int
    """Number of completed optimizer steps."""
    config_hash: str
    fingerprints: Mapping[str, str]
    scaler: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None
    """Validation score that decides the best checkpoint; None if this step was not scored."""
    half_scores: Sequence[float | None] = ()
    """Scores on each half of the held-out clips, if the run keeps the best weights of each half."""
    sha256: Mapping[str, str] = field(default_factory=dict)


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def published(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    named = (folder for folder in checkpoints.glob("step-*") if folder.name.removeprefix("step-").isdecimal())
    return sorted(folder for folder in named if (folder / "state.json").is_file())


def save(
    checkpoints: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    *,
    keep: int,
    keep_every: int | None = None,
    averaged: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Publish a checkpoint; then delete older ones, except the newest `keep`, multiples of `keep_every`, and the best.

    Args:
        averaged: moving average of the trained parameters by name.
    """
    target = step_folder(checkpoints, state.step)
    make_folder(checkpoints)
    for leftover in checkpoints.glob(f"{PARTIAL_PREFIX}*"):  # a run has one writer
        shutil.rmtree(leftover)
    folder = make_temporary_folder(checkpoints, PARTIAL_PREFIX)
    parameters = trained_parameters(model)
    with _complete_or_removed(folder):
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in parameters.items()}, folder / "model.safetensors"
        )
        if averaged is not None:
            save_file({name: tensor.contiguous() for name, tensor in averaged.items()}, folder / AVERAGED)
        save_file(_optimizer_tensors(parameters, optimizer), folder / "optimizer.safetensors")
        digests = {path.name: _sha256(path) for path in sorted(folder.glob("*.safetensors"))}
        write_document(folder / "state.json", {**asdict(state), "sha256": digests})
    publish_folder(folder, target)
    _retain(checkpoints, keep, keep_every)
    return target


@contextmanager
def _complete_or_removed(folder: Path) -> Iterator[None]:
    try:
        with writing(folder):
            yield
    except SafetensorError as error:  # how safetensors reports a full disk
        shutil.rmtree(folder)
        raise WriteError(
            str(folder.parent),
            expected="room for a checkpoint",
            got=str(error),
            next_step="Free space and resume; the checkpoints before this one are whole.",
        ) from error
    except BaseException:
        shutil.rmtree(folder)
        raise


def read_state(folder: Path) -> State:
    """Read and check a checkpoint's state; its other files are checked when they are loaded.

    Raises:
        CheckpointError: `state.json` is missing, damaged, or of another step than its folder.
    """
    path, next_step, expected = folder / "state.json", _delete(folder), "the state of a checkpoint"
    values = read_document(path, CheckpointError, expected, next_step)
    state = validate_document(values, State, path, CheckpointError, expected, next_step)
    if folder.name != step_folder(folder.parent, state.step).name:
        raise CheckpointError(
            str(path), expected=f"the step of {folder.name}", got=f"step {state.step}", next_step=next_step
        )
    return state


def verify(folder: Path) -> State:
    """Check every file of a checkpoint against its hash; return the state.

    Raises:
        CheckpointError: a file that is missing or damaged.
    """
    state = read_state(folder)
    for name in state.sha256:
        _check(folder, name, state)
    return state


def _check(folder: Path, name: str, state: State) -> None:
    path, digest = folder / name, state.sha256.get(name)
    if digest is None or not path.is_file() or _sha256(path) != digest:
        raise CheckpointError(
            str(path),
            expected=f"sha256 {digest[:12]}…" if digest else "a file that state.json lists",
            got="other bytes" if path.is_file() else "no file",
            next_step=_delete(folder),
        )


def _delete(folder: Path) -> str:
    return f"Delete {folder.name}; the run then resumes from the checkpoint before it."


def load_model(folder: Path, model: nn.Module, *, name: str = MODEL, parts: Sequence[str] | None = None) -> None:
    """Load the trained parts strictly.

    Args:
        name: file: MODEL to continue training, `best_weights(folder)` to use the model.
        parts: load only these, such as the fusion of a probe; None: all parts.

    Raises:
        CheckpointError: a damaged file, or differing names or shapes; all are listed.
    """
    tensors, parameters = _load(folder, name), trained_parameters(model)
    if parts is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if part_of(name) in parts}
        parameters = {name: parameter for name, parameter in parameters.items() if part_of(name) in parts}
    copy_strictly(tensors, parameters, str(folder))


def best_weights(folder: Path) -> str:
    """Return the name of the file to evaluate, export or start from: the moving average if there is one."""
    return AVERAGED if AVERAGED in read_state(folder).sha256 else MODEL


def load_averaged(folder: Path) -> dict[str, torch.Tensor]:
    """Load the moving average of a checkpoint, to continue it.

    Raises:
        CheckpointError: the checkpoint has none.
    """
    return _load(folder, AVERAGED)


def read_normalisation(folder: Path, name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Read modality -> mean and scale of the features that a probe was trained on; empty if they were not normalised.

    Args:
        name: file, as in `load_model`.

    Raises:
        CheckpointError: a damaged file.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in _load(folder, name).items():
        if part_of(key) == "normalisation":
            _, modality, statistic = key.split(".")
            found.setdefault(modality, {})[statistic] = tensor
    return {name: (found[name]["mean"], found[name]["scale"]) for name in MODALITIES if name in found}


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore AdamW's state.

    Raises:
        CheckpointError: a damaged file.
    """
    tensors = _load(folder, "optimizer.safetensors")
    fused = any(group.get("fused") for group in optimizer.param_groups)  # this AdamW counts its steps on the device
    for name, parameter in trained_parameters(model).items():
        state = {key: tensors[f"{key}.{name}"] for key in OPTIMIZER_STATE if f"{key}.{name}" in tensors}
        if state:  # a parameter that never had a gradient has no state
            optimizer.state[parameter] = {
                key: tensor if key == "step" and not fused else tensor.to(parameter.device)
                for key, tensor in state.items()
            }


def differences(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """Return lines of an error about missing and unexpected names and differing shapes."""
    lines = [f"missing: {name} {tuple(tensor.shape)}" for name, tensor in expected.items() if name not in tensors]
    lines += [f"unexpected: {name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in expected]
    lines += [
        f"{name}: expected {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in expected and expected[name].shape != tensor.shape
    ]
    return lines


def copy_strictly(tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter], subject: str) -> None:
    """Copy `tensors` into `parameters`.

    Raises:
        CheckpointError: differing names or shapes; all are listed.
    """
    problems = differences(tensors, parameters)
    if problems:
        raise CheckpointError(
            subject,
            expected="the trained parameters of this configuration",
            got=f"{len(problems)} that differ",
            next_step="Use the configuration that the checkpoint was trained with.",
            problems=problems,
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def best(checkpoints: Path, half: int | None = None) -> Path | None:
    """Return the checkpoint with the highest finite score, the earliest of equal ones; None if none was scored.

    Args:
        half: 0 or 1: use the score on this half of the held-out clips; None: on all.
    """
    scored = [
        (score, -state.step, folder)
        for folder, state in _states(checkpoints)
        if (score := _score(state, half)) is not None and math.isfinite(score)
    ]
    return max(scored)[2] if scored else None


def _score(state: State, half: int | None) -> float | None:
    if half is None:
        return state.score
    return state.half_scores[half] if half < len(state.half_scores) else None


def choose(checkpoints: Path, which: str) -> Path:
    """Return the folder of a checkpoint.

    Args:
        which: `last`, `best` (or the last if none was scored), or a step number.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    folders = published(checkpoints)
    if not folders:
        raise CheckpointError(str(checkpoints), expected="a checkpoint", got="none", next_step="Train the run first.")
    if which == "last":
        return folders[-1]
    if which == "best":
        return best(checkpoints) or folders[-1]
    for folder in folders:
        if which.isdigit() and int(folder.name.removeprefix("step-")) == int(which):
            return folder
    raise CheckpointError(
        f"checkpoint {which}",
        expected="last, best or one of " + ", ".join(folder.name for folder in folders),
        got="none",
    )


def _states(checkpoints: Path) -> list[tuple[Path, State]]:
    return [(folder, read_state(folder)) for folder in published(checkpoints)]


def _retain(checkpoints: Path, keep: int, keep_every: int | None) -> None:
    retained = {*published(checkpoints)[-keep:], *(best(checkpoints, half) for half in (None, 0, 1))}
    if keep_every is not None:
        retained |= {folder for folder, state in _states(checkpoints) if state.step % keep_every == 0}
    for folder in published(checkpoints):
        if folder not in retained:
            (folder / "state.json").unlink()  # first: a folder without it is no checkpoint, if this is interrupted
            shutil.rmtree(folder)


def _optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{key}.{name}": optimizer.state[parameter][key].detach().contiguous()
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for key in OPTIMIZER_STATE
    }


def _load(folder: Path, name: str) -> dict[str, torch.Tensor]:
    _check(folder, name, read_state(folder))
    try:
        return load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(str(folder / name), expected="a safetensors file", got=str(error)) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
