"""Vectors of media that no store holds: a query file, altered copies.

They go through `extract` into a temporary store, so there is one way to make tokens.
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
    """Encode clips as the features of `store` were; ids of those with tokens, (B, R) vectors, and what failed.

    Raises:
        MediaError: no clip could be encoded.
    """
    names = neighbourhood.names
    with tempfile.TemporaryDirectory(prefix="fcache-similar-") as folder:
        made = open_store(Path(folder) / "media.zarr", "a")
        summary = None
        for dtype in dict.fromkeys(store.spec(name).stored_dtype for name in names):
            some = {name: encoder for name, encoder in encoders.items() if store.spec(name).stored_dtype == dtype}
            ran = extract(made, ClipList(clips), some, stored_dtype=dtype)
            if summary is None:
                summary = ran
            else:
                summary.by_feature |= ran.by_feature
        indices = {name: open_index(store[name], files) for name in names}
        ids, vectors = [], []
        for clip in clips:
            here = {
                name: indices[name].project(made[name].read([clip.id]), neighbourhood.comparison)
                for name in names
                if clip.id in made[name]
            }
            if here:
                ids.append(clip.id)
                vectors.append(neighbourhood.join(here)[0])
    assert summary is not None
    if not ids:
        reasons = [reason for tally in summary.by_feature.values() for reason in tally.reasons]
        raise MediaError(
            ", ".join(clip.id for clip in clips[:3]),
            expected="media that the features' encoders can read",
            got=reasons[0] if reasons else "none of the modalities",
        )
    return ids, np.stack(vectors), summary
