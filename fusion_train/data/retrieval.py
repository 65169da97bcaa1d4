"""Find the labels of the nearest training clips and put them into the prompt: retrieval as an ablation.

The prompt of a clip gets the labels, and short reasons if the configuration asks for them, of the `k` nearest clips of
the training split that have the label of the question's task. The clip itself, its duplicates and the clips of its
dialogue are never among them. Distance is computed on the modalities that the model is shown, so that a hidden modality
reveals nothing. A duplicate is any clip whose averaged tokens are far more similar than those of randomly drawn clips;
some clips that are no copies are passed over too, since an exported model has no media that it could compare.
Training, evaluation and export (`recall_state`) use the same rule: the retrieved labels are a pure function of the
store, the clip list and the settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import featurecache
from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.responses import response_texts
from featurecache.explore.calibration import Calibration
from featurecache.explore.calibration_run import cautious_rule
from featurecache.explore.duplicates import PairScorer, modality
from featurecache.explore.index import open_index
from featurecache.explore.projection import COPIES, OVERALL, Projection
from featurecache.explore.search import Neighbourhood, open_neighbourhood
from featurecache.spec import Spec
from fusion_train.errors import ConfigError
from fusion_train.models.recall import PADDING
from fusion_train.prompts.encoding_text import PromptText, encode_text
from fusion_train.prompts.prompt import PromptFormat, Task

MAX_REASON_WORDS = 20
MAX_REMEMBERED = 1 << 16
PLACE = "{recalled}"
SEPARATOR = ";"


class Retrieval:
    """Finds the nearest training clips of a clip."""

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        copies: Neighbourhood,
        specs: Mapping[str, Spec],
        rule: Calibration,
        pool: ClipList,
        features: Mapping[str, str],
        projections: Mapping[str, Projection],
        *,
        k: int,
        reasons: bool = False,
    ) -> None:
        """Args as in `Config.retrieval`, and:

        neighbourhood: vectors of the clips by which the nearest are found.
        copies: vectors of the clips by which copies are found.
        specs: feature -> spec.
        rule: which similarities count as those of copies.
        pool: the clips that may be retrieved; clips without tokens never are.
        features: modality -> feature, in the reader's order.
        projections: feature -> projection of its index.
        """
        self.neighbourhood, self.specs, self.rule, self.features = neighbourhood, specs, rule, dict(features)
        self._copies = copies
        self.projections = dict(projections)
        self.k, self._reasons = k, reasons
        self._scorer = PairScorer(neighbourhood, specs)
        self.pool = [clip for clip in pool if clip.id in neighbourhood]
        self._rows = np.array([neighbourhood.row_of(clip.id) for clip in self.pool], np.int64)
        self._vectors = neighbourhood.vectors[self._rows]
        self._parts = copies.by_feature(self._rows)
        self._nearest = lru_cache(MAX_REMEMBERED)(self._find)

    @property
    def keys(self) -> list[str]:
        """The label tasks for which some clip of the pool has one label, sorted."""
        return sorted({key for clip in self.pool for key, value in clip.labels.items() if isinstance(value, str)})

    def recalled(self, clip: Clip, task: Task, shown: Sequence[bool]) -> tuple[str, ...]:
        """Return the labels of the nearest clips for a task, the nearest first.

        Args:
            shown: (M,) which modalities of the clip the model is shown.
        """
        names = tuple(dict.fromkeys(name for name, show in zip(self.features.values(), shown, strict=True) if show))
        if task.picture or not names or clip.id not in self.neighbourhood:
            return ()
        key = task.label_key
        return tuple(self.label_text(self.pool[n], key) for n in self._nearest(clip.id, clip.dialogue, key, names))

    def label_text(self, clip: Clip, key: str) -> str:
        """Return the label of a training clip, with the beginning of its reason if the configuration asks for it."""
        reasons = response_texts(clip.responses.get("reason")) if self._reasons else []
        words = next((text for label_task, text in reasons if label_task in (None, key)), "").split()
        words = words[:MAX_REASON_WORDS]
        return f"{clip.labels[key]} ({' '.join(words)})" if words else str(clip.labels[key])

    def _find(self, clip_id: str, dialogue: str | None, key: str, names: tuple[str, ...]) -> tuple[int, ...]:
        """Return the places in the pool of the nearest clips, by the features `names`."""
        place = self.neighbourhood.row_of(clip_id)
        parts = self.neighbourhood.by_feature([place])
        query = self.neighbourhood.join({name: parts[name] for name in names})[0]
        parts = self._copies.by_feature([place])
        copy_query = {name: part if name in names else np.zeros_like(part) for name, part in parts.items()}
        maybe_copy = self.rule.screens(
            *self._scorer(
                {name: np.broadcast_to(copy_query[name], part.shape) for name, part in self._parts.items()},
                self._parts,
            )
        )
        nearest: list[int] = []
        for n in np.argsort(-(self._vectors @ query), kind="stable").tolist():
            other = self.pool[n]
            other_dialogue = dialogue is None or other.dialogue != dialogue
            if isinstance(other.labels.get(key), str) and other.id != clip_id and other_dialogue and not maybe_copy[n]:
                nearest.append(n)
                if len(nearest) == self.k:
                    break
        return tuple(nearest)


class RecalledTokens:
    """The retrieved labels as token ids; each text is tokenised separately, as an exported model has to do."""

    def __init__(self, retrieval: Retrieval, tokenizer: Any, prompt: PromptFormat) -> None:
        self.retrieval = retrieval
        before, place, after = prompt.recalled.partition(PLACE)
        if not place:
            raise ConfigError(
                "prompt.recalled", expected=f"{PLACE}, the place of what is recalled", got=prompt.recalled
            )
        self.encode = lru_cache(MAX_REMEMBERED)(lambda text: tuple(encode_text(tokenizer, text)))
        self.prefix, self.separator, self.end = (
            tuple(encode_text(tokenizer, PromptText.template(text))) for text in (before, SEPARATOR, after)
        )

    def __call__(self, clip: Clip, task: Task, shown: Sequence[bool]) -> list[int]:
        """Return the token ids to put into a prompt; none if no label is retrieved."""
        texts = self.retrieval.recalled(clip, task, shown)
        ids: list[int] = list(self.prefix) if texts else []
        for number, text in enumerate(texts):
            ids += [*(self.separator if number else ()), *self.encode(text)]
        return [*ids, *self.end] if texts else []


def open_retrieval(store: str, features: Mapping[str, str], pool: ClipList, *, k: int, reasons: bool) -> Retrieval:
    """Open the indices of the features that a run reads.

    Args:
        features: modality -> name in the store.
        pool: the clips that may be retrieved.

    Raises:
        StoreError: a feature has no index, or one that is older than its tokens: `fcache index` makes it.
        ConfigError: no clip of the training split has tokens.
    """
    opened = featurecache.open_store(store)
    weights = dict.fromkeys(features.values(), 1.0)
    neighbourhood, copies = (open_neighbourhood(opened, weights, comparison) for comparison in (OVERALL, COPIES))
    specs = {name: opened[name].spec for name in neighbourhood.names}
    projections = {name: open_index(opened[name]).require_projection() for name in neighbourhood.names}
    rule = cautious_rule(opened, copies)
    retrieval = Retrieval(neighbourhood, copies, specs, rule, pool, features, projections, k=k, reasons=reasons)
    if not retrieval.pool:
        raise ConfigError("retrieval.k", expected="training clips with tokens to retrieve from", got="none")
    return retrieval


def recall_state(tokens: RecalledTokens) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings and the buffers of the `Recall` module of an exported model."""
    retrieval = tokens.retrieval
    parts = retrieval.neighbourhood.by_feature([retrieval.neighbourhood.row_of(clip.id) for clip in retrieval.pool])
    tensors: dict[str, Tensor] = {}
    modalities = {}
    for name, feature in retrieval.features.items():
        projection = retrieval.projections[feature]
        tensors |= {
            f"{name}_mean": torch.from_numpy(projection.mean),
            f"{name}_axes": torch.from_numpy(projection.axes),
            f"{name}_scale": torch.from_numpy(projection.scale(COPIES)),
            f"{name}_vectors": torch.from_numpy(parts[feature]),
        }
        kind = modality(retrieval.specs[feature])
        modalities[name] = {"width": len(projection.mean), "axes": projection.num_axes, "kind": kind}
    keys = {}
    for number, key in enumerate(retrieval.keys):
        rows = [n for n, clip in enumerate(retrieval.pool) if isinstance(clip.labels.get(key), str)]
        texts = [tokens.encode(retrieval.label_text(retrieval.pool[n], key)) for n in rows]
        longest = max(map(len, texts))
        padded = [[*text, *[PADDING] * (longest - len(text))] for text in texts]
        tensors |= {f"rows_{number}": torch.tensor(rows), f"texts_{number}": torch.tensor(padded)}
        keys[key] = [len(rows), longest]
    settings = {
        "k": retrieval.k,
        "threshold": retrieval.rule.threshold,
        "floor": retrieval.rule.floor,
        "num_clips": len(retrieval.pool),
        "prefix": list(tokens.prefix),
        "separator": list(tokens.separator),
        "end": list(tokens.end),
        "modalities": modalities,
        "keys": keys,
    }
    return settings, tensors
