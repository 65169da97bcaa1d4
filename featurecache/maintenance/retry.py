"""Extract clips again: clips that failed or whose media changed (`retry`), and lost rows (`recompute_by_extraction`).

The encoder of a feature is opened as its spec says and must have the same fingerprint; otherwise the error names every
differing field. Lost rows are extracted into a temporary store, so all tokens are made by `extract`.
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
from featurecache.maintenance.repair import Recompute, RecomputedClip, copied_clip
from featurecache.store import open_store
from featurecache.store.local import LocalStore
from featurecache.store.protocols import Status
from featurecache.store.writer import StoredFeatureWriter


def clips_to_retry(writer: StoredFeatureWriter, clips: ClipList, encoder: Encoder) -> list[str]:
    """Return the ids of listed clips that failed, or whose media have changed since their extraction.

    Clips that failed again in an interrupted retry are left out: that retry is finished first.
    """
    interrupted = writer.unfinished_retries()
    ids = []
    for clip in clips:
        record = writer.record(clip.id)
        if record is None:
            continue
        changed = record.source and current_source(clip, encoder.view) not in ("", record.source)
        if changed or (record.status is Status.FAILED and clip.id not in interrupted):
            ids.append(clip.id)
    return ids


def retry(
    store: LocalStore,
    clips: ClipList,
    names: Sequence[str],
    open_for: OpenEncoder,
    ids: Sequence[str] | None = None,
    **extract_options: Any,
) -> ExtractionStats:
    """Plan `ids`, by default `clips_to_retry`, again in the named features, and extract them.

    After an interruption, the same call resumes with the clips that were planned.

    Raises:
        FingerprintError: the opened encoder is not the one that the feature was made with.
    """
    merged: ExtractionStats | None = None
    encoders = {name: open_for(store.spec(name)) for name in names}
    writers = {name: store.writer(name, store.spec(name)) for name in names}
    _plan_retry(writers, clips, encoders, ids)
    for name, writer in writers.items():
        pending_ids = {clip_id for shard in writer.pending() for clip_id in shard.ids}
        pending = ClipList(clip for clip in clips if clip.id in pending_ids)
        # first_clips: all these clips may fail for the same reason again, which must not stop the retry.
        options = {"stored_dtype": store.spec(name).stored_dtype, "first_clips": None, **extract_options}
        stats = extract(store, pending, {name: encoders[name]}, **options)
        if merged is None:
            merged = stats
        else:
            merged.by_feature |= stats.by_feature
            merged.num_clips += stats.num_clips
            merged.wall_s += stats.wall_s
    return merged or ExtractionStats({})


def _plan_retry(
    writers: Mapping[str, StoredFeatureWriter],
    clips: ClipList,
    encoders: Mapping[str, Encoder],
    ids: Sequence[str] | None,
) -> None:
    """Plan the retry in every feature first, so that a later call recognises an interrupted retry."""
    resumed = ids is not None and any(writer.unfinished_retries() == set(ids) for writer in writers.values())
    for name, writer in writers.items():
        if ids is None:
            writer.retry(clips_to_retry(writer, clips, encoders[name]))
        elif not (resumed and writer.newest_segment_plans(set(ids))):
            writer.retry(list(ids))


def recompute_by_extraction(
    store: LocalStore, clips: ClipList, open_for: OpenEncoder, **extract_options: Any
) -> Recompute:
    """Return a `Recompute` that extracts lost clips into a temporary store; encoders open at first use.

    Raises (when called):
        FingerprintError: the opened encoder is not the one that the feature was made with.
    """
    encoders: dict[str, Encoder] = {}

    def recompute(name: str, ids: Sequence[str]) -> Iterator[RecomputedClip]:
        spec = store.spec(name)  # read here, because repair may have rewritten the spec
        if spec.encoder not in registered():
            reason = f"its encoder {spec.encoder} is not installed"
            yield from (RecomputedClip(clip_id, Status.FAILED, "", reason=reason, tried=False) for clip_id in ids)
            return
        if name not in encoders:
            encoders[name] = open_for(spec)
        lost_ids = set(ids)
        lost = ClipList(clip for clip in clips if clip.id in lost_ids)
        with tempfile.TemporaryDirectory(prefix="fcache-repair-") as folder:
            temporary = open_store(Path(folder) / "features.zarr", "a")
            if len(lost):
                options = {"first_clips": None, **extract_options}
                extract(temporary, lost, {name: encoders[name]}, stored_dtype=spec.stored_dtype, **options)
            listed_ids = set(lost.ids)
            for clip_id in ids:
                if clip_id in listed_ids:
                    yield copied_clip(temporary[name], clip_id)
                else:
                    yield RecomputedClip(clip_id, Status.FAILED, "", reason="not in the clip list", tried=False)

    return recompute
