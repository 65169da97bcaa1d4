"""What earlier runs decided of a clip list: counted, and refused where the media have changed since.

A rank looks at the clips of its own units alone, so that a list is checked once however many ranks there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.encoders import Encoder
from featurecache.errors import FingerprintError
from featurecache.extract.prepare import current_source
from featurecache.extract.stats import Tally
from featurecache.extract.work_units import Unit
from featurecache.store.protocols import ClipRecord, FeatureWriter, Status


def count_decided(name: str, writer: FeatureWriter, units: Iterable[Unit], clips: ClipList) -> Tally:
    """Count the clips of `units` that one feature decided before, by status, and the failed ones by reason."""
    tally = Tally()
    for _, record in _decided(name, writer, units, clips):
        tally.earlier[record.status] += 1
        if record.status is Status.FAILED:
            tally.earlier_reasons[record.reason] += 1
    return tally


def refuse_changed(
    writers: Mapping[str, FeatureWriter], encoders: Mapping[str, Encoder], units: Sequence[Unit], clips: ClipList
) -> None:
    """Hash the media of every clip of `units` that has a record, where they are still here.

    Raises:
        FingerprintError: some are not those that the records were made from.
    """
    for name, writer in writers.items():
        changed = []
        for clip, record in _decided(name, writer, units, clips):
            if record.status is not Status.FAILED and record.source:
                source = current_source(clip, encoders[name].view)
                if source and source != record.source:
                    changed.append(clip.id)
        if changed:
            number = f"{len(changed)} clip{'s' if len(changed) > 1 else ''}"
            raise FingerprintError(
                name,
                expected="the media that its tokens were made from",
                got=f"other bytes, start_s, end_s, crop or peak_frame for {number}",
                next_step=f"`fcache retry --name {name}` extracts them anew; or give the new media new ids.",
                problems=changed,
            )


def _decided(
    name: str, writer: FeatureWriter, units: Iterable[Unit], clips: ClipList
) -> Iterator[tuple[Clip, ClipRecord]]:
    listed = set(clips.ids)
    for unit in units:
        # A clip to be retried has a record, and is to be done again.
        to_do = unit.to_do(name)
        done = dict.fromkeys(clip_id for feature, shard in unit.committed if feature == name for clip_id in shard.ids)
        for clip_id in done:
            if clip_id in listed and clip_id not in to_do:
                record = writer.record(clip_id)
                if record is not None:
                    yield clips.by_id(clip_id), record
