"""How samples lie in a row, token by token. That a row gives the losses of its samples alone is in test_packing.py."""

from __future__ import annotations

from fusion_train.data.packing import Encoded, pack
from fusion_train.models.packed_attention import RowSegment


def predicted(packed) -> list[tuple[int, int, int]]:
    """(token before, token to predict, sample) of every supervised place."""
    ids = packed.token_ids[0].tolist()
    return [
        (ids[place], target, owner)
        for place, target, owner in zip(
            packed.kept.tolist(), packed.targets.tolist(), packed.owners.tolist(), strict=True
        )
    ]


FIRST = Encoded([1, 5, 6, 7], [10, 2], "a")
OTHER = Encoded([1, 8], [11, 12, 2], "b")
SECOND = Encoded([1, 5, 6, 9], [13, 2], "a")


def test_questions_on_one_clip_share_what_their_prompts_begin_with():
    packed = pack([FIRST, OTHER, SECOND])
    assert packed.token_ids.tolist() == [[1, 5, 6, 7, 10, 2, 9, 13, 2, 1, 8, 11, 12, 2]]
    assert packed.layout.segments == (
        RowSegment(0, 3),
        RowSegment(3, 6, (0, 3)),
        RowSegment(6, 9, (0, 3)),
        RowSegment(9, 14),
    )
    assert predicted(packed) == [
        (7, 10, 0),
        (10, 2, 0),
        (9, 13, 2),
        (13, 2, 2),
        (8, 11, 1),
        (11, 12, 1),
        (12, 2, 1),
    ]
    assert (packed.first_of_group, packed.own_tokens) == ([0, 1], [6, 5, 3])
    assert packed.layout.position_ids().tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 5, 0, 1, 2, 3, 4]]


def test_without_sharing_every_sample_lies_alone():
    packed = pack([FIRST, OTHER, SECOND], share=False)
    assert packed.token_ids.tolist() == [[*FIRST.prompt, 10, 2, 1, 8, 11, 12, 2, *SECOND.prompt, 13, 2]]
    assert packed.layout.segments == (RowSegment(0, 6), RowSegment(6, 11), RowSegment(11, 17))
    assert (packed.first_of_group, packed.own_tokens) == ([0, 1, 2], [6, 5, 6])
    assert packed.own_tokens == [sample.length for sample in (FIRST, OTHER, SECOND)]


def test_the_last_token_of_a_prompt_is_never_shared():
    packed = pack([Encoded([1, 5, 6], [10], "a"), Encoded([1, 5, 6], [11], "a"), Encoded([1, 5], [12], "a")])
    assert packed.token_ids.tolist() == [[1, 5, 6, 10, 5, 6, 11, 5, 12]]
    assert packed.layout.segments[0] == RowSegment(0, 1)
    assert predicted(packed) == [(6, 10, 0), (6, 11, 1), (5, 12, 2)]
    assert packed.own_tokens == [4, 3, 2]


def test_sharing_ends_where_any_prompt_differs_upwards_or_downwards():
    for other in (4, 7):
        packed = pack([Encoded([1, 5, 6, 9], [10], "a"), FIRST, Encoded([1, other, 6, 9], [11], "a")])
        assert packed.layout.segments == (
            RowSegment(0, 1),
            RowSegment(1, 5, (0, 1)),
            RowSegment(5, 10, (0, 1)),
            RowSegment(10, 14, (0, 1)),
        )


def test_prompts_that_differ_at_once_share_nothing():
    packed = pack(
        [Encoded([1, 5], [10], "a"), Encoded([2, 5], [11], "a"), Encoded([3], [12], "c"), Encoded([3], [4], "c")]
    )
    assert packed.layout.segments == (RowSegment(0, 3), RowSegment(3, 6), RowSegment(6, 8), RowSegment(8, 10))
    assert packed.first_of_group == [0, 2]
