"""Vectors of media that the store does not hold: a query file, or altered copies.

The media are extracted into a temporary store, so all tokens are made by `extract`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.encoders import Encoder
from featurecache.errors import MediaError
from featurecache.explore.index import open_index
from featurecache.explore.index_files import IndexFiles
from featurecache.explore.search import Neighbourhood
from featurecache.extract.run import extract
from featurecache.extract.stats import ExtractionStats
from featurecache.store import open_store
from featurecache.store.local import LocalStore


def media_vectors(
    store: LocalStore,
    neighbourhood: Neighbourhood,
    clips: Sequence[Clip],
    encoders: Mapping[str, Encoder],
    files: IndexFiles | None = None,
) -> tuple[list[str], np.ndarray, ExtractionStats]:
    """Encode clips with the specs of `store`; return ids of clips with tokens, (B, R) vectors, and the statistics.

    Raises:
        MediaError: no clip could be encoded.
    """
    names = neighbourhood.names
    with tempfile.TemporaryDirectory(prefix="fcache-similar-") as folder:
        temporary = open_store(Path(folder) / "media.zarr", "a")
        stats: ExtractionStats | None = None
        for dtype in dict.fromkeys(store.spec(name).stored_dtype for name in names):
            same_dtype = {name: encoder for name, encoder in encoders.items() if store.spec(name).stored_dtype == dtype}
            run = extract(temporary, ClipList(clips), same_dtype, stored_dtype=dtype)
            if stats is None:
                stats = run
            else:
                stats.by_feature |= run.by_feature
        indices = {name: open_index(store[name], files) for name in names}
        ids, vectors = [], []
        for clip in clips:
            by_feature = {
                name: indices[name].project(temporary[name].read([clip.id]), neighbourhood.comparison)
                for name in names
                if clip.id in temporary[name]
            }
            if by_feature:
                ids.append(clip.id)
                vectors.append(neighbourhood.join(by_feature)[0])
    assert stats is not None
    if not ids:
        reasons = [reason for counts in stats.by_feature.values() for reason in counts.failed_ids]
        raise MediaError(
            ", ".join(clip.id for clip in clips[:3]),
            expected="media that the features' encoders can read",
            got=reasons[0] if reasons else "none of the modalities",
        )
    return ids, np.stack(vectors), stats
