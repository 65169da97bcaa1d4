"""Stop a run whose first clips all fail for the same reason: missing folder, broken decoder, bad checkpoint.

Without this stop, every clip of the list would be recorded as failed. A feature is trusted as soon as one clip is ok
or absent, or two clips fail for different reasons. Until then its shards are not committed, so a stopped run has
recorded no failure. Numbers in reasons are ignored in the comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from featurecache.errors import MediaError

FIRST_CLIPS = 8
"""Per feature. In a list with fewer clips, every failure is recorded."""
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class FirstFailures:
    """Outcomes of the first clips of each feature in one run. Only the writer thread uses it."""

    def __init__(self, count: int | None = FIRST_CLIPS) -> None:
        """Stop after `count` clips that fail for the same reason; None never stops."""
        self._count = count
        self._ids_by_reason: dict[str, dict[str, list[str]]] = {}
        """Per untrusted feature: clip ids by reason, numbers removed."""
        self._trusted: set[str] = set()
        self._delayed_commits: dict[str, list[Callable[[], None]]] = {}

    def note(self, feature: str, clip_id: str, failure: str) -> None:
        """Note the outcome of one clip: the reason of its failure, or an empty string.

        Raises:
            MediaError: this clip is number `count` of first clips that all failed for the same reason.
        """
        if self._count is None or self.trusts(feature):
            return
        ids_by_reason = self._ids_by_reason.setdefault(feature, {})
        if failure:
            ids_by_reason.setdefault(_NUMBER.sub("#", failure), []).append(clip_id)
        if not failure or len(ids_by_reason) > 1:
            self._trust(feature)
            return
        (ids,) = ids_by_reason.values()
        if len(ids) >= self._count:
            raise MediaError(
                "extraction",
                expected=f"one of the first {len(ids)} clips to be usable",
                got=f"the same failure of all in {feature}: {failure}",
                next_step="None of them is recorded. Look at one of them and at --media-root; if such clips are to be"
                " recorded as failed, run the same command with --max-failures N.",
                problems=ids,
            )

    def trusts(self, feature: str) -> bool:
        """Whether shards of the feature may be committed."""
        return self._count is None or feature in self._trusted

    def commit(self, feature: str, commit: Callable[[], None]) -> None:
        """Commit a shard now, or as soon as its feature is trusted."""
        if self.trusts(feature):
            commit()
        else:
            self._delayed_commits.setdefault(feature, []).append(commit)

    def finish(self) -> None:
        """Commit the delayed shards: the run ended with fewer than `count` clips."""
        for feature in list(self._delayed_commits):
            self._trust(feature)

    def _trust(self, feature: str) -> None:
        self._trusted.add(feature)
        self._ids_by_reason.pop(feature, None)
        for commit in self._delayed_commits.pop(feature, []):
            commit()
