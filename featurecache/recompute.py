"""Make the tokens of single clips again, for `fcache repair`: the same flow as extraction, without a shard.

    store repair -> (feature, clip ids) -> prepare, encode -> one Outcome a clip

Each clip runs in a batch of the encoder's own shape. This module opens no store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from featurecache.clips import ClipList
from featurecache.encoders import Encoder
from featurecache.extract import default_workers
from featurecache.lanes import encode_batch
from featurecache.preparation import Prepared, prepare_all
from featurecache.repair import Outcome, Recompute
from featurecache.store.protocols import Status
from featurecache.units import NOT_IN_LIST


def recompute_from(clips: ClipList, encoders: Mapping[str, Encoder], workers: int | None = None) -> Recompute:
    """Return what `repair_store` asks for lost rows: tokens from the media of `clips`, `encoders` by feature name.

    A feature without an encoder here, or a clip that the list does not have, comes back as failed.
    """

    def recompute(feature: str, clip_ids: Sequence[str]) -> Iterator[Outcome]:
        encoder = encoders.get(feature)
        listed = set(clips.ids) if encoder else set()
        for clip_id in clip_ids:
            if clip_id not in listed:
                reason = NOT_IN_LIST if encoder else "no encoder was named to recompute it"
                yield Outcome(clip_id, Status.FAILED, "", reason=reason)
        if encoder is None:
            return
        jobs = ((clips.by_id(clip_id), {feature: encoder}) for clip_id in clip_ids if clip_id in listed)
        threads = workers or default_workers()
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            for prepared in prepare_all(jobs, pool, 2 * threads):
                yield _outcome(prepared.clip.id, prepared.by_feature[feature], encoder)

    return recompute


def _outcome(clip_id: str, prepared: Prepared, encoder: Encoder) -> Outcome:
    if prepared.input is not None:
        tokens = encode_batch(encoder, {0: prepared.input}, {0: prepared.valid})[0]
        return Outcome(clip_id, Status.OK, prepared.source, tokens=tokens)
    if prepared.failed:
        return Outcome(clip_id, Status.FAILED, prepared.source, reason=prepared.failed)
    return Outcome(clip_id, Status.ABSENT, prepared.source, reason=prepared.absent)
