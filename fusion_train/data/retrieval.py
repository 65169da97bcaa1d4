"""What the nearest training clips were labelled, put into the prompt: retrieval as an ablation.

A clip is shown the labels (and the short reasons, where asked for) of the `k` nearest clips of the training split that
have the label its task asks for: never its own, never those of its duplicates, never those of its dialogue. Nearness is
judged by the modalities that the model is shown, so a hidden one cannot tell. A duplicate is any clip whose averaged
tokens are far more alike than those of clips drawn at random: copies are passed over, and some clips that are none,
since an exported model holds no media that could be compared in time. The same for training, evaluation and export
(`memory_of`): what a clip is shown is a pure function of the store, the clip list and the settings.
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
from featurecache.explore.duplicates import PairScorer, modality
from featurecache.explore.index import open_index
from featurecache.explore.leaks import cautious_rule
from featurecache.explore.projection import COPIES, OVERALL, Space
from featurecache.explore.search import Neighbourhood, open_neighbourhood
from featurecache.spec import Spec
from fusion_train.errors import ConfigError
from fusion_train.models.recall import PADDING
from fusion_train.prompts.encoding_text import Words, encode_text
from fusion_train.prompts.prompt import PromptFormat, Task

MAX_REASON_WORDS = 20
MAX_REMEMBERED = 1 << 16
PLACE = "{recalled}"
SEPARATOR = ";"


class Retrieval:
    """Finds what to show beside a clip."""

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        copies: Neighbourhood,
        specs: Mapping[str, Spec],
        rule: Calibration,
        pool: ClipList,
        features: Mapping[str, str],
        spaces: Mapping[str, Space],
        *,
        k: int,
        reasons: bool = False,
    ) -> None:
        """Args as in `Config.retrieval`; those besides:

        neighbourhood, copies: the clips compared overall, which says what is near, and as copies are found.
        pool: the clips that may be shown; those without tokens never are.
        features: modality -> feature, in the reader's order. spaces: feature -> that of its index.
        """
        self.neighbourhood, self.specs, self.rule, self.features = neighbourhood, specs, rule, dict(features)
        self._copies = copies
        self.spaces = dict(spaces)
        self.k, self._reasons = k, reasons
        self._scorer = PairScorer(neighbourhood, specs)
        self.pool = [clip for clip in pool if clip.id in neighbourhood]
        self._rows = np.array([neighbourhood.place(clip.id) for clip in self.pool], np.int64)
        self._vectors = neighbourhood.vectors[self._rows]
        self._parts = copies.parts(self._rows)
        self._nearest = lru_cache(MAX_REMEMBERED)(self._find)

    @property
    def keys(self) -> list[str]:
        """Label tasks that some clip of the pool has one label for, sorted."""
        return sorted({key for clip in self.pool for key, value in clip.labels.items() if isinstance(value, str)})

    def recalled(self, clip: Clip, task: Task, shown: Sequence[bool]) -> tuple[str, ...]:
        """What the nearest clips say to a task, the nearest first; `shown` (M,) as the model is shown the clip."""
        seen = tuple(dict.fromkeys(name for name, here in zip(self.features.values(), shown, strict=True) if here))
        if task.picture or not seen or clip.id not in self.neighbourhood:
            return ()
        key = task.label_key
        return tuple(self.says(self.pool[n], key) for n in self._nearest(clip.id, clip.dialogue, key, seen))

    def says(self, clip: Clip, key: str) -> str:
        """The label of a training clip, and the beginning of its reason where asked for."""
        reasons = response_texts(clip.responses.get("reason")) if self._reasons else []
        words = next((text for about, text in reasons if about in (None, key)), "").split()[:MAX_REASON_WORDS]
        return f"{clip.labels[key]} ({' '.join(words)})" if words else str(clip.labels[key])

    def _find(self, clip_id: str, dialogue: str | None, key: str, seen: tuple[str, ...]) -> tuple[int, ...]:
        place = self.neighbourhood.place(clip_id)
        own = self.neighbourhood.parts([place])
        joined = self.neighbourhood.join({name: own[name] for name in seen})[0]
        own = self._copies.parts([place])
        query = {name: own[name] if name in seen else np.zeros_like(own[name]) for name in own}
        same = self.rule.screens(
            *self._scorer(
                {name: np.broadcast_to(query[name], part.shape) for name, part in self._parts.items()}, self._parts
            )
        )
        found: list[int] = []
        for n in np.argsort(-(self._vectors @ joined), kind="stable").tolist():
            other = self.pool[n]
            apart = dialogue is None or other.dialogue != dialogue
            if isinstance(other.labels.get(key), str) and other.id != clip_id and apart and not same[n]:
                found.append(n)
                if len(found) == self.k:
                    break
        return tuple(found)


class RecalledTokens:
    """What is recalled, as token ids; each text is tokenised by itself, as an exported model must."""

    def __init__(self, retrieval: Retrieval, tokenizer: Any, prompt: PromptFormat) -> None:
        self.retrieval = retrieval
        before, place, after = prompt.recalled.partition(PLACE)
        if not place:
            raise ConfigError(
                "prompt.recalled", expected=f"{PLACE}, the place of what is recalled", got=prompt.recalled
            )
        self.encode = lru_cache(MAX_REMEMBERED)(lambda text: tuple(encode_text(tokenizer, text)))
        own = (tuple(encode_text(tokenizer, Words.own(text))) for text in (before, SEPARATOR, after))
        self.prefix, self.separator, self.end = own

    def __call__(self, clip: Clip, task: Task, shown: Sequence[bool]) -> list[int]:
        """Token ids to put into a prompt; none where nothing is recalled."""
        texts = self.retrieval.recalled(clip, task, shown)
        ids: list[int] = list(self.prefix) if texts else []
        for number, text in enumerate(texts):
            ids += [*(self.separator if number else ()), *self.encode(text)]
        return [*ids, *self.end] if texts else []


def open_retrieval(store: str, features: Mapping[str, str], pool: ClipList, *, k: int, reasons: bool) -> Retrieval:
    """Open the indices of the features that a run reads (modality -> name).

    Raises:
        StoreError: there is no index of them, or it is behind the store: `fcache index` makes it.
        ConfigError: no clip of the training split has tokens.
    """
    opened = featurecache.open_store(store)
    weights = dict.fromkeys(features.values(), 1.0)
    neighbourhood, copies = (open_neighbourhood(opened, weights, comparison) for comparison in (OVERALL, COPIES))
    specs = {name: opened[name].spec for name in neighbourhood.names}
    spaces = {name: open_index(opened[name]).require_space() for name in neighbourhood.names}
    rule = cautious_rule(opened, copies)
    retrieval = Retrieval(neighbourhood, copies, specs, rule, pool, features, spaces, k=k, reasons=reasons)
    if not retrieval.pool:
        raise ConfigError("retrieval.k", expected="training clips with tokens to retrieve from", got="none")
    return retrieval


def memory_of(tokens: RecalledTokens) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of the `Recall` that an exported model carries."""
    retrieval = tokens.retrieval
    parts = retrieval.neighbourhood.parts([retrieval.neighbourhood.place(clip.id) for clip in retrieval.pool])
    tensors: dict[str, Tensor] = {}
    modalities = {}
    for name, feature in retrieval.features.items():
        space = retrieval.spaces[feature]
        tensors |= {
            f"{name}_mean": torch.from_numpy(space.mean),
            f"{name}_axes": torch.from_numpy(space.axes),
            f"{name}_scale": torch.from_numpy(space.scale(COPIES)),
            f"{name}_vectors": torch.from_numpy(parts[feature]),
        }
        kind = modality(retrieval.specs[feature])
        modalities[name] = {"width": len(space.mean), "axes": space.num_axes, "kind": kind}
    keys = {}
    for number, key in enumerate(retrieval.keys):
        rows = [n for n, clip in enumerate(retrieval.pool) if isinstance(clip.labels.get(key), str)]
        texts = [tokens.encode(retrieval.says(retrieval.pool[n], key)) for n in rows]
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
