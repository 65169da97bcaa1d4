"""Two halves of the held-out clips, for cross-fitting: each half is scored with the weights that the other half chose.

Clips of one cluster (dialogue, else speaker) are in one half. The halves follow from the clips, not from their order:
clusters are taken by descending size, equal sizes by a hash, and go to the half with fewer clips so far. A clip that
was in a half stays there when the clip list changes, since the scores before the change rest on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence

from featurecache.clips.clip_list import Clip
from fusion_train.data.clusters import clusters_in, clusters_of

Halves = Sequence[Sequence[str]]
"""Two lists of clip ids; empty where a run keeps no weights per half."""
NUM_HALVES = 2


def split_halves(clips: Iterable[Clip], before: Halves = ()) -> list[list[str]]:
    """Return the clip ids of both halves, sorted.

    Args:
        before: halves of an earlier list; its clips stay in their half, and so does the rest of their cluster.
    """
    members = _by_cluster(clips)
    halves = [list(half) for half in before] or [[] for _ in range(NUM_HALVES)]
    known = {clip_id: number for number, half in enumerate(halves) for clip_id in half}
    for cluster in sorted(members, key=lambda cluster: (-len(members[cluster]), _digest(cluster))):
        ids = members[cluster]
        there = [known[clip_id] for clip_id in ids if clip_id in known]
        chosen = there[0] if there else min(range(NUM_HALVES), key=lambda number: len(halves[number]))
        halves[chosen] += [clip_id for clip_id in ids if clip_id not in known]
    return [sorted(half) for half in halves]


def num_clusters(clips: Iterable[Clip], halves: Halves) -> tuple[list[int], str]:
    """Return how many clusters of `clips` are in each half, and the name of the clusters."""
    listed = list(clips)
    name, named = clusters_in(listed)
    cluster = dict(zip((clip.id for clip in listed), clusters_of([clip.id for clip in listed], named), strict=True))
    return [len({cluster[clip_id] for clip_id in half if clip_id in cluster}) for half in halves], name


def _by_cluster(clips: Iterable[Clip]) -> dict[Hashable, list[str]]:
    listed = list(clips)
    ids = sorted(clip.id for clip in listed)
    found: dict[Hashable, list[str]] = {}
    for clip_id, cluster in zip(ids, clusters_of(ids, clusters_in(listed)[1]), strict=True):
        found.setdefault(cluster, []).append(clip_id)
    return found


def _digest(cluster: Hashable) -> str:
    return hashlib.sha256(repr(cluster).encode()).hexdigest()
