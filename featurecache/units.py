"""The pieces that extraction is done in: planned shards that share clips, while they are being written.

A unit is the planned shards, of any feature, that share clips, so that a clip is decoded once for all of them. A batch
is always the same slots of the same shard, padded where a clip has no input, so a clip's bytes do not depend on its
neighbours' fate. A shard is begun with its first clip and committed with its last. This module knows no media format
and no store format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from featurecache.clips import Clip, ClipList
from featurecache.encoders import Encoder
from featurecache.lanes import Batch, Member
from featurecache.preparation import Prepared
from featurecache.store.protocols import FeatureWriter, Shard, ShardWriter
from featurecache.summary import Summary, Tally

NOT_IN_LIST = "not in the clip list when its shard was extracted"


@dataclass(frozen=True)
class Unit:
    """Planned shards, of any feature, that share clips."""

    shards: tuple[tuple[str, Shard], ...]
    """Those still to do."""
    committed: tuple[tuple[str, Shard], ...] = ()


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
        units.append(Unit(to_do, done))
    return units


def num_clips(unit: Unit) -> int:
    """How many clips a unit decides."""
    return len({clip_id for _, shard in unit.shards for clip_id in shard.ids})


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
    ) -> None:
        """Prepare to write `unit`; features with an equal value in `sharing` take their tokens from one forward."""
        self._writers, self._encoders, self._clips, self._summary = writers, encoders, clips, summary
        self._sharing = sharing
        self._listed = set(clips.ids)
        self._shards = unit.shards
        self._wanted: dict[str, list[tuple[int, int]]] = {}
        """Where each clip goes: (index of the shard, slot)."""
        for index, (_, shard) in enumerate(self._shards):
            for slot, clip_id in enumerate(shard.ids):
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
        return [_one_forward([batch]) for batch in full]

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
                size = self._encoders[name].batch_size
                self._open[index] = _OpenShard(name, shard, writer, size, self._summary.by_feature[name])
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

    def __init__(self, name: str, shard: Shard, writer: ShardWriter, batch_size: int, tally: Tally) -> None:
        self._name, self._shard, self._writer, self._batch_size, self._tally = name, shard, writer, batch_size, tally
        self._written = 0
        self._batches: dict[int, dict[int, Prepared]] = {}
        self.committed = False

    def take(self, slot: int, prepared: Prepared) -> _FullBatch | None:
        """Note what became of a slot; return its batch once that is full."""
        number, position = divmod(slot, self._batch_size)
        batch = self._batches.setdefault(number, {})
        batch[position] = prepared
        first = number * self._batch_size
        if len(batch) < min(self._batch_size, len(self._shard.ids) - first):
            return None
        del self._batches[number]
        inputs = {at: each.input for at, each in batch.items() if each.input is not None}
        valid = {at: each.valid for at, each in batch.items() if each.valid is not None}
        return _FullBatch(inputs, Member(self._name, valid, lambda rows: self._write(first, batch, rows)))

    def _write(self, first: int, batch: Mapping[int, Prepared], rows: Mapping[int, np.ndarray]) -> None:
        for position, prepared in sorted(batch.items()):
            self._write_one(first + position, prepared, rows.get(position))
        if self._written == len(self._shard.ids):
            self._writer.commit()
            self.committed = True

    def _write_one(self, slot: int, prepared: Prepared, tokens: np.ndarray | None) -> None:
        self._written += 1
        failed = prepared.failed
        if tokens is not None:
            try:
                self._writer.put(slot, tokens, prepared.source)
                self._tally.ok += 1
                return
            except ValueError as error:  # NaN or infinity, also from overflow of the stored dtype
                failed = f"the encoder's output cannot be stored: {error}"
        if failed:
            self._writer.fail(slot, failed, prepared.source)
            self._tally.failed += 1
            self._tally.reasons[failed] += 1
        else:
            self._writer.absent(slot, prepared.absent, prepared.source)
            self._tally.absent += 1
