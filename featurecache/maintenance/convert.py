"""Copy features between stores and formats without loss: the same bytes of every row, the same records.

The copy keeps the division into shards, failed and absent clips, sources and reasons. So its features have the same
checksums, and an extraction resumes in the copy where it would resume in the original. `compact` leaves out rows that a
retry superseded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featurecache.errors import StoreError
from featurecache.store.feature import StoredFeature
from featurecache.store.local import LocalStore
from featurecache.store.plan import ShardPlan
from featurecache.store.protocols import ClipRecord, Shard, Status
from featurecache.store.writer import StoredFeatureWriter, StoredShardWriter


@dataclass(frozen=True)
class ConvertedFeature:
    """Sizes of one feature after the copy."""

    name: str
    num_shards: int
    """Shards of the target after the copy."""
    num_clips: int
    """Clips with tokens copied by this call."""
    num_bytes: int
    """Bytes of the feature's shard files in the target."""


def convert_store(
    source: LocalStore,
    target: LocalStore,
    names: Sequence[str] | None = None,
    *,
    codec: str = "none",
    compact: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[ConvertedFeature]:
    """Copy the named features, by default all. After an interruption, the same call resumes.

    Raises:
        StoreNotFoundError: no such feature.
        FingerprintError: the target has a feature of that name under another spec.
        CorruptStoreError: a row of the source contradicts its checksum.
        WriteError: the disk is full or refuses.
    """
    if source.root.resolve() == target.root.resolve():
        raise StoreError(str(target.location), expected="another place than the source", got="the same")
    jobs = []
    for feature in [source[name] for name in (source.names if names is None else names)]:
        shard_rows = next((record.shard_rows for record in feature.committed), None)
        writer = target.writer(feature.name, feature.spec, shard_rows=shard_rows, codec=codec)
        (_plan_compact if compact else _plan_same_shards)(feature, writer)
        committed = {record.shard for record in feature.committed}
        jobs.append((feature, writer, [shard for shard in writer.pending() if compact or shard.number in committed]))
    done, total = 0, sum(len(shards) for _, _, shards in jobs)
    results = []
    for feature, writer, shards in jobs:
        num_clips = 0
        for shard in shards:
            if progress:
                progress(done, total)
            num_clips += _copy_shard(feature, writer, shard, compact)
            done += 1
        num_bytes = sum(sum(record.file_bytes) for record in writer.committed)
        results.append(ConvertedFeature(feature.name, len(writer.committed), num_clips, num_bytes))
    if progress:
        progress(done, total)
    return results


def _plan_same_shards(feature: StoredFeature, writer: StoredFeatureWriter) -> None:
    for segment in ShardPlan(feature.folder).segments:
        writer.plan_same_shards(segment)


def _plan_compact(feature: StoredFeature, writer: StoredFeatureWriter) -> None:
    writer.plan([clip.id for clip in feature.records()])


def _copy_shard(feature: StoredFeature, writer: StoredFeatureWriter, shard: Shard, compact: bool) -> int:
    """Copy one shard; return the number of its clips with tokens."""
    index_of = {record.shard: index for index, record in enumerate(feature.committed)}
    num_clips = 0
    with writer.begin(shard) as target:
        for slot, clip_id in enumerate(shard.ids):
            if compact:
                clip = feature.record(clip_id)
                assert clip is not None
            else:
                clip = feature.committed[index_of[shard.number]].clip(slot)
            num_clips += _copy_clip(feature, index_of[clip.shard], clip, target, slot)
        target.commit()
    return num_clips


def _copy_clip(feature: StoredFeature, index: int, clip: ClipRecord, target: StoredShardWriter, slot: int) -> int:
    """Copy one clip of committed shard number `index`; return 1 if it has tokens, else 0."""
    if clip.status is Status.FAILED:
        target.fail(slot, clip.reason, clip.source)
    elif clip.status is Status.ABSENT:
        target.absent(slot, clip.reason, clip.source)
    else:
        rows, errors = feature.rows_at(index, clip.slot)
        target.put_rows(slot, rows, clip.source, errors)
        return 1
    return 0
