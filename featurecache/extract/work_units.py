"""The pieces that extraction is done in: planned shards that share clips, while they are being written.

A unit is the planned shards, of any feature, that share clips, so that a clip is decoded once for all of them. A batch
is always the same slots of the same shard, padded where a clip has no input, so a clip's bytes do not depend on its
neighbours' fate. A shard is begun with its first clip and committed with its last. This module knows no media format
and no store format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.encoders import Encoder
from featurecache.extract.first_failures import FirstFailures
from featurecache.extract.pipeline import Batch, Member
from featurecache.extract.prepare import Prepared
from featurecache.extract.stats import Summary, Tally
from featurecache.store.protocols import FeatureWriter, NotFiniteError, Shard, ShardWriter

NOT_IN_LIST = "not in the clip list when its shard was extracted"
LATER = Prepared("", failed="decided in a later shard")
"""Stands for a clip that a later shard holds."""


@dataclass(frozen=True)
class Unit:
    """Planned shards, of any feature, that share clips."""

    shards: tuple[tuple[str, Shard], ...]
    """Those still to do."""
    committed: tuple[tuple[str, Shard], ...] = ()
    later: Mapping[tuple[str, int], frozenset[str]] = field(default_factory=dict)
    """Clips of shards to do that a later shard has decided, by feature and shard number."""

    def to_do(self, feature: str) -> set[str]:
        """Clips that one feature has yet to decide."""
        return {
            clip_id
            for name, shard in self.shards
            if name == feature
            for clip_id in set(shard.ids) - self.later.get((name, shard.number), frozenset())
        }


def plan_units(writers: Mapping[str, FeatureWriter], clips: ClipList) -> list[Unit]:
    """Group planned shards that share clips, in list order; only shards with a clip of the list.

    Grouped over all planned shards, done or not, so that every rank divides the work alike whenever it starts.
    """
    order = {clip_id: number for number, clip_id in enumerate(clips.ids)}
    shards = [(name, shard) for name, writer in writers.items() for shard in writer.shards()]
    parent = list(range(len(shards)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_with: dict[str, int] = {}
    place: dict[int, int] = {}
    for index, (_, shard) in enumerate(shards):
        for clip_id in shard.ids:
            if clip_id in order:
                parent[root(index)] = root(first_with.setdefault(clip_id, index))
    groups: dict[int, list[int]] = {}
    for index, (_, shard) in enumerate(shards):
        position = min((order[clip_id] for clip_id in shard.ids if clip_id in order), default=None)
        if position is not None:
            groups.setdefault(root(index), []).append(index)
            place[root(index)] = min(place.get(root(index), position), position)
    pending = {(name, shard.number) for name, writer in writers.items() for shard in writer.pending()}
    units = []
    for leader in sorted(groups, key=place.__getitem__):
        members = [shards[index] for index in groups[leader]]
        to_do = tuple((name, shard) for name, shard in members if (name, shard.number) in pending)
        done = tuple((name, shard) for name, shard in members if (name, shard.number) not in pending)
        later = {(name, shard.number): writers[name].decided_later(shard) for name, shard in to_do}
        units.append(Unit(to_do, done, later))
    return units


def num_clips(unit: Unit) -> int:
    """How many clips a unit decides."""
    return len(set().union(*(unit.to_do(name) for name, _ in unit.shards)))


class OpenUnit:
    """The shards of one unit while they are written: each is begun with its first clip and committed with its last.

    Batches come out of `take` and `finish`; what they give is written by whoever runs them, on a thread of its own.
    """

    def __init__(
        self,
        unit: Unit,
        writers: Mapping[str, FeatureWriter],
        encoders: Mapping[str, Encoder],
        clips: ClipList,
        summary: Summary,
        sharing: Mapping[str, str],
        first: FirstFailures,
    ) -> None:
        """Prepare to write `unit`; features with an equal value in `sharing` take their tokens from one forward."""
        self._writers, self._encoders, self._clips, self._summary = writers, encoders, clips, summary
        self._sharing, self._first = sharing, first
        self._listed = set(clips.ids)
        self._shards = unit.shards
        self._kept: set[tuple[str, str]] = set()
        """Features and clips that `keep` committed."""
        self._wanted: dict[str, list[tuple[int, int]]] = {}
        """Where each clip goes: (index of the shard, slot)."""
        for index, (name, shard) in enumerate(self._shards):
            later = unit.later.get((name, shard.number), frozenset())
            for slot, clip_id in enumerate(shard.ids):
                if clip_id not in later:
                    self._wanted.setdefault(clip_id, []).append((index, slot))
        self._open: dict[int, _OpenShard | None] = {}
        """None is a shard that another process works on."""
        self._stack = ExitStack()

    def close(self) -> None:
        """Give up what is not committed."""
        self._stack.close()

    @property
    def written(self) -> bool:
        """Whether every shard is committed, here or by others."""
        opened = (self._open.get(index) for index in range(len(self._shards)))
        return len(self._open) == len(self._shards) and all(shard is None or shard.committed for shard in opened)

    def claim(self) -> bool:
        """Begin the largest shard, which stands for the unit; return whether there is one and it is ours to do."""
        sizes = [len(shard.ids) for _, shard in self._shards]
        return bool(sizes) and self._opened(sizes.index(max(sizes))) is not None

    def jobs(self) -> Iterator[tuple[Clip, Mapping[str, Encoder]]]:
        """Yield every listed clip of the unit with the encoders that want it, in an order that fills shards early."""
        for clip_id, places in self._wanted.items():
            wanted = [self._shards[index][0] for index, _ in places if self._open.get(index, True) is not None]
            if clip_id in self._listed and wanted:
                yield self._clips.by_id(clip_id), {name: self._encoders[name] for name in dict.fromkeys(wanted)}

    def take(self, clip_id: str, by_feature: Mapping[str, Prepared]) -> list[Batch]:
        """Decide one clip in every shard that has a slot for it; return the batches that are full now."""
        full = []
        for index, slot in self._wanted[clip_id]:
            name = self._shards[index][0]
            if name in by_feature:
                full += self._decide(index, slot, by_feature[name])
        return self._joined(full)

    def finish(self) -> list[Batch]:
        """Decide the slots of clips that the list does not have; return the batches that are full now."""
        full = []
        for clip_id, places in self._wanted.items():
            if clip_id not in self._listed:
                for index, slot in places:
                    full += self._decide(index, slot, Prepared("", failed=NOT_IN_LIST))
        for index in range(len(self._shards)):
            opened = self._opened(index)
            full += [] if opened is None else opened.rest()
        return [_one_forward([batch]) for batch in full]

    def begun(self) -> list[Batch]:
        """Return the batches that are not full, with what they hold: for a run that stops here."""
        opened = [shard for shard in self._open.values() if shard is not None]
        return self._joined([batch for shard in opened for batch in shard.rest(partly=True)])

    def keep(self, *, failed: bool) -> None:
        """Commit what is decided of shards that are not whole; without `failed`, not the clips that failed.

        Raises:
            WriteError: the disk is full or refuses.
        """
        for shard in self._open.values():
            if shard is not None and not shard.committed:
                self._kept.update((shard.name, clip_id) for clip_id in shard.keep(failed=failed))

    @property
    def num_kept(self) -> int:
        """Clips of the list that this unit has decided, and that are committed in every feature that wanted them."""

        def is_kept(clip_id: str, index: int) -> bool:
            opened = self._open.get(index)
            name = self._shards[index][0]
            return opened is not None and (opened.committed or (name, clip_id) in self._kept)

        return sum(
            clip_id in self._listed and all(is_kept(clip_id, index) for index, _ in places)
            for clip_id, places in self._wanted.items()
        )

    def _decide(self, index: int, slot: int, prepared: Prepared) -> list[_FullBatch]:
        opened = self._opened(index)
        full = None if opened is None else opened.take(slot, prepared)
        return [] if full is None else [full]

    def _joined(self, full: list[_FullBatch]) -> list[Batch]:
        """Join batches of features that share a forward and hold the same clips in the same places."""
        joined: dict[tuple[object, ...], list[_FullBatch]] = {}
        for number, batch in enumerate(full):
            same = [(position, id(array)) for position, array in sorted(batch.inputs.items())]
            key = (self._sharing[batch.member.feature], *same) if same else (number,)
            joined.setdefault(key, []).append(batch)
        return [_one_forward(batches) for batches in joined.values()]

    def _opened(self, index: int) -> _OpenShard | None:
        if index not in self._open:
            name, shard = self._shards[index]
            writer = self._writers[name].claim(shard)
            if writer is None:
                self._open[index] = None
            else:
                self._stack.enter_context(writer)
                size, tally = self._encoders[name].batch_size, self._summary.by_feature[name]
                later = self._writers[name].decided_later(shard)
                self._open[index] = _OpenShard(name, shard, writer, size, tally, self._first, later)
        return self._open[index]


@dataclass(frozen=True)
class _FullBatch:
    """A batch of one feature's shard, all of whose slots are decided."""

    inputs: Mapping[int, np.ndarray]
    """By position in the batch, of the clips that have one."""
    member: Member


def _one_forward(batches: Sequence[_FullBatch]) -> Batch:
    """Join batches whose inputs are the same arrays in the same places."""
    return Batch(batches[0].inputs, tuple(batch.member for batch in batches))


class _OpenShard:
    """One shard while it is written. Batch g is slots g·B … g·B + B − 1; it is full when all of them are decided."""

    def __init__(
        self,
        name: str,
        shard: Shard,
        writer: ShardWriter,
        batch_size: int,
        tally: Tally,
        first: FirstFailures,
        later: frozenset[str],
    ) -> None:
        """Begin with the clips of `later` decided: a later shard holds them."""
        self.name = name
        self._shard, self._writer, self._batch_size, self._tally = shard, writer, batch_size, tally
        self._first = first
        self._written = 0
        self._batches: dict[int, dict[int, Prepared]] = {}
        for slot, clip_id in enumerate(shard.ids):
            if clip_id in later:
                number, position = divmod(slot, batch_size)
                self._batches.setdefault(number, {})[position] = LATER
        self.committed = False

    def take(self, slot: int, prepared: Prepared) -> _FullBatch | None:
        """Note what became of a slot; return its batch once that is full."""
        number, position = divmod(slot, self._batch_size)
        batch = self._batches.setdefault(number, {})
        if position in batch:  # decided later by a run that stopped after this one was planned
            return None
        batch[position] = prepared
        return self._give_out(number) if self._is_full(number) else None

    def rest(self, *, partly: bool = False) -> list[_FullBatch]:
        """Batches that were full from the beginning, and with `partly` also those that are not full."""
        chosen = [number for number in sorted(self._batches) if partly or self._is_full(number)]
        return [self._give_out(number) for number in chosen]

    def keep(self, *, failed: bool) -> list[str]:
        """Commit what is decided as a shard of its own; returns the clips."""
        return self._writer.commit_decided(failed=failed and self._first.trusts(self.name))

    def _is_full(self, number: int) -> bool:
        return len(self._batches[number]) == min(self._batch_size, len(self._shard.ids) - number * self._batch_size)

    def _give_out(self, number: int) -> _FullBatch:
        batch, first = self._batches.pop(number), number * self._batch_size
        inputs = {at: each.input for at, each in batch.items() if each.input is not None}
        valid = {at: each.valid for at, each in batch.items() if each.valid is not None}
        return _FullBatch(inputs, Member(self.name, valid, lambda rows: self._write(first, batch, rows)))

    def _write(self, first: int, batch: Mapping[int, Prepared], rows: Mapping[int, np.ndarray]) -> None:
        for position, prepared in sorted(batch.items()):
            self._write_one(first + position, prepared, rows.get(position))
        if self._written == len(self._shard.ids):
            self._first.commit(self.name, self._commit)

    def _commit(self) -> None:
        self._writer.commit()
        self.committed = True

    def _write_one(self, slot: int, prepared: Prepared, tokens: np.ndarray | None) -> None:
        self._written += 1
        if prepared is LATER:
            self._writer.decided_later(slot)
            return
        failed = prepared.failed
        if tokens is not None:
            try:
                self._writer.put(slot, tokens, prepared.source)
                self._tally.ok += 1
            except NotFiniteError as error:
                failed = f"the encoder's output cannot be stored: {error}"
        if failed != NOT_IN_LIST:
            self._first.note(self.name, self._shard.ids[slot], failed)
        if failed:
            self._writer.fail(slot, failed, prepared.source)
            self._tally.failed += 1
            self._tally.reasons[failed] += 1
        elif tokens is None:
            self._writer.absent(slot, prepared.absent, prepared.source)
            self._tally.absent += 1
