"""Concatenate samples into one row without padding; questions on one clip share the beginning of their prompts.

The shared prefix is the longest run of token ids that the prompts have in common, with the places of soft tokens. It
never contains the last token of a prompt, since this token predicts the first token of the answer. Tokenisation does
not change, so a question has the same ids, the same positions and the same visible tokens as alone: the same loss and
the same gradients. Shapes: L tokens of the row, S supervised tokens, G prefixes. Knows no store and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_train.models.packed_attention import Layout, RowSegment


@dataclass(frozen=True)
class Encoded:
    """The token ids of one sample."""

    prompt: list[int]
    """SOFT_TOKEN at the places of soft tokens."""
    answer: list[int]
    shared: Hashable
    """Equal for samples with the same soft tokens: the clip and the modalities shown."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Packed:
    """A row of samples."""

    token_ids: Tensor
    """(1, L) int64."""
    kept: Tensor
    """(S,) int64: places whose prediction is supervised, ascending."""
    targets: Tensor
    """(S,) int64: token ids that these places must predict."""
    owners: Tensor
    """(S,) int64: number of the sample that each place belongs to."""
    layout: Layout
    first_of_group: list[int]
    """(G,) number of the first sample of each group, in the order of their soft tokens in the row."""
    own_tokens: list[int]
    """Tokens of each sample; a shared prefix counts for the first sample of its group."""


@dataclass(frozen=True)
class RowSize:
    """What decides the memory of a row."""

    tokens: int
    """L; a shared prefix counts once."""
    supervised: int
    """S."""
    clips: int
    """G, the clips whose features the row reads."""


def row_size(samples: Sequence[Encoded], *, share: bool = True) -> RowSize:
    """Return the size of the row that `pack` makes of these samples."""
    groups = _groups(samples, share)
    saved = sum(common * (len(members) - 1) for members, common in groups)
    return RowSize(
        sum(sample.length for sample in samples) - saved, sum(len(sample.answer) for sample in samples), len(groups)
    )


def pack(samples: Sequence[Encoded], *, share: bool = True) -> Packed:
    """Put samples into one row, groups in the order of their first sample.

    Args:
        share: whether samples with the same soft tokens share the beginning of their prompts.
    """
    groups = _groups(samples, share)
    ids: list[int] = []
    kept: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    segments: list[RowSegment] = []
    own_tokens = [0] * len(samples)
    for members, common in groups:
        prefix = (len(ids), len(ids) + common) if common else None
        if prefix:
            segments.append(RowSegment(*prefix))
            ids += samples[members[0]].prompt[:common]
            own_tokens[members[0]] += common
        for number in members:
            sample, start = samples[number], len(ids)
            ids += [*sample.prompt[common:], *sample.answer]
            segments.append(RowSegment(start, len(ids), prefix))
            own_tokens[number] += len(ids) - start
            first = len(ids) - len(sample.answer) - 1  # the token before an answer's token predicts it
            kept += range(first, len(ids) - 1)
            targets += sample.answer
            owners += [number] * len(sample.answer)
    return Packed(
        torch.tensor(ids)[None],
        torch.tensor(kept),
        torch.tensor(targets),
        torch.tensor(owners),
        Layout(tuple(segments)),
        [members[0] for members, _ in groups],
        own_tokens,
    )


def _groups(samples: Sequence[Encoded], share: bool) -> list[tuple[list[int], int]]:
    """Return the numbers of the samples of each group, and how many tokens they share."""
    groups: dict[Hashable, list[int]] = {}
    for number, sample in enumerate(samples):
        groups.setdefault(sample.shared if share else number, []).append(number)
    return [
        (members, _common_prefix([samples[number].prompt for number in members]) if len(members) > 1 else 0)
        for members in groups.values()
    ]


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts have in common at the beginning, at most all but the shortest one's last."""
    limit = min(map(len, prompts)) - 1
    for place in range(limit):
        if any(prompt[place] != prompts[0][place] for prompt in prompts[1:]):
            return place
    return max(limit, 0)
