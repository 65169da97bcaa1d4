"""A run on its way to its first step: its record, its clip list, the halves it keeps, the weights that it starts from.

The trainer takes all its runs through these steps in turn, so that an error of any of them comes before one is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from accelerate import Accelerator

from featurecache.clips.clip_list import Clip
from fusion_train.checkpoint import published
from fusion_train.data.halves import Halves
from fusion_train.data.loader import TokenBudget
from fusion_train.data.probe_batches import ProbeCollator
from fusion_train.run import Run, RunRecord, absolute
from fusion_train.run_context import RunContext
from fusion_train.training.callbacks import described
from fusion_train.training.clip_list_changes import check_lists
from fusion_train.training.resume import halves_of, make_record, start_from
from fusion_train.training.shared_base import RunRequest
from fusion_train.training.training_run import Callback


@dataclass
class Opening:
    """One run on its way to its first step."""

    request: RunRequest
    accelerator: Accelerator
    context: RunContext
    existing: RunRecord | None
    """The record in the run's folder; None for a new run."""
    changed: RunRecord | None = None
    """The record after an accepted change of the clip list."""
    halves: Halves = ()
    initial: dict[str, Any] | None = None
    """Description of the weights that the run starts from."""

    @property
    def record(self) -> RunRecord | None:
        return self.changed or self.existing

    @property
    def fresh(self) -> bool:
        """Whether the clips that the run draws from have to be saved."""
        return self.existing is None or self.changed is not None

    def compare_lists(self, first: RunContext, *, accept: bool, say: Callable[[str], None]) -> None:
        """Compare the clip list with that of the record, and find the halves of the held-out clips."""
        if self.existing is not None:
            self.changed = check_lists(self.request.run, self.existing, first, accept=accept, say=say)
        self.halves = halves_of(self.request.run, first, self.record, self.request.per_half)

    def load_initial(self, clips: Sequence[Clip]) -> None:
        """Load the weights that the run starts from, as requested or as recorded.

        A new probe that starts from none takes the statistics of its features from `clips`, which it trains on.
        """
        initial = self.request.initial
        if self.existing is not None and self.existing.initial is not None:
            initial = Run(absolute(self.existing.initial["run"], self.request.run.folder))
        if initial is not None:
            self.initial = start_from(initial, self.request.run, self.context.model, self.existing)
        elif isinstance(self.context.collator, ProbeCollator) and not published(self.request.run.checkpoints):
            self.context.collator.fit_normalisation(self.context.model, clips)

    def write_record(
        self, store: str, clips: str, pool_sha256: str, callbacks: Sequence[Callback], budget: TokenBudget
    ) -> None:
        """Create the run's folder, or record an accepted change of its clip list."""
        run = self.request.run
        if self.existing is None:
            record = make_record(self.context, store, clips, run, self.initial, self.halves)
            record = replace(record, pool_sha256=pool_sha256, callbacks=described(callbacks), rows=asdict(budget))
            run.create(self.request.config, record)
        elif self.changed is not None:
            run.keep(replace(self.changed, pool_sha256=pool_sha256))
