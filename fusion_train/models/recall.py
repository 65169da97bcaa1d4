"""Retrieve the labels of the nearest training clips in an exported model: the rule of `retrieval` on new features.

A prompt holds the token id `RECALL_TOKEN - n` at the place for the labels of key n (emotion, sentiment, …). A clip's
features become a vector as in the similarity index: mean and deviation of the tokens per channel, centred, projected,
scaled to length 1. Training clips that are far more similar than randomly drawn clips are passed over as possible
copies. The labels of the `k` nearest other clips are inserted as token ids; each label was tokenised separately.

Shapes: B clips, N training clips, M modalities, K tokens, D width, R projection axes, T tokens of the longest label.
Knows no tokenizer and no store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusion_train.models.answering import pad_left

RECALL_TOKEN = -2
"""Place of the first key's labels; the token id of each further key is one less."""
PADDING = -1


class Recall(nn.Module):
    """Vectors and labels of the training clips."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Allocate the buffers; `retrieval.recall_state` writes the settings and the buffers.

        Args:
            settings: k; threshold and floor of the rule for copies; num_clips; prefix, separator and end (token ids);
                modalities (name -> width, axes, kind); keys (name -> [clips with this label, T]).
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
        """Insert the retrieved labels into prompts (B, L), padded on the left; return the longer ids and their mask.

        Args:
            mask: (B, L), 0 at padding.
            features: modality -> (B, K, D).
            present: (B, M) bool in the order of the modalities `order`.
        """
        if not bool((ids <= RECALL_TOKEN).any()):
            return ids, mask
        queries = self._queries(features, present, order)
        prompts = []
        for b in range(len(ids)):
            prompt = ids[b][mask[b].bool()].tolist()
            places = [place for place, token in enumerate(prompt) if token <= RECALL_TOKEN]
            for place in reversed(places):  # from the end, so that the places before keep their numbers
                key = RECALL_TOKEN - prompt[place]
                query = {name: vectors[b] for name, vectors in queries.items()}
                prompt[place : place + 1] = self._labels(key, query)
            prompts.append(prompt)
        longer_ids, longer_mask = pad_left(prompts, ids.device)
        return longer_ids.to(ids.dtype), longer_mask.to(mask.dtype)

    def _queries(self, features: Mapping[str, Tensor], present: Tensor, order: Sequence[str]) -> dict[str, Tensor]:
        """Return modality -> (B, R) vectors of length 1; zeros if the clip does not have the modality."""
        queries = {}
        for name in self.modalities:
            values = features[name].float()
            mean = values.mean(dim=1)
            deviation = (values - mean[:, None]).square().mean(dim=1).sqrt()
            centred = torch.cat([mean, deviation], dim=1) - getattr(self, f"{name}_mean")
            vectors = centred @ getattr(self, f"{name}_axes")
            vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
            queries[name] = torch.where(present[:, list(order).index(name), None], vectors, 0)
        return queries

    def _labels(self, key: int, query: Mapping[str, Tensor]) -> list[int]:
        """Return the token ids of the nearest clips' labels for one clip; `query`: modality -> (R,)."""
        rows, texts = getattr(self, f"rows_{key}"), getattr(self, f"texts_{key}")
        cosine, likeness, shared, kinds = [], [], [], []
        num_shown = sum(bool(vector.any()) for vector in query.values())
        for name, vector in query.items():
            vectors = getattr(self, f"{name}_vectors")[rows]
            cosine.append(vectors @ vector)
            likeness.append(self._whitened(name, vectors) @ self._whitened(name, vector))
            shared.append(vectors.any(dim=1) & bool(vector.any()))
            kinds.append(self.modalities[name]["kind"])
        num_present = torch.stack([getattr(self, f"{name}_vectors")[rows].any(dim=1) for name in query]).sum(dim=0)
        # A clip's vector over all modalities has the square root of their number as its length.
        nearness = torch.stack(cosine).sum(dim=0) / (num_shown * num_present).clamp(min=1).sqrt()
        copies = self._copies(torch.stack(likeness), torch.stack(shared), kinds)
        order = nearness.masked_fill(copies, -torch.inf).argsort(descending=True, stable=True)
        nearest = [n for n in order[: self.settings["k"]].tolist() if not bool(copies[n])]
        if not nearest:
            return []
        ids = list(self.settings["prefix"])
        for number, n in enumerate(nearest):
            text = texts[n]
            ids += (self.settings["separator"] if number else []) + text[text != PADDING].tolist()
        return ids + list(self.settings["end"])

    def _whitened(self, name: str, vectors: Tensor) -> Tensor:
        """(…, R) -> (…, R), whitened, of length 1, as copies are found; see `featurecache.explore.projection`."""
        scaled = vectors * getattr(self, f"{name}_scale")
        return scaled / scaled.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def _copies(self, products: Tensor, shared: Tensor, kinds: Sequence[str]) -> Tensor:
        """Return (N,) bool: whether a training clip may be a copy of the clip.

        Args:
            products: (M, N) products of whitened vectors.
            shared: (M, N) bool, whether both clips have the modality.
            kinds: (M,) what the modality shows, sound or picture; each kind must be similar by itself.
        """
        counted = products * shared
        similarity = counted.sum(dim=0) / shared.sum(dim=0).clamp(min=1)
        agreement = torch.full_like(similarity, torch.inf)
        for kind in sorted(set(kinds)):
            of_kind = torch.tensor([modality_kind == kind for modality_kind in kinds], device=products.device)
            number = shared[of_kind].sum(dim=0)
            mean = counted[of_kind].sum(dim=0) / number.clamp(min=1)
            agreement = torch.where(number > 0, torch.minimum(agreement, mean), agreement)
        return (similarity >= self.settings["threshold"]) & (agreement >= self.settings["floor"]) & shared.any(dim=0)
