"""Prepare the batches of the next steps on a thread while the model works on the current step.

The samples of a step are the same, in the same order, for any number of processes. With a micro-batch of fixed size,
runs of that many samples go to the processes in turn. With `auto`, the questions on one clip form a unit: units go to
the processes in turn, and each process packs its units into rows under a budget, which weighs what a row costs in
memory. All processes make the same number of rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from fusion_train.config import Config
from fusion_train.data.batches import Batch, Collator
from fusion_train.data.packing import RowSize, row_size
from fusion_train.data.samples import SampleStream
from fusion_train.errors import ConfigError

STEPS_AHEAD = 3
"""Steps that are prepared beyond the current one."""


@dataclass(frozen=True)
class TokenBudget:
    """How the samples of a step are divided into rows, and whether activation checkpointing makes room for them."""

    tokens: int
    """Largest weight of a row of size auto, in tokens."""
    checkpointing: bool
    micro_batch_size: int | Literal["auto"] | None = None
    """Samples per row; None: that of the configuration, or 1."""
    supervised_weight: float = 0.0
    """Tokens whose activations take as much memory as the logits of one supervised token."""
    clip_weight: float = 0.0
    """Tokens whose activations take as much memory as the features of one clip."""

    def weight(self, size: RowSize) -> float:
        """Return the memory of a row, in tokens."""
        return size.tokens + self.supervised_weight * size.supervised + self.clip_weight * size.clips


class PrefetchingLoader:
    """The micro-batches of one process, step by step."""

    def __init__(
        self,
        config: Config,
        stream: SampleStream,
        collator: Any,
        *,
        num_processes: int,
        process: int,
        budget: TokenBudget | int,
    ) -> None:
        """Args:
            collator: a `Collator`, or the `ProbeCollator` of a stage without a language model.
            budget: how rows are filled; a number: tokens per row where `optim.micro_batch_size` is auto.

        Raises:
            ConfigError: the batch does not divide into micro-batches over the processes, or the questions on one clip
                would fall into two micro-batches.
        """
        self._budget = TokenBudget(budget, checkpointing=False) if isinstance(budget, int) else budget
        self._size = self._budget.micro_batch_size or config.optim.micro_batch_size or 1
        check_batching(config, num_processes, self._size)
        self._config, self._stream, self._collator = config, stream, collator
        self._num_processes, self._process = num_processes, process

    def micro_batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of this process in a step; there is at least one."""
        optim = self._config.optim
        first = step * optim.batch_size
        if isinstance(self._size, int):
            rows = fixed_rows(optim.batch_size, self._size, self._num_processes, self._process)
            return [self._collator([self._stream.draw(first + number) for number in row]) for row in rows]
        samples = [self._stream.draw(first + number) for number in range(optim.batch_size)]
        if not isinstance(self._collator, Collator):  # all samples of a probe have one length: no budget is needed
            return [self._collator(samples[self._process :: self._num_processes])]
        encoded = [self._collator.encode(sample) for sample in samples]
        questions, share = self._config.data.questions_per_clip, self._collator.share_prefix
        units = [range(start, start + questions) for start in range(0, len(samples), questions)]
        weights = [self._budget.weight(row_size([encoded[n] for n in unit], share=share)) for unit in units]
        rows = [
            [number for unit in row for number in units[unit]]
            for row in rows_under_budget(weights, self._budget.tokens, self._num_processes, self._process)
        ]
        return [self._collator([samples[n] for n in row], [encoded[n] for n in row]) for row in rows]

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of the steps `start` to `stop - 1`; an exception on the thread is raised here."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        ahead: deque[Future[list[Batch]]] = deque()
        try:
            for number in range(start, stop):
                ahead.append(thread.submit(self.micro_batches, number))
                if len(ahead) > STEPS_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)


def check_batching(config: Config, num_processes: int, micro_batch_size: int | Literal["auto"]) -> None:
    """Check that a batch divides into micro-batches over the processes and that no clip's questions are separated.

    Raises:
        ConfigError: it does not.
    """
    optim, questions = config.optim, config.data.questions_per_clip
    size = questions if micro_batch_size == "auto" else micro_batch_size
    if optim.batch_size % (size * num_processes):
        divisor = "data.questions_per_clip" if micro_batch_size == "auto" else "micro_batch_size"
        raise ConfigError(
            "optim.batch_size",
            expected=f"a multiple of {divisor} {size} × {num_processes} processes",
            got=str(optim.batch_size),
        )
    if size % questions:
        raise ConfigError(
            "optim.micro_batch_size",
            expected=f"a multiple of data.questions_per_clip {questions}",
            got=str(size),
            next_step=f"Use --set optim.micro_batch_size={questions}, or auto.",
        )


def fixed_rows(batch_size: int, size: int, num_processes: int, process: int) -> list[list[int]]:
    """Return the sample numbers of every micro-batch of one process, `size` samples per micro-batch."""
    return [list(range(start, start + size)) for start in range(process * size, batch_size, num_processes * size)]


def rows_under_budget(weights: Sequence[float], budget: float, num_processes: int, process: int) -> list[list[int]]:
    """Return the numbers of the units in every row of one process, filled up to a budget.

    Args:
        weights: weight of every unit of the step; the samples of a unit stay in one row.
        budget: largest weight of a row; a unit that is heavier has a row of its own.
    """
    shares = [range(rank, len(weights), num_processes) for rank in range(num_processes)]
    rows_of_process = [_filled(share, weights, budget) for share in shares]
    rows = rows_of_process[process]
    while len(rows) < max(map(len, rows_of_process)):  # all processes run the same number of passes
        rows = _split_heaviest(rows, weights)
    return rows


def _filled(units: Sequence[int], weights: Sequence[float], budget: float) -> list[list[int]]:
    """Put units into rows in their order; a row ends before the unit that would exceed the budget."""
    rows: list[list[int]] = []
    filled = budget
    for unit in units:
        if not rows or filled + weights[unit] > budget:
            rows.append([])
            filled = 0
        rows[-1].append(unit)
        filled += weights[unit]
    return rows


def _split_heaviest(rows: list[list[int]], weights: Sequence[float]) -> list[list[int]]:
    """Cut the heaviest row, of those with two units or more, into two rows."""
    chosen = max(
        (number for number, row in enumerate(rows) if len(row) > 1),
        key=lambda number: sum(weights[unit] for unit in rows[number]),
    )
    row = rows[chosen]
    half = len(row) // 2
    return [*rows[:chosen], row[:half], row[half:], *rows[chosen + 1 :]]
