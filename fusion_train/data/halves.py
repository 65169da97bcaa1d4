"""Clusters of clips, and two halves of the validation clips for cross-fitting.

A cluster holds the clips of one dialogue or, in lists without dialogues, of one speaker: their answers resemble each
other more than those of other clips. Cross-fitting scores each half with the weights that the other half chose.
All clips of one cluster are in one half. The halves follow from the clips, not from their order: clusters are taken by
descending size, equal sizes by a hash, and go to the half with fewer clips so far. A clip that was in a half stays
there when the clip list changes, since the scores before the change rest on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence

from featurecache.clips.clip_list import Clip

Halves = Sequence[Sequence[str]]
"""Two lists of clip ids; empty where a run keeps no weights per half."""
NUM_HALVES = 2


def clusters_in(clips: Iterable[Clip]) -> tuple[str, dict[str, Hashable]]:
    """Return what the clusters are (dialogues, speakers or single clips), and clip id -> cluster.

    A clip without a dialogue, or without a speaker, is not in the mapping.
    """
    clips = list(clips)
    for key in ("dialogue", "speaker"):
        clusters: dict[str, Hashable] = {
            clip.id: (clip.dataset, getattr(clip, key)) for clip in clips if getattr(clip, key)
        }
        if clusters:
            return f"{key}s", clusters
    return "clips", {}


def clusters_of(clip_ids: Sequence[str], clusters: Mapping[str, Hashable]) -> list[Hashable]:
    """Return the cluster of each clip; a clip that `clusters` does not name is a cluster of its own."""
    return [clusters.get(clip_id, ("clip", clip_id)) for clip_id in clip_ids]


def split_halves(clips: Iterable[Clip], before: Halves = ()) -> list[list[str]]:
    """Return the clip ids of both halves, sorted.

    Args:
        before: halves of an earlier list; its clips stay in their half, and so does the rest of their cluster.
    """
    members = _by_cluster(clips)
    halves = [list(half) for half in before] or [[] for _ in range(NUM_HALVES)]
    half_of = {clip_id: number for number, half in enumerate(halves) for clip_id in half}
    for cluster in sorted(members, key=lambda cluster: (-len(members[cluster]), _digest(cluster))):
        clip_ids = members[cluster]
        earlier = [half_of[clip_id] for clip_id in clip_ids if clip_id in half_of]
        chosen = earlier[0] if earlier else min(range(NUM_HALVES), key=lambda number: len(halves[number]))
        halves[chosen] += [clip_id for clip_id in clip_ids if clip_id not in half_of]
    return [sorted(half) for half in halves]


def num_clusters(clips: Iterable[Clip], halves: Halves) -> tuple[list[int], str]:
    """Return how many clusters of `clips` are in each half, and what the clusters are."""
    clips = list(clips)
    name, clusters = clusters_in(clips)
    clip_ids = [clip.id for clip in clips]
    cluster_of = dict(zip(clip_ids, clusters_of(clip_ids, clusters), strict=True))
    return [len({cluster_of[clip_id] for clip_id in half if clip_id in cluster_of}) for half in halves], name


def _by_cluster(clips: Iterable[Clip]) -> dict[Hashable, list[str]]:
    """Cluster -> ids of its clips, sorted."""
    clips = list(clips)
    clip_ids = sorted(clip.id for clip in clips)
    members: dict[Hashable, list[str]] = {}
    for clip_id, cluster in zip(clip_ids, clusters_of(clip_ids, clusters_in(clips)[1]), strict=True):
        members.setdefault(cluster, []).append(clip_id)
    return members


def _digest(cluster: Hashable) -> str:
    return hashlib.sha256(repr(cluster).encode()).hexdigest()
