"""The work units of one run while they are written.

Units are opened one after another, and closed when all their shards are committed. A shard is begun with its first
clip and committed with its last. A batch always holds the same slots of the same shard, with padding where a clip has
no input, so a clip's bytes do not depend on whether its neighbours failed. A run that ends early commits the clips
that are finished. This module knows no media format and no store format.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from featurecache.clips.clip_list import ClipList
from featurecache.encoders import Encoder
from featurecache.extract.first_failures import FirstFailures
from featurecache.extract.pipeline import BatchTarget, ForwardBatch, Rows
from featurecache.extract.prepare import ClipInputs, EncoderInput, PreparationTask
from featurecache.extract.stats import ClipCounts, ExtractionStats
from featurecache.extract.work_units import WorkUnit
from featurecache.store.protocols import FeatureWriter, NotFiniteError, Shard, ShardWriter

NOT_IN_LIST = "not in the clip list when its shard was extracted"
DECIDED_LATER = EncoderInput("", failed="decided in a later shard")
"""Fills the slot of a clip that a later shard holds."""


class OpenWorkUnits:
    """All work units of one run, and the unit that waits for each clip."""

    def __init__(self, units: Iterable[WorkUnit], open_unit: Callable[[WorkUnit], OpenWorkUnit]) -> None:
        self._units, self._open_unit = units, open_unit
        self._open: deque[OpenWorkUnit] = deque()
        self._by_clip: dict[str, OpenWorkUnit] = {}
        self._unfinished: deque[OpenWorkUnit] = deque()
        """Units whose listed clips are all in preparation, and whose slots of unlisted clips are not yet decided."""
        self._num_committed_closed = 0

    def tasks(self) -> Iterator[PreparationTask]:
        """Yield every clip to prepare, of every unit that this process can claim."""
        busy: list[WorkUnit] = []
        for unit in self._units:
            if not (yield from self._tasks_of(unit)):
                busy.append(unit)
        for unit in busy:  # a second attempt: the process that held the unit may have died
            yield from self._tasks_of(unit)

    def _tasks_of(self, unit: WorkUnit) -> Generator[PreparationTask, None, bool]:
        """Yield the clips of one unit; return whether this process could claim it."""
        self._close_committed()
        opened = self._open_unit(unit)
        self._open.append(opened)
        if not opened.claim():
            self._open.pop().close()
            return False
        for clip, encoders in opened.tasks():
            self._by_clip[clip.id] = opened
            yield clip, encoders
        self._unfinished.append(opened)
        return True

    def decide(self, inputs: ClipInputs) -> list[ForwardBatch]:
        """Put a prepared clip into its slots; return the batches that are full now."""
        unit = self._by_clip.pop(inputs.clip.id)
        return [*self.decide_unlisted(), *unit.decide(inputs.clip.id, inputs.by_feature)]

    def decide_unlisted(self) -> list[ForwardBatch]:
        """Decide the slots of clips that are not in the list, of every unit whose listed clips are in preparation.

        Returns the batches that are full now.
        """
        batches: list[ForwardBatch] = []
        while self._unfinished:
            batches += self._unfinished.popleft().decide_unlisted()
        return batches

    def partial_batches(self) -> list[ForwardBatch]:
        """Return the batches that are not full, for a run that ends early."""
        return [batch for unit in self._open for batch in unit.partial_batches()]

    def commit_partial(self, *, failed: bool) -> None:
        """Commit the decided clips of shards that are not complete; clips that failed only with `failed`.

        Raises:
            WriteError: the disk is full or refuses.
        """
        for unit in self._open:
            unit.commit_partial(failed=failed)

    @property
    def num_committed(self) -> int:
        """Clips that this run decided and that are committed."""
        return self._num_committed_closed + sum(unit.num_committed for unit in self._open)

    def close(self) -> None:
        """Give up every shard that is not committed."""
        while self._open:
            self._open.pop().close()

    def _close_committed(self) -> None:
        while self._open and self._open[0].committed:
            unit = self._open.popleft()
            self._num_committed_closed += unit.num_committed
            unit.close()


class OpenWorkUnit:
    """The shards of one work unit while they are written.

    `decide` and `decide_unlisted` return batches; the writer thread calls the `write` of their targets.
    """

    def __init__(
        self,
        unit: WorkUnit,
        writers: Mapping[str, FeatureWriter],
        encoders: Mapping[str, Encoder],
        clips: ClipList,
        stats: ExtractionStats,
        sharing: Mapping[str, str],
        first_failures: FirstFailures,
    ) -> None:
        """Prepare to write `unit`; features with an equal value in `sharing` take their tokens from one forward."""
        self._writers, self._encoders, self._clips, self._stats = writers, encoders, clips, stats
        self._sharing, self._first_failures = sharing, first_failures
        self._listed = set(clips.ids)
        self._shards = unit.shards
        self._partly_committed: set[tuple[str, str]] = set()
        """(feature, clip id) of what `commit_partial` committed."""
        self._slots: dict[str, list[tuple[int, int]]] = {}
        """Slots of each clip id: (index of the shard, slot)."""
        for index, (name, shard) in enumerate(self._shards):
            decided_later = unit.decided_later.get((name, shard.number), frozenset())
            for slot, clip_id in enumerate(shard.ids):
                if clip_id not in decided_later:
                    self._slots.setdefault(clip_id, []).append((index, slot))
        self._open: dict[int, _OpenShard | None] = {}
        """By index of the shard; None is a shard that another process works on."""
        self._stack = ExitStack()

    def close(self) -> None:
        """Give up every shard that is not committed."""
        self._stack.close()

    @property
    def committed(self) -> bool:
        """Whether every shard is committed, or left to another process."""
        opened = (self._open.get(index) for index in range(len(self._shards)))
        return len(self._open) == len(self._shards) and all(shard is None or shard.committed for shard in opened)

    def claim(self) -> bool:
        """Claim the largest shard, which stands for the unit; return False if there is none to claim."""
        sizes = [len(shard.ids) for _, shard in self._shards]
        return bool(sizes) and self._opened(sizes.index(max(sizes))) is not None

    def tasks(self) -> Iterator[PreparationTask]:
        """Yield every listed clip with the encoders that need it, in the order of the slots, so shards fill early."""
        for clip_id, slots in self._slots.items():
            names = [self._shards[index][0] for index, _ in slots if self._open.get(index, True) is not None]
            if clip_id in self._listed and names:
                yield self._clips.by_id(clip_id), {name: self._encoders[name] for name in dict.fromkeys(names)}

    def decide(self, clip_id: str, by_feature: Mapping[str, EncoderInput]) -> list[ForwardBatch]:
        """Put one clip into every slot that it has; return the batches that are full now."""
        full = []
        for index, slot in self._slots[clip_id]:
            name = self._shards[index][0]
            if name in by_feature:
                full += self._decide(index, slot, by_feature[name])
        return self._joined(full)

    def decide_unlisted(self) -> list[ForwardBatch]:
        """Decide the slots of clips that are not in the list; return the batches that are full now."""
        full = []
        for clip_id, slots in self._slots.items():
            if clip_id not in self._listed:
                for index, slot in slots:
                    full += self._decide(index, slot, EncoderInput("", failed=NOT_IN_LIST))
        for index in range(len(self._shards)):
            opened = self._opened(index)
            full += [] if opened is None else opened.full_batches()
        return [_one_forward([batch]) for batch in full]

    def partial_batches(self) -> list[ForwardBatch]:
        """Return the batches that are not full, for a run that ends early."""
        opened = [shard for shard in self._open.values() if shard is not None]
        return self._joined([batch for shard in opened for batch in shard.full_batches(partial=True)])

    def commit_partial(self, *, failed: bool) -> None:
        """Commit the decided clips of shards that are not complete; clips that failed only with `failed`.

        Raises:
            WriteError: the disk is full or refuses.
        """
        for shard in self._open.values():
            if shard is not None and not shard.committed:
                self._partly_committed.update((shard.name, clip_id) for clip_id in shard.commit_partial(failed=failed))

    @property
    def num_committed(self) -> int:
        """Clips of the list that this unit decided, and that are committed in every feature that needs them."""

        def is_committed(clip_id: str, index: int) -> bool:
            opened = self._open.get(index)
            name = self._shards[index][0]
            return opened is not None and (opened.committed or (name, clip_id) in self._partly_committed)

        return sum(
            clip_id in self._listed and all(is_committed(clip_id, index) for index, _ in slots)
            for clip_id, slots in self._slots.items()
        )

    def _decide(self, index: int, slot: int, encoder_input: EncoderInput) -> list[_ShardBatch]:
        opened = self._opened(index)
        full = None if opened is None else opened.decide(slot, encoder_input)
        return [] if full is None else [full]

    def _joined(self, batches: list[_ShardBatch]) -> list[ForwardBatch]:
        """Join batches of features that share a forward and hold the same clips at the same positions."""
        groups: dict[tuple[object, ...], list[_ShardBatch]] = {}
        for number, batch in enumerate(batches):
            arrays = [(position, id(array)) for position, array in sorted(batch.inputs.items())]
            key = (self._sharing[batch.target.feature], *arrays) if arrays else (number,)
            groups.setdefault(key, []).append(batch)
        return [_one_forward(group) for group in groups.values()]

    def _opened(self, index: int) -> _OpenShard | None:
        """Return a shard, claimed at the first call; None if another process works on it."""
        if index not in self._open:
            name, shard = self._shards[index]
            writer = self._writers[name].claim(shard)
            if writer is None:
                self._open[index] = None
            else:
                self._stack.enter_context(writer)
                batch_size, counts = self._encoders[name].batch_size, self._stats.by_feature[name]
                decided_later = self._writers[name].superseded(shard)
                self._open[index] = _OpenShard(
                    name, shard, writer, batch_size, counts, self._first_failures, decided_later
                )
        return self._open[index]


@dataclass(frozen=True)
class _ShardBatch:
    """A batch of one feature's shard."""

    inputs: Mapping[int, np.ndarray]
    """By position in the batch, of the clips that have an input."""
    target: BatchTarget


def _one_forward(batches: Sequence[_ShardBatch]) -> ForwardBatch:
    """Join batches whose inputs are the same arrays at the same positions."""
    return ForwardBatch(batches[0].inputs, tuple(batch.target for batch in batches))


class _OpenShard:
    """One shard while it is written. Batch g holds slots g·B … g·B + B − 1; it is full when all of them are decided."""

    def __init__(
        self,
        name: str,
        shard: Shard,
        writer: ShardWriter,
        batch_size: int,
        counts: ClipCounts,
        first_failures: FirstFailures,
        decided_later: frozenset[str],
    ) -> None:
        """Begin with the slots of `decided_later` filled: a later shard holds these clips."""
        self.name = name
        self._shard, self._writer, self._batch_size, self._counts = shard, writer, batch_size, counts
        self._first_failures = first_failures
        self._num_written = 0
        self._batches: dict[int, dict[int, EncoderInput]] = {}
        for slot, clip_id in enumerate(shard.ids):
            if clip_id in decided_later:
                number, position = divmod(slot, batch_size)
                self._batches.setdefault(number, {})[position] = DECIDED_LATER
        self.committed = False

    def decide(self, slot: int, encoder_input: EncoderInput) -> _ShardBatch | None:
        """Fill a slot; return its batch if that is full now."""
        number, position = divmod(slot, self._batch_size)
        batch = self._batches.setdefault(number, {})
        if position in batch:  # another run decided it in a later shard, after this unit was planned
            return None
        batch[position] = encoder_input
        return self._pop_batch(number) if self._is_full(number) else None

    def full_batches(self, *, partial: bool = False) -> list[_ShardBatch]:
        """Return the batches that were full from the beginning; with `partial`, the ones that are not full too."""
        numbers = [number for number in sorted(self._batches) if partial or self._is_full(number)]
        return [self._pop_batch(number) for number in numbers]

    def commit_partial(self, *, failed: bool) -> list[str]:
        """Commit the decided clips as a shard of its own; return their ids."""
        return self._writer.commit_partial(failed=failed and self._first_failures.trusts(self.name))

    def _is_full(self, number: int) -> bool:
        return len(self._batches[number]) == min(self._batch_size, len(self._shard.ids) - number * self._batch_size)

    def _pop_batch(self, number: int) -> _ShardBatch:
        batch, first_slot = self._batches.pop(number), number * self._batch_size
        inputs = {position: item.array for position, item in batch.items() if item.array is not None}
        num_valid = {position: item.num_valid for position, item in batch.items() if item.num_valid is not None}
        target = BatchTarget(self.name, num_valid, lambda rows: self._write(first_slot, batch, rows))
        return _ShardBatch(inputs, target)

    def _write(self, first_slot: int, batch: Mapping[int, EncoderInput], rows: Rows) -> None:
        for position, encoder_input in sorted(batch.items()):
            self._write_slot(first_slot + position, encoder_input, rows.get(position))
        if self._num_written == len(self._shard.ids):
            self._first_failures.commit(self.name, self._commit)

    def _commit(self) -> None:
        self._writer.commit()
        self.committed = True

    def _write_slot(self, slot: int, encoder_input: EncoderInput, tokens: np.ndarray | None) -> None:
        self._num_written += 1
        if encoder_input is DECIDED_LATER:
            self._writer.mark_superseded(slot)
            return
        failure = encoder_input.failed
        if tokens is not None:
            try:
                self._writer.put(slot, tokens, encoder_input.source)
                self._counts.ok += 1
            except NotFiniteError as error:
                failure = f"the encoder's output cannot be stored: {error}"
        if failure != NOT_IN_LIST:
            self._first_failures.note(self.name, self._shard.ids[slot], failure)
        if failure:
            self._writer.fail(slot, failure, encoder_input.source)
            self._counts.failed += 1
            self._counts.failed_ids.setdefault(failure, []).append(self._shard.ids[slot])
        elif tokens is None:
            self._writer.absent(slot, encoder_input.absent, encoder_input.source)
            self._counts.absent += 1
