"""Callbacks: a user's own code in the training loop, in a file of the user's own.

    from fusion_train.training.callbacks import Callback

    class LabelSmoothing(Callback):
        def on_start(self, run):
            run.context.model.token_loss = partial(F.cross_entropy, reduction="none", label_smoothing=0.1)

    fusion-train --stage cognition --callback smoothing.py:LabelSmoothing

The run records the name and the sha256 of the file of each callback; a resume with others is refused. A resumed run
equals an uninterrupted one as long as a callback is a function of the run and the step, and keeps no state of its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_train.errors import CheckpointError, ConfigError
from fusion_train.run import Run, RunRecord
from fusion_train.training.training_run import Callback

__all__ = ["Callback", "described", "load_callbacks", "refuse_other_callbacks"]


def load_callbacks(references: Sequence[str]) -> list[Callback]:
    """Make the callbacks that `FILE.py:CLASS` names.

    Raises:
        ConfigError: no such file or class, or a class that is no Callback; the next step says which form is expected.
    """
    callbacks = []
    for reference in references:
        file, _, name = reference.rpartition(":")
        path = Path(file)
        if not name or not path.is_file():
            raise ConfigError(
                f"--callback {reference}",
                expected="FILE.py:CLASS, a file and a class in it",
                got="no such file" if file else "no class",
                next_step="See docs/guides/training.md for an example.",
            )
        kind = getattr(_load(path), name, None)
        if not (isinstance(kind, type) and issubclass(kind, Callback)):
            raise ConfigError(
                f"--callback {reference}",
                expected=f"a class {name} that inherits from fusion_train.training.callbacks.Callback",
                got="none" if kind is None else repr(kind),
            )
        callback = kind()
        callback.source = hashlib.sha256(path.read_bytes()).hexdigest()
        callbacks.append(callback)
    return callbacks


def described(callbacks: Sequence[Callback]) -> dict[str, str]:
    """What `run.json` keeps: name -> sha256 of its file."""
    return {callback.name: callback.source for callback in callbacks}


def refuse_other_callbacks(run: Run, record: RunRecord | None, callbacks: Sequence[Callback]) -> None:
    """Raise CheckpointError where a run began with other callbacks than those that it would go on with."""
    if record is None or dict(record.callbacks) == described(callbacks):
        return
    began, now = (", ".join(sorted(names)) or "none" for names in (record.callbacks, described(callbacks)))
    raise CheckpointError(
        str(run.folder),
        expected=f"the callbacks that the run began with: {began}",
        got=now if now != began else f"{now}, whose file changed",
        next_step="Name the same files with --callback FILE.py:CLASS, or start another run with --out.",
    )


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"callback_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--callback {path}", expected="a Python file, *.py", got="another kind of file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
