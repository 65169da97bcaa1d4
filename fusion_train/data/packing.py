"""Concatenate samples into one row without padding; questions on one clip share what their prompts begin with.

The shared prefix is the longest run of token ids that the prompts have in common, soft places included, never reaching
the last token of a prompt: that one predicts the first token of the answer. Tokenisation is not touched, so a question
has the same ids, the same positions and sees the same tokens as alone: same loss, same gradients.
Shapes: L tokens of the row, S supervised tokens, G prefixes. Knows no store and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_train.models.packed_attention import Layout, Segment


@dataclass(frozen=True)
class Encoded:
    """One sample in token ids."""

    prompt: list[int]
    """SOFT_TOKEN at soft places."""
    answer: list[int]
    shared: Hashable
    """Equal for samples with the same soft tokens: the clip and what is seen of it."""

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
    """(S,) int64: what each must predict."""
    owners: Tensor
    """(S,) int64: number of the sample that each belongs to."""
    layout: Layout
    first_of_group: list[int]
    """Number of the first sample of each of the G groups, in the order of their soft tokens in the row."""
    own_tokens: list[int]
    """Tokens of each sample; those of a shared prefix count for its group's first sample."""


def pack(samples: Sequence[Encoded], *, share: bool = True) -> Packed:
    """Lay samples into one row: groups in the order of their first sample."""
    groups: dict[Hashable, list[int]] = {}
    for number, sample in enumerate(samples):
        groups.setdefault(sample.shared if share else number, []).append(number)
    ids: list[int] = []
    kept: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    segments: list[Segment] = []
    own_tokens = [0] * len(samples)
    for members in groups.values():
        common = _common_prefix([samples[number].prompt for number in members]) if len(members) > 1 else 0
        prefix = (len(ids), len(ids) + common) if common else None
        if prefix:
            segments.append(Segment(*prefix))
            ids += samples[members[0]].prompt[:common]
            own_tokens[members[0]] += common
        for number in members:
            sample, start = samples[number], len(ids)
            ids += [*sample.prompt[common:], *sample.answer]
            segments.append(Segment(start, len(ids), prefix))
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
        [members[0] for members in groups.values()],
        own_tokens,
    )


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, at most all but the last of the shortest."""
    limit = min(map(len, prompts)) - 1
    for place in range(limit):
        if any(prompt[place] != prompts[0][place] for prompt in prompts[1:]):
            return place
    return max(limit, 0)
