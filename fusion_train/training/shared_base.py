"""Run contexts of the runs that train on the same batches: clips, features and the frozen base exist once.

The first run's context is opened as for a run alone; every other run gets a model of its own over the same base
weights, and shares the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from featurecache.errors import FingerprintError
from fusion_train.config import Config
from fusion_train.llm.loading import build_model, load_llm
from fusion_train.models.model_group import shared_copy
from fusion_train.processes import this_process
from fusion_train.run import Run
from fusion_train.run_context import RunContext, build_context


class SharedBase:
    """Language models by name and dtype, loaded once; the last one stays loaded."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._llm: nn.Module | None = None

    def plain(self, name: str, dtype: str) -> nn.Module:
        """Return the model without adapters, on the device of this process."""
        if self._key != (name, dtype) or self._llm is None:
            self._llm = None  # frees its memory before the next one is loaded
            self._llm, self._key = load_llm(name, dtype).to(this_process().device), (name, dtype)
        return self._llm

    def copy(self, name: str, dtype: str) -> nn.Module:
        """Return new modules over the same weights."""
        return shared_copy(self.plain(name, dtype))


@dataclass(frozen=True)
class RunRequest:
    """A run to train, or to resume."""

    config: Config
    run: Run
    initial: Run | None = None
    """The run whose best trained weights this one starts from."""
    per_half: bool = False
    """Whether it also keeps the weights that are best on each half of the held-out clips; a run remembers this."""


def open_contexts(
    requests: Sequence[RunRequest],
    opened: Sequence[RunContext | None],
    *,
    store: str,
    clips: str,
    base: SharedBase | None,
) -> list[RunContext]:
    """Open the contexts of runs that take the same batches; they share everything but the model.

    Args:
        opened: per run the context that is open already, or None.
        base: where the language model comes from; None loads one for a single run.
    """
    first = next((context for context in opened if context is not None), None)
    contexts = []
    for request, context in zip(requests, opened, strict=True):
        if context is None:
            context = _first_context(request, store, clips, base) if first is None else _beside(first, request, base)
        first = first or context
        contexts.append(context)
    return contexts


def _first_context(request: RunRequest, store: str, clips: str, base: SharedBase | None) -> RunContext:
    record = request.run.record() if request.run.exists else None
    return build_context(
        request.config,
        store,
        clips,
        fingerprints=record.fingerprints if record else None,
        sets=record.label_sets if record else None,
        load=load_llm if base is None else base.copy,
    )


def _beside(first: RunContext, request: RunRequest, base: SharedBase | None) -> RunContext:
    """The context of another run: a model of its own, everything else from the first one."""
    if base is None:
        raise ValueError("several runs need a shared base")
    if request.run.exists and dict(request.run.record().fingerprints) != first.reader.fingerprints:
        raise FingerprintError(
            str(request.run.folder),
            expected="the features that the run was trained on",
            got="others",
            next_step="Name the store it was trained from with --store, or delete the run.",
        )
    config = request.config
    llm = base.copy(config.model.llm or "", config.model.llm_dtype)
    return replace(first, config=config, model=build_model(config, llm, first.reader.shapes))
