"""Soft tokens from cached features, spliced into the prompt of a frozen LLM with LoRA.

    audio (B, 64, 1280) ─┬───────────── projector ─> 64 soft tokens ─┐
    video (B, 64, 1408) ─┼───────────── projector ─> 64 ─────────────┤
    image (B, 1025, 1408)┼ patches ──── projector ─> 256 ────────────┼─> [fusion][image][video][audio] = 448 × 4096
                         └ CLS ×64 ─ fusion ─ projector ─> 64 ───────┘

The prompt arrives as token ids in which `SOFT_TOKEN` (-1) marks each place of a soft token. A modality that a clip does
not have has no places, so the LLM cannot see it; what its row of the feature tensor holds does not matter.
Training takes samples in one row without padding, and only supervised positions pass the language-model head.

Shapes: B clips, L tokens of the longest prompt, H width of the LLM, V vocabulary; G clips and S supervised tokens of a
training row.
Source: arXiv 2601.16449 section 4; 71,536,387 trained parameters on LLaMA2-7B. Knows no tokenizer, store or file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion_train.models.fusion_inputs import fusion_inputs
from fusion_train.models.packed_attention import Layout, row_logits
from fusion_train.models.token_streams import (
    DEFAULT_FUSION_TOKENS,
    PATCHES_PER_TOKEN,
    SOFT_TOKEN,
    STREAMS,
    FeatureShapes,
)


class Projectors(nn.ModuleDict):
    """Stream name -> linear map."""

    def __init__(self, widths: Mapping[str, int], llm_width: int) -> None:
        super().__init__({stream: nn.Linear(width, llm_width) for stream, width in widths.items()})


def join_patches(patches: Tensor) -> Tensor:
    """(B, P, D) in raster order -> (B, P / 4, 4·D)."""
    return patches.unflatten(1, (-1, PATCHES_PER_TOKEN)).flatten(2)


@dataclass(frozen=True)
class Abilities:
    """What a language model computes for several samples at once as for each alone; `family_check` measures it."""

    packing: bool = True
    """Samples of a row, isolated by its layout."""
    batching: bool = True
    """Prompts padded on the left, and labels as continuations of one cache."""


@dataclass
class ModelOutput:
    """What a forward pass gives the training loop."""

    loss_sum: Tensor
    """Sum of the losses of the supervised tokens; the caller knows over how many to average."""
    sample_losses: Tensor
    """(B,) the same sum sample by sample."""

    def detached(self) -> ModelOutput:
        """The same without a graph."""
        return ModelOutput(self.loss_sum.detach(), self.sample_losses.detach())


TokenLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (S, V) in float32 and targets (S,) -> losses (S,)."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of every supervised token, (S,)."""
    return F.cross_entropy(logits, targets, reduction="none")


class EmotionLlama(nn.Module):
    """Fusion, projectors and language model; everything but the LLM's base weights is trained."""

    def __init__(
        self,
        llm: nn.Module,
        fusion: nn.Module | None,
        shapes: FeatureShapes,
        *,
        fusion_width: int,
        llm_width: int,
        fusion_tokens: int | None = None,
        abilities: Abilities | None = None,
    ) -> None:
        super().__init__()
        self.llm = llm
        self.abilities = abilities or Abilities()
        self.fusion = fusion
        self.shapes = shapes
        self.fusion_tokens = (fusion_tokens or fusion_token_count(shapes)) if fusion is not None else 0
        widths = shapes.projector_widths(fusion_width=fusion_width if fusion is not None else 0)
        self.projectors = Projectors(widths, llm_width)
        self.token_loss: TokenLoss = cross_entropy
        """Loss of the supervised tokens in training; a callback may put another one here."""
        self.ablated: dict[str, Literal["zero", "omit"]] = {}
        """Streams taken from a trained model: their soft tokens are zeros, or have no places in the prompt."""

    @property
    def soft_counts(self) -> dict[str, int]:
        counts = self.shapes.soft_counts(fusion_tokens=self.fusion_tokens)
        return {stream: count for stream, count in counts.items() if self.ablated.get(stream) != "omit"}

    def soft_tokens(self, features: Mapping[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Turn features into soft tokens.

        Args:
            features: modality -> (B, K, D) of any float dtype.
            present: (B, M) bool in the order of `shapes.used`.

        Returns:
            (B, N, H) soft tokens in prompt order, and the mask (B, N) of those that the clip really has.
        """
        used = self.shapes.used
        column = {name: present[:, m] for m, name in enumerate(used)}
        inputs = self._blanked(features, present)
        streams: dict[str, Tensor] = {}
        for name in used:
            streams[name] = join_patches(inputs[name][:, 1:]) if name == "image" else inputs[name]
        column["fusion"] = present.any(dim=1)
        if self.fusion is not None:
            streams["fusion"] = self.fusion(fusion_inputs(inputs, self.fusion_tokens), present)
        order = [stream for stream in STREAMS if stream in streams and stream in self.projectors]
        column |= {s: torch.zeros_like(column[s]) for s in order if self.ablated.get(s) == "omit"}
        projected = {stream: self.projectors[stream](streams[stream]) for stream in order}
        projected |= {s: torch.zeros_like(projected[s]) for s in order if self.ablated.get(s) == "zero"}
        soft = torch.cat([projected[stream] for stream in order], dim=1)  # [b, n, h]
        mask = torch.cat([column[s][:, None].expand(-1, streams[s].shape[1]) for s in order], dim=1)  # [b, n]
        return soft, mask

    def modality_weights(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor | None:
        """Weights (B, K or 1, M) by which the fusion's attention adds modalities; None for one without attention."""
        weigh = getattr(self.fusion, "modality_weights", None)
        if weigh is None:
            return None
        return weigh(fusion_inputs(self._blanked(features, present), self.fusion_tokens), present)

    def _blanked(self, features: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """Features in the dtype of the trained parts, zero where absent.

        A missing row may hold anything, NaN included; where() keeps it out of the gradient too.
        """
        dtype = next(self.projectors.parameters()).dtype
        return {
            name: torch.where(present[:, m, None, None], features[name], 0).to(dtype)
            for m, name in enumerate(self.shapes.used)
        }

    def splice(self, token_ids: Tensor, soft: Tensor, soft_mask: Tensor) -> Tensor:
        """Put soft tokens into their places: ids (B, L) with SOFT_TOKEN, (B, N, H), (B, N) -> (B, L, H)."""
        places = token_ids == SOFT_TOKEN
        embed = self.llm.get_input_embeddings()
        embeddings = embed(token_ids.masked_fill(places, 0))  # [b, l, h]
        return embeddings.masked_scatter(places.unsqueeze(-1), soft[soft_mask].to(embeddings.dtype))

    def embed(self, token_ids: Tensor, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Prompt ids and features -> (B, L, H), ready for the LLM as `inputs_embeds`."""
        return self.splice(token_ids, *self.soft_tokens(features, present))

    def forward(
        self,
        token_ids: Tensor,
        position_ids: Tensor,
        kept: Tensor,
        layout: Layout,
        features: Mapping[str, Tensor],
        present: Tensor,
        **of_losses: Any,
    ) -> ModelOutput:
        """Summed loss over the supervised tokens of a row of samples.

        Args:
            token_ids, position_ids: (1, L); soft places in the order of the rows of `features`.
            kept: (S,) places whose prediction is supervised, ascending.
            layout: which tokens see which.
            features: modality -> (G, K, D); present: (G, M).
            of_losses: what `losses` takes besides the logits.
        """
        embedded = self.embed(token_ids, features, present)
        logits = row_logits(self.llm, embedded, position_ids, kept, layout, together=self.abilities.packing)
        return self.losses(logits, **of_losses)

    def losses(self, logits: Tensor, targets: Tensor, owners: Tensor, num_samples: int, **_rest: Any) -> ModelOutput:
        """Logits (1, S, V) at the supervised places; (S,) what each must predict and whose it is -> their losses."""
        losses = self.token_loss(logits[0].float(), targets)  # [s]
        by_sample = torch.zeros(num_samples, device=losses.device).index_add(0, owners, losses)
        return ModelOutput(losses.sum(), by_sample)


def fusion_token_count(shapes: FeatureShapes) -> int:
    """Tokens the fusion reads and gives: as many as audio and video have; 64 where they differ or are not used."""
    counts = {getattr(shapes, name)[0] for name in shapes.used if name != "image"}
    return counts.pop() if len(counts) == 1 else DEFAULT_FUSION_TOKENS


def llm_width(llm: nn.Module) -> int:
    """Width of the input embeddings of a causal LM of transformers."""
    return int(llm.get_input_embeddings().embedding_dim)


class AbsentConstants(nn.Module):
    """One (K, D) constant a modality in use, kept beside the weights."""

    def __init__(self, shapes: FeatureShapes) -> None:
        super().__init__()
        self._used = shapes.used
        for name in self._used:
            self.register_buffer(name, torch.zeros(getattr(shapes, name)))

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features (B, K, D) a modality and `present` (B, M) -> what is seen of them, and that all of it is there."""
        seen = {
            name: torch.where(present[:, m, None, None], features[name], getattr(self, name).to(features[name]))
            for m, name in enumerate(self._used)
        }
        return seen, torch.ones_like(present)
