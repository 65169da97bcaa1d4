"""The pieces that extraction is done in: planned shards that share clips, while they are being written.

A unit is the planned shards, of any feature, that share clips, so that a clip is decoded once for all of them. A batch
is always the same slots of the same shard, padded where a clip has no input, so a clip's bytes do not depend on its
neighbours' fate. A shard is begun with its first clip and committed with its last. This module knows no media format
and no store format.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from featurecache.clips import Clip, ClipList
from featurecache.encoders import Encoder
from featurecache.preparation import Prepared
from featurecache.store.protocols import FeatureWriter, Shard, ShardWriter, Status

NOT_IN_LIST = "not in the clip list when its shard was extracted"


@dataclass
class Tally:
    """What happened to the clips of one feature."""

    ok: int = 0
    failed: int = 0
    absent: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Failed clips by reason."""
    earlier: Counter[Status] = field(default_factory=Counter)
    """Clips of the list that were decided before this run, by status."""


@dataclass
class Summary:
    """What one extraction did."""

    by_feature: dict[str, Tally]
    num_clips: int = 0
    """Clips prepared in this run, each counted once however many features it has."""
    decode_s: float = 0.0
    """Summed over threads."""
    encode_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0
    left: int = 0
    """Clips that are still to be done, by other ranks or other runs at work now."""

    @property
    def failed(self) -> int:
        """Clips of the list without tokens though they should have them, counted once a feature."""
        return sum(tally.failed + tally.earlier[Status.FAILED] for tally in self.by_feature.values())


@dataclass(frozen=True)
class Unit:
    """Planned shards, of any feature, that share clips."""

    shards: tuple[tuple[str, Shard], ...]


def plan_units(writers: Mapping[str, FeatureWriter], clips: ClipList) -> list[Unit]:
    """Group planned shards that share clips, in list order; only shards still to do, and with a clip of the list.

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
        units.append(Unit(tuple((name, shard) for name, shard in members if (name, shard.number) in pending)))
    return units


def num_clips(unit: Unit) -> int:
    """How many clips a unit decides."""
    return len({clip_id for _, shard in unit.shards for clip_id in shard.ids})


class OpenUnit:
    """The shards of one unit while they are written: each is begun with its first clip and committed with its last."""

    def __init__(
        self,
        unit: Unit,
        writers: Mapping[str, FeatureWriter],
        encoders: Mapping[str, Encoder],
        clips: ClipList,
        summary: Summary,
    ) -> None:
        self._writers, self._encoders, self._clips, self._summary = writers, encoders, clips, summary
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

    def __enter__(self) -> OpenUnit:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()  # aborts what is not committed

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

    def take(self, clip_id: str, by_feature: Mapping[str, Prepared]) -> None:
        """Decide one clip in every shard that has a slot for it."""
        for index, slot in self._wanted[clip_id]:
            name = self._shards[index][0]
            if name in by_feature:
                self._decide(index, slot, by_feature[name])

    def finish(self) -> None:
        """Decide the slots of clips that the list does not have."""
        for clip_id, places in self._wanted.items():
            if clip_id not in self._listed:
                for index, slot in places:
                    self._decide(index, slot, Prepared("", failed=NOT_IN_LIST))

    def _decide(self, index: int, slot: int, prepared: Prepared) -> None:
        opened = self._opened(index)
        if opened is not None:
            opened.take(slot, prepared, self._summary)

    def _opened(self, index: int) -> _OpenShard | None:
        if index not in self._open:
            name, shard = self._shards[index]
            writer = self._writers[name].claim(shard)
            if writer is None:
                self._open[index] = None
            else:
                self._stack.enter_context(writer)
                self._open[index] = _OpenShard(shard, writer, self._encoders[name], self._summary.by_feature[name])
        return self._open[index]


class _OpenShard:
    """One shard while it is written. Batch g is slots g·B … g·B + B − 1; it runs when all of them are decided."""

    def __init__(self, shard: Shard, writer: ShardWriter, encoder: Encoder, tally: Tally) -> None:
        self._shard, self._writer, self._encoder, self._tally = shard, writer, encoder, tally
        self._decided = 0
        self._batches: dict[int, dict[int, Prepared]] = {}

    def take(self, slot: int, prepared: Prepared, summary: Summary) -> None:
        size = self._encoder.batch_size
        batch = self._batches.setdefault(slot // size, {})
        batch[slot] = prepared
        first = slot // size * size
        if len(batch) == min(size, len(self._shard.ids) - first):
            del self._batches[slot // size]
            tokens = self._encode(first, batch, summary)
            began = time.perf_counter()
            for number, decided in sorted(batch.items()):
                self._write(number, decided, tokens.get(number))
            if self._decided == len(self._shard.ids):
                self._writer.commit()
            summary.write_s += time.perf_counter() - began

    def _encode(self, first: int, batch: Mapping[int, Prepared], summary: Summary) -> dict[int, np.ndarray]:
        """Run one batch; return (K, D) by slot."""
        began = time.perf_counter()
        inputs = {slot - first: prepared.input for slot, prepared in batch.items() if prepared.input is not None}
        tokens = encode_batch(self._encoder, inputs)
        summary.encode_s += time.perf_counter() - began
        return {first + position: each for position, each in tokens.items()}

    def _write(self, slot: int, prepared: Prepared, tokens: np.ndarray | None) -> None:
        self._decided += 1
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


def encode_batch(encoder: Encoder, inputs: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Run preprocessed inputs (position in the batch -> array), padded to the encoder's batch; (K, D) by position."""
    if not inputs:
        return {}
    some = next(iter(inputs.values()))
    stacked = np.zeros((encoder.batch_size, *some.shape), some.dtype)
    for position, array in inputs.items():
        stacked[position] = array
    pooled = encoder.pool(encoder.forward(stacked)).cpu().numpy()
    return {position: pooled[position] for position in inputs}
