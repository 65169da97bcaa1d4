"""Clusters of clips: those of one dialogue, else of one speaker, which answers resemble more than those of others."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from featurecache.clips.clip_list import Clip


def clusters_in(clips: Iterable[Clip]) -> tuple[str, dict[str, Hashable]]:
    """Name what clips have in common (dialogues, else speakers, else nothing), and the cluster of each that has one."""
    listed = list(clips)
    for key in ("dialogue", "speaker"):
        named: dict[str, Hashable] = {
            clip.id: (clip.dataset, getattr(clip, key)) for clip in listed if getattr(clip, key)
        }
        if named:
            return f"{key}s", named
    return "clips", {}


def clusters_of(clips: Sequence[str], named: Mapping[str, Hashable]) -> list[Hashable]:
    """(clips,) the cluster of each; a clip that belongs to none is a cluster of its own."""
    return [named.get(clip, ("clip", clip)) for clip in clips]
