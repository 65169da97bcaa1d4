"""Extract clips again: those that failed or whose media changed (retry), and rows that are lost (repair).

A feature's encoder is opened anew as its spec says, and must give the very same fingerprint; otherwise every differing
field is named. Recomputing goes through `extract` into a temporary store, so there is one way to make tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from featurecache.clips.clip_list import ClipList
from featurecache.encoders import Encoder, registered
from featurecache.extract.job import OpenEncoder
from featurecache.extract.prepare import current_source
from featurecache.extract.run import extract
from featurecache.extract.stats import ExtractionStats
from featurecache.maintenance.recompute import Outcome, Recompute, outcome_of
from featurecache.store import open_store
from featurecache.store.local import LocalStore
from featurecache.store.protocols import Status
from featurecache.store.writer import StoredFeatureWriter


def to_retry(writer: StoredFeatureWriter, clips: ClipList, encoder: Encoder) -> list[str]:
    """Clips of the list that failed, or whose media are not those that their tokens were made from.

    Clips that failed again in a retry that was stopped are not chosen: that retry is finished first.
    """
    stopped = writer.stopped_retry()
    chosen = []
    for clip in clips:
        record = writer.record(clip.id)
        if record is None:
            continue
        changed = record.source and current_source(clip, encoder.view) not in ("", record.source)
        if changed or (record.status is Status.FAILED and clip.id not in stopped):
            chosen.append(clip.id)
    return chosen


def retry(
    store: LocalStore,
    clips: ClipList,
    names: Sequence[str],
    open_for: OpenEncoder,
    ids: Sequence[str] | None = None,
    **extraction: Any,
) -> ExtractionStats:
    """Plan the clips to retry (or `ids`) anew in the named features, and extract them.

    Stopped in between, the same call goes on with what was planned.

    Raises:
        FingerprintError: the encoder that opens is not the one the feature was made with.
    """
    tallies: ExtractionStats | None = None
    encoders = {name: open_for(store.spec(name)) for name in names}
    writers = {name: store.writer(name, store.spec(name)) for name in names}
    _plan_retry(writers, clips, encoders, ids)
    for name, writer in writers.items():
        wanted = {clip_id for shard in writer.pending() for clip_id in shard.ids}
        some = ClipList(clip for clip in clips if clip.id in wanted)
        # All of them failed before, perhaps alike, and may do so again.
        how = {"stored_dtype": store.spec(name).stored_dtype, "first_clips": None, **extraction}
        summary = extract(store, some, {name: encoders[name]}, **how)
        if tallies is None:
            tallies = summary
        else:
            tallies.by_feature |= summary.by_feature
            tallies.num_clips += summary.num_clips
            tallies.wall_s += summary.wall_s
    return tallies or ExtractionStats({})


def _plan_retry(
    writers: Mapping[str, StoredFeatureWriter],
    clips: ClipList,
    encoders: Mapping[str, Encoder],
    ids: Sequence[str] | None,
) -> None:
    """Plan in every feature before anything is extracted, so that a retry that was stopped is known again."""
    goes_on = ids is not None and any(writer.stopped_retry() == set(ids) for writer in writers.values())
    for name, writer in writers.items():
        if ids is None:
            writer.retry(to_retry(writer, clips, encoders[name]))
        elif not (goes_on and writer.planned_last(set(ids))):
            writer.retry(list(ids))


def recomputer(store: LocalStore, clips: ClipList, open_for: OpenEncoder, **extraction: Any) -> Recompute:
    """A `Recompute` that extracts lost clips into a temporary store; encoders open when first needed.

    Raises (when called):
        FingerprintError: the encoder that opens is not the one the feature was made with.
    """
    encoders: dict[str, Encoder] = {}

    def recompute(name: str, ids: Sequence[str]) -> Iterator[Outcome]:
        spec = store.spec(name)  # repair mends it first
        if spec.encoder not in registered():
            reason = f"its encoder {spec.encoder} is not installed"
            yield from (Outcome(clip_id, Status.FAILED, "", reason=reason, tried=False) for clip_id in ids)
            return
        if name not in encoders:
            encoders[name] = open_for(spec)
        wanted = set(ids)
        some = ClipList(clip for clip in clips if clip.id in wanted)
        with tempfile.TemporaryDirectory(prefix="fcache-repair-") as folder:
            aside = open_store(Path(folder) / "features.zarr", "a")
            if len(some):
                how = {"first_clips": None, **extraction}
                extract(aside, some, {name: encoders[name]}, stored_dtype=spec.stored_dtype, **how)
            listed = set(some.ids)
            for clip_id in ids:
                if clip_id in listed:
                    yield outcome_of(aside[name], clip_id)
                else:
                    yield Outcome(clip_id, Status.FAILED, "", reason="not in the clip list", tried=False)

    return recompute
