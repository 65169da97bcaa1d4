"""The batches of every step, prepared ahead of the model.

The samples of a step are the same for any number of processes (`micro_batches` says which go together where). A thread
draws, tokenises, packs and reads the next steps while the model works on this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fusion_train.config import Config
from fusion_train.data import micro_batches
from fusion_train.data.batches import Batch, Collator
from fusion_train.data.samples import SampleStream
from fusion_train.errors import ConfigError

AHEAD = 3
"""Steps prepared beyond the one in work."""


class PrefetchingLoader:
    """Micro-batches of one process, step by step."""

    def __init__(
        self, config: Config, stream: SampleStream, collator: Any, *, num_processes: int, process: int, budget: int
    ) -> None:
        """`budget`: tokens of a row, where `optim.micro_batch_size` is auto.

        Raises:
            ConfigError: the batch does not divide over processes and micro-batches, or a pack would part a clip's
                questions.
        """
        check_batching(config, num_processes)
        self._config, self._stream, self._collator, self._budget = config, stream, collator, budget
        self._num_processes, self._process = num_processes, process

    def micro_batches(self, step: int) -> list[Batch]:
        """What this process puts through the model in a step; an empty list never."""
        optim = self._config.optim
        first = step * optim.batch_size
        if isinstance(optim.micro_batch_size, int):
            rows = micro_batches.fixed(optim.batch_size, optim.micro_batch_size, self._num_processes, self._process)
            return [self._collator([self._stream.draw(first + number) for number in row]) for row in rows]
        samples = [self._stream.draw(first + number) for number in range(optim.batch_size)]
        if not isinstance(self._collator, Collator):  # a probe's samples all have one length
            return [self._collator(samples[self._process :: self._num_processes])]
        encoded = [self._collator.encode(sample) for sample in samples]
        rows = micro_batches.under_budget(
            [one.length for one in encoded],
            self._config.data.questions_per_clip,
            self._budget,
            self._num_processes,
            self._process,
        )
        return [self._collator([samples[n] for n in row], [encoded[n] for n in row]) for row in rows]

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of every step, prepared ahead; an exception there is raised here."""
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        ahead: deque[Future[list[Batch]]] = deque()
        try:
            for number in range(start, stop):
                ahead.append(pool.submit(self.micro_batches, number))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def check_batching(config: Config, num_processes: int) -> None:
    """Raise ConfigError where a batch does not divide into micro-batches over the processes, or a pack parts a clip's
    questions."""
    optim, questions = config.optim, config.data.questions_per_clip
    size = questions if optim.micro_batch_size == "auto" else optim.micro_batch_size
    if optim.batch_size % (size * num_processes):
        named = "data.questions_per_clip" if optim.micro_batch_size == "auto" else "micro_batch_size"
        raise ConfigError(
            "optim.batch_size",
            expected=f"a multiple of {named} {size} × {num_processes} processes",
            got=str(optim.batch_size),
        )
    if size % questions:
        raise ConfigError(
            "optim.micro_batch_size",
            expected=f"a multiple of data.questions_per_clip {questions}",
            got=str(size),
            next_step=f"Use --set optim.micro_batch_size={questions}, or auto.",
        )
