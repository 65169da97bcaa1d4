"""What the nearest training clips were labelled, put into the prompt: retrieval as an ablation.

A clip is shown the labels (and the short reasons, where asked for) of the `k` nearest clips of the training split that
have an answer to the task: never its own, never those of its duplicates, never those of its dialogue. A duplicate is
what `fcache duplicates` takes for one, by the same rule. The same for training and evaluation: what a clip is shown is
a pure function of the store, the clip list and the settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

import featurecache
from featurecache.clips import Clip, ClipList
from featurecache.similarity.calibration import Calibration
from featurecache.similarity.doubles import known_calibration
from featurecache.similarity.duplicates import PairScorer
from featurecache.similarity.search import Neighbourhood, open_neighbourhood
from featurecache.spec import Spec
from fusion_train.errors import ConfigError
from fusion_train.prompts import Task

MAX_REASON_WORDS = 20
MAX_REMEMBERED = 1 << 16


class Retrieval:
    """Finds what to show beside a clip."""

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        specs: dict[str, Spec],
        rule: Calibration,
        pool: ClipList,
        *,
        k: int,
        reasons: bool = False,
    ) -> None:
        """`pool`: the clips that may be shown; those without tokens never are."""
        self._neighbourhood, self._rule, self._k, self._reasons = neighbourhood, rule, k, reasons
        self._scorer = PairScorer(neighbourhood, specs)
        self._pool = [clip for clip in pool if clip.id in neighbourhood]
        self._rows = np.array([neighbourhood.place(clip.id) for clip in self._pool], np.int64)
        self._vectors = neighbourhood.vectors[self._rows]
        self._nearest = lru_cache(MAX_REMEMBERED)(self._find)

    def shown(self, clip: Clip, task: Task) -> tuple[str, ...]:
        """What the nearest clips say to a task, the nearest first; empty for a clip without tokens."""
        key = task.key if task.answer == "label" else task.label
        if task.picture or clip.id not in self._neighbourhood:
            return ()
        return tuple(self._says(self._pool[n], key) for n in self._nearest(clip.id, clip.dialogue, key))

    def _find(self, clip_id: str, dialogue: str | None, key: str) -> tuple[int, ...]:
        place = self._neighbourhood.place(clip_id)
        similarity = self._vectors @ self._neighbourhood.vectors[place]
        found: list[int] = []
        for n in np.argsort(-similarity, kind="stable").tolist():
            other = self._pool[n]
            if not isinstance(other.labels.get(key), str) or other.id == clip_id:
                continue
            if (dialogue is not None and other.dialogue == dialogue) or self._same(place, int(self._rows[n])):
                continue
            found.append(n)
            if len(found) == self._k:
                break
        return tuple(found)

    def _same(self, a: int, b: int) -> bool:
        scores = self._scorer(self._neighbourhood.parts([a]), self._neighbourhood.parts([b]))
        return bool(self._rule.passes(*scores)[0])

    def _says(self, clip: Clip, key: str) -> str:
        label = str(clip.labels[key])
        reason = clip.responses.get("reason", "") if self._reasons else ""
        words = reason.split()[:MAX_REASON_WORDS]
        return f"{label} ({' '.join(words)})" if words else label


def open_retrieval(store: str, names: Sequence[str], pool: ClipList, *, k: int, reasons: bool) -> Retrieval:
    """Open the indices of the features that a run reads.

    Raises:
        StoreError: there is no index of them, or it is behind the store: `fcache index` makes it.
        ConfigError: no clip of the training split has tokens.
    """
    opened = featurecache.open_store(store)
    neighbourhood = open_neighbourhood(opened, dict.fromkeys(dict.fromkeys(names), 1.0))
    specs = {name: opened[name].spec for name in neighbourhood.names}
    retrieval = Retrieval(neighbourhood, specs, known_calibration(opened, neighbourhood), pool, k=k, reasons=reasons)
    if not len(retrieval._rows):
        raise ConfigError("retrieval.k", expected="training clips with tokens to retrieve from", got="none")
    return retrieval
