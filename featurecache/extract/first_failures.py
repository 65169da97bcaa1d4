"""Stop a run whose first clips all fail alike: a folder that is not there, a broken decoder, a bad checkpoint.

Recorded, such failures would be those of every clip of the list. While a feature is in doubt its shards wait to be
committed, so that a stopped run has recorded none of them. A clip that is ok, absent, or fails in another way ends the
doubt for good. Numbers in reasons do not tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from featurecache.errors import MediaError

FIRST_CLIPS = 8
"""Of each feature; a list of fewer clips is recorded whatever becomes of them."""
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class FirstFailures:
    """What became of the first clips of each feature in one run. Used by the writing thread alone."""

    def __init__(self, count: int | None = FIRST_CLIPS) -> None:
        """Stop after `count` clips that fail alike; None for a run that may hold nothing but such clips."""
        self._count = count
        self._failed: dict[str, dict[str, list[str]]] = {}
        """Feature -> reason without numbers -> clip ids, while the feature is in doubt."""
        self._trusted: set[str] = set()
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    def note(self, feature: str, clip_id: str, failed: str) -> None:
        """Take down one clip of a feature, and why it failed; an empty reason for one that did not.

        Raises:
            MediaError: it is the last of so many that fail alike.
        """
        if self.trusts(feature):
            return
        alike = self._failed.setdefault(feature, {})
        if failed:
            alike.setdefault(_NUMBER.sub("#", failed), []).append(clip_id)
        if not failed or len(alike) > 1:
            self._trust(feature)
            return
        (ids,) = alike.values()
        if len(ids) >= self._count:
            raise MediaError(
                "extraction",
                expected=f"one of the first {len(ids)} clips to be usable",
                got=f"the same failure of all in {feature}: {failed}",
                next_step="None of them is recorded. Look at one of them and at --media-root; if such clips are to be"
                " recorded as failed, run the same command with --max-failures N.",
                problems=ids,
            )

    def trusts(self, feature: str) -> bool:
        """Whether a feature is out of doubt."""
        return self._count is None or feature in self._trusted

    def commit(self, feature: str, commit: Callable[[], None]) -> None:
        """Commit a shard of a feature, now or once it is out of doubt."""
        if self.trusts(feature):
            commit()
        else:
            self._waiting.setdefault(feature, []).append(commit)

    def finish(self) -> None:
        """Commit what waits: the run ended before there were enough clips to tell."""
        for feature in list(self._waiting):
            self._trust(feature)

    def _trust(self, feature: str) -> None:
        self._trusted.add(feature)
        self._failed.pop(feature, None)
        for commit in self._waiting.pop(feature, []):
            commit()
