"""Soft tokens from cached features, spliced into the prompt of a frozen LLM with LoRA.

    audio (B, 64, 1280) ─┬───────────── projector ─> 64 soft tokens ─┐
    video (B, 64, 1408) ─┼───────────── projector ─> 64 ─────────────┤
    image (B, 1025, 1408)┼ patches ──── projector ─> 256 ────────────┼─> [fusion][image][video][audio] = 448 × 4096
                         └ CLS ×64 ─ fusion ─ projector ─> 64 ───────┘

The prompt is a list of token ids in which `SOFT_TOKEN` (-1) marks the place of each soft token. A modality that a clip
does not have gets no places, so the LLM cannot see it; its row of the feature tensor may hold anything.
Training takes samples in one row without padding, and only supervised positions pass the language-model head.

Projectors, one linear map per stream: audio Linear(1280→4096), video Linear(1408→4096), fusion Linear(256→4096); image:
4 consecutive raster patches are joined, (B, 1024, 1408) -> (B, 256, 5632) -> Linear(5632→4096). 35,143,680 parameters.

Shapes: B clips, M modalities in use, N soft tokens, L tokens of the longest prompt, H width of the LLM, V vocabulary;
G clips and S supervised tokens of a training row.
Source: arXiv 2601.16449 section 4; `llama_proj*` of the released code; 71,536,387 trained parameters on LLaMA2-7B.
Knows no tokenizer, store or file.
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
    """Join 4 consecutive patches: (B, P, D) in raster order -> (B, P / 4, 4·D)."""
    return patches.unflatten(1, (-1, PATCHES_PER_TOKEN)).flatten(2)


@dataclass(frozen=True)
class Abilities:
    """Whether a language model computes the same for several samples at once as for each alone; see `family_check`."""

    packing: bool = True
    """For the samples of one row, isolated by its layout."""
    batching: bool = True
    """For prompts that are padded on the left, and labels that continue one key-value cache."""


@dataclass
class ModelOutput:
    """The losses of a forward pass."""

    loss_sum: Tensor
    """Sum over the supervised tokens; the caller divides it."""
    sample_losses: Tensor
    """(B,) sum over the supervised tokens of each sample."""

    def detached(self) -> ModelOutput:
        """Return the losses without their graph."""
        return ModelOutput(self.loss_sum.detach(), self.sample_losses.detach())


TokenLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (S, V) in float32 and targets (S,) -> losses (S,)."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss (S,) of every supervised token."""
    return F.cross_entropy(logits, targets, reduction="none")


def checked_losses(token_loss: TokenLoss, logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the losses (S,), and refuse a loss of a user's own that returns another shape."""
    losses = token_loss(logits, targets)
    if losses.shape != targets.shape:
        got = tuple(losses.shape)
        raise ValueError(f"token_loss: expected one loss per target, {tuple(targets.shape)}, got {got}. Do not reduce.")
    return losses


class EmotionLlama(nn.Module):
    """Fusion, projectors and language model; everything except the LLM's base weights is trained."""

    num_models = 1
    """See `answering.AnsweringModel`."""

    def __init__(
        self,
        llm: Any,
        fusion: nn.Module | None,
        shapes: FeatureShapes,
        *,
        fusion_width: int,
        llm_width: int,
        fusion_tokens: int | None = None,
        abilities: Abilities | None = None,
    ) -> None:
        """Args:
        llm: a causal language model of transformers, or the wrapper of peft around it.
        fusion: a fusion variant; None for no fusion tokens.
        fusion_width: width of the fusion's tokens.
        llm_width: H.
        fusion_tokens: tokens that the fusion reads and returns; None: as `fusion_token_count`.
        abilities: what `family_check` measured of `llm`.
        """
        super().__init__()
        self.llm: Any = llm
        self.abilities = abilities or Abilities()
        self.fusion = fusion
        self.shapes = shapes
        self.fusion_tokens = (fusion_tokens or fusion_token_count(shapes)) if fusion is not None else 0
        widths = shapes.projector_widths(fusion_width=fusion_width if fusion is not None else 0)
        self.projectors = Projectors(widths, llm_width)
        self.token_loss: TokenLoss = cross_entropy
        """Loss of the supervised tokens in training; a callback may replace it."""
        self.ablated: dict[str, Literal["zero", "omit"]] = {}
        """Streams that are removed from a trained model: their soft tokens become zeros, or get no places."""

    @property
    def soft_counts(self) -> dict[str, int]:
        """Stream -> soft tokens of a clip that has every modality, in prompt order."""
        counts = self.shapes.soft_counts(fusion_tokens=self.fusion_tokens)
        return {stream: count for stream, count in counts.items() if self.ablated.get(stream) != "omit"}

    def soft_tokens(self, features: Mapping[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the soft tokens of clips.

        Args:
            features: modality -> (B, K, D) of any float dtype.
            present: (B, M) bool in the order of `shapes.used`.

        Returns:
            (B, N, H) soft tokens in prompt order, and (B, N) bool: whether the clip has the stream of the token.
        """
        used = self.shapes.used
        has_stream = {name: present[:, m] for m, name in enumerate(used)}  # stream -> [b]
        has_stream["fusion"] = present.any(dim=1)
        inputs = self._masked(features, present)
        streams: dict[str, Tensor] = {}
        for name in used:
            streams[name] = join_patches(inputs[name][:, 1:]) if name == "image" else inputs[name]
        if self.fusion is not None:
            streams["fusion"] = self.fusion(fusion_inputs(inputs, self.fusion_tokens), present)
        order = [stream for stream in STREAMS if stream in streams and stream in self.projectors]
        has_stream |= {s: torch.zeros_like(has_stream[s]) for s in order if self.ablated.get(s) == "omit"}
        projected = {stream: self.projectors[stream](streams[stream]) for stream in order}
        projected |= {s: torch.zeros_like(projected[s]) for s in order if self.ablated.get(s) == "zero"}
        soft = torch.cat([projected[stream] for stream in order], dim=1)  # [b, n, h]
        mask = torch.cat([has_stream[s][:, None].expand(-1, streams[s].shape[1]) for s in order], dim=1)  # [b, n]
        return soft, mask

    def modality_weights(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor | None:
        """Return the weights (B, K or 1, M) of the modalities in the fusion's attention; None without attention."""
        modality_weights = getattr(self.fusion, "modality_weights", None)
        if modality_weights is None:
            return None
        weights: Tensor = modality_weights(fusion_inputs(self._masked(features, present), self.fusion_tokens), present)
        return weights

    def _masked(self, features: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """Return the features in the dtype of the trained parts, zero where absent.

        The row of an absent modality may hold anything, also NaN; where() keeps NaN out of the gradient too.
        """
        dtype = next(self.projectors.parameters()).dtype
        return {
            name: torch.where(present[:, m, None, None], features[name], 0).to(dtype)
            for m, name in enumerate(self.shapes.used)
        }

    def splice(self, token_ids: Tensor, soft: Tensor, soft_mask: Tensor) -> Tensor:
        """Replace SOFT_TOKEN by the soft tokens: ids (B, L), soft (B, N, H), mask (B, N) -> embeddings (B, L, H)."""
        places = token_ids == SOFT_TOKEN
        embed = self.llm.get_input_embeddings()
        # One row more than there are tokens: soft tokens without a place are written there.
        ids = F.pad(token_ids.masked_fill(places, 0).flatten(), (0, 1))
        rows: Tensor = embed(ids[None])[0]  # [b * l + 1, h]
        target = _rows_of_soft_tokens(places.flatten(), soft_mask.flatten())
        rows = rows.index_copy(0, target, soft.flatten(0, 1).to(rows.dtype))
        return rows[:-1].unflatten(0, token_ids.shape)

    def embed(self, token_ids: Tensor, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Return the LLM's `inputs_embeds` (B, L, H) for prompts (B, L) and the features of their clips."""
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
        """Compute the losses of a row of samples.

        Args:
            token_ids: (1, L); the places of soft tokens are in the order of the rows of `features`.
            position_ids: (1, L).
            kept: (S,) places whose prediction is supervised, ascending.
            layout: which tokens see which.
            features: modality -> (G, K, D).
            present: (G, M) bool.
            of_losses: further arguments of `losses`.
        """
        embedded = self.embed(token_ids, features, present)
        logits = row_logits(self.llm, embedded, position_ids, kept, layout, together=self.abilities.packing)
        return self.losses(logits, **of_losses)

    def losses(self, logits: Tensor, targets: Tensor, owners: Tensor, num_samples: int, **_rest: Any) -> ModelOutput:
        """Compute the losses from the logits at the supervised places.

        Args:
            logits: (1, S, V).
            targets: (S,) token ids.
            owners: (S,) number of the sample that each token belongs to.
        """
        losses = checked_losses(self.token_loss, logits[0].float(), targets)  # [s]
        by_sample = torch.zeros(num_samples, device=losses.device).index_add(0, owners, losses)
        return ModelOutput(losses.sum(), by_sample)


def _rows_of_soft_tokens(places: Tensor, soft_mask: Tensor) -> Tensor:
    """Return the row that each soft token goes to: places (R,) bool, mask (S,) bool -> (S,) int64.

    The soft tokens of the mask go to the places in order, the others to row R. Selecting by the masks would give the
    same, but the host would wait for a GPU to learn the number of selected rows.
    """
    torch._assert_async(places.sum() == soft_mask.sum(), "as many places in the prompts as soft tokens")
    in_order = torch.argsort(~places, stable=True)  # the rows of the places come first
    rank = (soft_mask.cumsum(0) - 1).clamp(min=0)
    return torch.where(soft_mask, in_order[rank], len(places))


def fusion_token_count(shapes: FeatureShapes) -> int:
    """Return the token count of the fusion: that of audio and video; 64 if they differ or neither is used."""
    counts = {getattr(shapes, name)[0] for name in shapes.used if name not in ("image", "text")}
    return counts.pop() if len(counts) == 1 else DEFAULT_FUSION_TOKENS


def llm_width(llm: Any) -> int:
    """Return the width of the input embeddings of a causal language model of transformers."""
    return int(llm.get_input_embeddings().embedding_dim)


class AbsentConstants(nn.Module):
    """One (K, D) buffer per modality, which an exported model shows in place of an absent modality.

    Only a model with `features.absent: visible` has them; `data/absent` computes their values.
    """

    def __init__(self, shapes: FeatureShapes) -> None:
        super().__init__()
        self._used = shapes.used
        for name in self._used:
            self.register_buffer(name, torch.zeros(getattr(shapes, name)))

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Replace absent rows: modality -> (B, K, D) and present (B, M) -> the same shapes, all present."""
        visible = {
            name: torch.where(present[:, m, None, None], features[name], getattr(self, name).to(features[name]))
            for m, name in enumerate(self._used)
        }
        return visible, torch.ones_like(present)
