"""What an exported model recalls of its training clips: the same rule as `retrieval`, on features just encoded.

A prompt holds one `RECALL_TOKEN - n` where what is recalled for key n (emotion, sentiment, …) goes. A clip's features
become a vector as in the similarity index: mean and deviation of the tokens a channel, centred, projected, length 1.
Training clips that are far more alike than clips drawn at random are passed over as possible copies; the `k` nearest of
the rest are put in as token ids that were tokenised once, one by one.

Shapes: B clips, N training clips, K tokens, D width, R axes, T tokens of the longest text. Knows no tokenizer or store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

RECALL_TOKEN = -2
"""Of the first key; the next one's is one less."""
PADDING = -1


class Recall(nn.Module):
    """Training clips and what they say."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Make room for what `settings` describe; `retrieval.memory_of` writes both.

        Args:
            settings: k, threshold, floor, num_clips, prefix, separator, end (token ids), modalities (name -> width,
                axes, kind), keys (name -> [clips that have it, T]).
        """
        super().__init__()
        self.settings = dict(settings)
        self.keys = list(settings["keys"])
        self.modalities = dict(settings["modalities"])
        for name, sizes in self.modalities.items():
            self.register_buffer(f"{name}_mean", torch.zeros(sizes["width"]))
            self.register_buffer(f"{name}_axes", torch.zeros(sizes["width"], sizes["axes"]))
            self.register_buffer(f"{name}_scale", torch.ones(sizes["axes"]))
            self.register_buffer(f"{name}_vectors", torch.zeros(settings["num_clips"], sizes["axes"]))
        for number, (count, longest) in enumerate(settings["keys"].values()):
            self.register_buffer(f"rows_{number}", torch.zeros(count, dtype=torch.int64))
            self.register_buffer(f"texts_{number}", torch.full((count, longest), PADDING, dtype=torch.int64))

    def fill(
        self, ids: Tensor, mask: Tensor, features: Mapping[str, Tensor], present: Tensor, order: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Put what is recalled into prompts (B, L), padded on the left; those without a place stay as they are.

        Args:
            features: modality -> (B, K, D); present: (B, M) bool in the order of the modalities `order`.
        """
        if not bool((ids <= RECALL_TOKEN).any()):
            return ids, mask
        queries = self._queries(features, present, order)
        rows = []
        for b in range(len(ids)):
            prompt = ids[b][mask[b].bool()].tolist()
            places = [at for at, token in enumerate(prompt) if token <= RECALL_TOKEN]
            for at in reversed(places):
                key = RECALL_TOKEN - prompt[at]
                prompt[at : at + 1] = self._recalled(key, {name: part[b] for name, part in queries.items()})
            rows.append(prompt)
        length = max(map(len, rows))
        filled = torch.zeros(len(rows), length, dtype=ids.dtype, device=ids.device)
        shown = torch.zeros(len(rows), length, dtype=mask.dtype, device=mask.device)
        for b, row in enumerate(rows):
            filled[b, length - len(row) :] = torch.tensor(row, device=ids.device)
            shown[b, length - len(row) :] = 1
        return filled, shown

    def _queries(self, features: Mapping[str, Tensor], present: Tensor, order: Sequence[str]) -> dict[str, Tensor]:
        """Modality -> (B, R) vectors of length 1, zeros where the clip does not have it."""
        found = {}
        for name in self.modalities:
            values = features[name].float()
            mean = values.mean(dim=1)
            deviation = (values - mean[:, None]).square().mean(dim=1).sqrt()
            centred = torch.cat([mean, deviation], dim=1) - getattr(self, f"{name}_mean")
            vectors = centred @ getattr(self, f"{name}_axes")
            vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
            found[name] = torch.where(present[:, list(order).index(name), None], vectors, 0)
        return found

    def _recalled(self, key: int, query: Mapping[str, Tensor]) -> list[int]:
        """Token ids that replace a place, for one clip: (R,) a modality."""
        rows, texts = getattr(self, f"rows_{key}"), getattr(self, f"texts_{key}")
        cosine, likeness, both, kinds = [], [], [], []
        shown = sum(bool(vector.any()) for vector in query.values())
        for name, vector in query.items():
            vectors = getattr(self, f"{name}_vectors")[rows]
            cosine.append(vectors @ vector)
            likeness.append(self._whitened(name, vectors) @ self._whitened(name, vector))
            both.append(vectors.any(dim=1) & bool(vector.any()))
            kinds.append(self.modalities[name]["kind"])
        has = torch.stack([getattr(self, f"{name}_vectors")[rows].any(dim=1) for name in query]).sum(dim=0)
        products, common = torch.stack(cosine), torch.stack(both)  # [m, n]
        nearness = products.sum(dim=0) / (shown * has).clamp(min=1).sqrt()
        same = self._same(torch.stack(likeness), common, kinds)
        order = nearness.masked_fill(same, -torch.inf).argsort(descending=True, stable=True)
        chosen = [n for n in order[: self.settings["k"]].tolist() if not bool(same[n])]
        if not chosen:
            return []
        ids = list(self.settings["prefix"])
        for number, n in enumerate(chosen):
            text = texts[n]
            ids += (self.settings["separator"] if number else []) + text[text != PADDING].tolist()
        return ids + list(self.settings["end"])

    def _whitened(self, name: str, vectors: Tensor) -> Tensor:
        """(…, R) vectors -> (…, R) of length 1 as copies are found; see `featurecache.explore.projection`."""
        scaled = vectors * getattr(self, f"{name}_scale")
        return scaled / scaled.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def _same(self, products: Tensor, common: Tensor, kinds: Sequence[str]) -> Tensor:
        """(N,) bool: whether a training clip may be a copy of the clip in question, by (M, N) whitened products."""
        counted = products * common
        similarity = counted.sum(dim=0) / common.sum(dim=0).clamp(min=1)
        agreement = torch.full_like(similarity, torch.inf)
        for kind in sorted(set(kinds)):
            of_kind = torch.tensor([each == kind for each in kinds], device=products.device)
            number = common[of_kind].sum(dim=0)
            mean = counted[of_kind].sum(dim=0) / number.clamp(min=1)
            agreement = torch.where(number > 0, torch.minimum(agreement, mean), agreement)
        return (similarity >= self.settings["threshold"]) & (agreement >= self.settings["floor"]) & common.any(dim=0)
