"""Copy features between stores and formats without loss: the same bytes of every row, the same records.

The copy keeps the division into shards, failed and absent clips, sources and reasons, so that its features have the
same checksums and extraction goes on in it where it would have in the original. `compact` leaves out what a retry
superseded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featurecache.errors import StoreError
from featurecache.store.feature import StoredFeature
from featurecache.store.local import LocalStore
from featurecache.store.plan import Plan
from featurecache.store.protocols import ClipRecord, Shard, Status
from featurecache.store.writer import StoredFeatureWriter, StoredShardWriter


@dataclass(frozen=True)
class Converted:
    """What was copied of one feature."""

    name: str
    num_shards: int
    """Shards that the target has now."""
    num_clips: int
    """Clips copied now."""
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
) -> list[Converted]:
    """Copy the named features, by default all. Stopped in between, the same call goes on where it was.

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
        (_plan_compact if compact else _plan_alike)(feature, writer)
        there = {record.shard for record in feature.committed}
        jobs.append((feature, writer, [shard for shard in writer.pending() if compact or shard.number in there]))
    done, total = 0, sum(len(shards) for _, _, shards in jobs)
    results = []
    for feature, writer, shards in jobs:
        clips = 0
        for shard in shards:
            if progress:
                progress(done, total)
            clips += _copy_shard(feature, writer, shard, compact)
            done += 1
        written = sum(sum(record.file_bytes) for record in writer.committed)
        results.append(Converted(feature.name, len(writer.committed), clips, written))
    if progress:
        progress(done, total)
    return results


def _plan_alike(feature: StoredFeature, writer: StoredFeatureWriter) -> None:
    for segment in Plan(feature.folder).segments:
        writer.plan_like(segment)


def _plan_compact(feature: StoredFeature, writer: StoredFeatureWriter) -> None:
    writer.plan([clip.id for clip in feature.records()])


def _copy_shard(feature: StoredFeature, writer: StoredFeatureWriter, shard: Shard, compact: bool) -> int:
    """Copy one shard; returns its clips with tokens."""
    places = {record.shard: place for place, record in enumerate(feature.committed)}
    copied = 0
    with writer.begin(shard) as target:
        for slot, clip_id in enumerate(shard.ids):
            if compact:
                clip = feature.record(clip_id)
                assert clip is not None
            else:
                clip = feature.committed[places[shard.number]].clip(slot)
            copied += _copy_clip(feature, places[clip.shard], clip, target, slot)
        target.commit()
    return copied


def _copy_clip(feature: StoredFeature, place: int, clip: ClipRecord, target: StoredShardWriter, slot: int) -> int:
    if clip.status is Status.FAILED:
        target.fail(slot, clip.reason, clip.source)
    elif clip.status is Status.ABSENT:
        target.absent(slot, clip.reason, clip.source)
    else:
        rows, stated = feature.rows_at(place, clip.slot)
        target.put_rows(slot, rows, clip.source, stated)
        return 1
    return 0
