"""Work units: the planned shards, of all features, that share clips. A clip is decoded once for all shards of its unit.

Here the units of a clip list are planned, and the records that earlier runs made for their clips ("prior records") are
counted and compared with the media. `open_work_units` holds the units while they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.encoders import Encoder
from featurecache.errors import FingerprintError
from featurecache.extract.prepare import current_source
from featurecache.extract.stats import ClipCounts
from featurecache.store.protocols import ClipRecord, FeatureWriter, Shard, Status


@dataclass(frozen=True)
class WorkUnit:
    """Planned shards, of any feature, that share clips."""

    shards: tuple[tuple[str, Shard], ...]
    """(feature, shard) of those still to do."""
    committed: tuple[tuple[str, Shard], ...] = ()
    decided_later: Mapping[tuple[str, int], frozenset[str]] = field(default_factory=dict)
    """Clips of shards to do that a later shard of the feature has decided already, by feature and shard number."""

    @property
    def num_clips(self) -> int:
        """Number of clips that some feature has yet to decide."""
        return len(set().union(*(self.to_do(name) for name, _ in self.shards)))

    def to_do(self, feature: str) -> set[str]:
        """Return the ids of the clips that one feature has yet to decide."""
        return {
            clip_id
            for name, shard in self.shards
            if name == feature
            for clip_id in set(shard.ids) - self.decided_later.get((name, shard.number), frozenset())
        }


def plan_work_units(writers: Mapping[str, FeatureWriter], clips: ClipList) -> list[WorkUnit]:
    """Group planned shards that share clips, in list order; only shards with a clip of the list.

    All planned shards are grouped, committed or not, so every rank gets the same units whenever it starts.
    """
    order = {clip_id: number for number, clip_id in enumerate(clips.ids)}
    shards = [(name, shard) for name, writer in writers.items() for shard in writer.shards()]
    # Union-find over the shards: two shards with a common clip get the same root.
    parent = list(range(len(shards)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_shard_with: dict[str, int] = {}
    for index, (_, shard) in enumerate(shards):
        for clip_id in shard.ids:
            if clip_id in order:
                parent[root(index)] = root(first_shard_with.setdefault(clip_id, index))
    groups: dict[int, list[int]] = {}
    first_position: dict[int, int] = {}
    for index, (_, shard) in enumerate(shards):
        position = min((order[clip_id] for clip_id in shard.ids if clip_id in order), default=None)
        if position is not None:
            groups.setdefault(root(index), []).append(index)
            first_position[root(index)] = min(first_position.get(root(index), position), position)
    pending = {(name, shard.number) for name, writer in writers.items() for shard in writer.pending()}
    units = []
    for leader in sorted(groups, key=first_position.__getitem__):
        grouped = [shards[index] for index in groups[leader]]
        to_do = tuple((name, shard) for name, shard in grouped if (name, shard.number) in pending)
        committed = tuple((name, shard) for name, shard in grouped if (name, shard.number) not in pending)
        decided_later = {(name, shard.number): writers[name].superseded(shard) for name, shard in to_do}
        units.append(WorkUnit(to_do, committed, decided_later))
    return units


def count_prior_records(name: str, writer: FeatureWriter, units: Iterable[WorkUnit], clips: ClipList) -> ClipCounts:
    """Count the prior records of one feature for the clips of `units`, by status, and the failed ones by reason."""
    counts = ClipCounts()
    for clip, record in _prior_records(name, writer, units, clips):
        counts.prior[record.status] += 1
        if record.status is Status.FAILED:
            counts.prior_failed_ids.setdefault(record.reason, []).append(clip.id)
    return counts


def refuse_changed_media(
    writers: Mapping[str, FeatureWriter], encoders: Mapping[str, Encoder], units: Sequence[WorkUnit], clips: ClipList
) -> None:
    """Hash the media of every clip of `units` that has a prior record, and compare; missing media are skipped.

    A rank calls this for its own units only, so each clip is hashed once by all ranks together.

    Raises:
        FingerprintError: some media are not those that the tokens were made from.
    """
    for name, writer in writers.items():
        changed = []
        for clip, record in _prior_records(name, writer, units, clips):
            if record.status is not Status.FAILED and record.source:
                source = current_source(clip, encoders[name].view)
                if source and source != record.source:
                    changed.append(clip.id)
        if changed:
            number = f"{len(changed)} clip{'s' if len(changed) > 1 else ''}"
            raise FingerprintError(
                name,
                expected="the media that its tokens were made from",
                got=f"other bytes, start_s, end_s, crop, mute, peak_frame or text for {number}",
                next_step=f"`fcache retry --name {name}` extracts them anew; or give the new media new ids.",
                problems=changed,
            )


def _prior_records(
    name: str, writer: FeatureWriter, units: Iterable[WorkUnit], clips: ClipList
) -> Iterator[tuple[Clip, ClipRecord]]:
    listed_ids = set(clips.ids)
    for unit in units:
        to_do = unit.to_do(name)
        committed = dict.fromkeys(
            clip_id for feature, shard in unit.committed if feature == name for clip_id in shard.ids
        )
        for clip_id in committed:
            # A clip to be retried has a record, and is to do all the same.
            if clip_id in listed_ids and clip_id not in to_do:
                record = writer.record(clip_id)
                if record is not None:
                    yield clips.by_id(clip_id), record
