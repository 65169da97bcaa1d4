"""Which samples of a step go through the model together, and on which process.

The samples of a step are the same, in the same order, for any number of processes. With a fixed micro-batch they are
dealt out in runs of that many. With `auto` the questions on one clip stay together, units are dealt out one by one,
and each process packs its own into rows under a token budget; all processes make the same number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def fixed(batch_size: int, size: int, num_processes: int, process: int) -> list[list[int]]:
    """Numbers of the samples of every micro-batch of one process."""
    return [list(range(start, start + size)) for start in range(process * size, batch_size, num_processes * size)]


def under_budget(
    lengths: Sequence[int], together: int, budget: int, num_processes: int, process: int
) -> list[list[int]]:
    """The same under a token budget.

    Args:
        lengths: tokens of every sample of the step.
        together: samples in a row that are on one clip.
        budget: tokens of a row; a unit that is longer has a row of its own.
    """
    units = [list(range(start, start + together)) for start in range(0, len(lengths), together)]
    weight: Callable[[list[int]], int] = lambda unit: sum(lengths[number] for number in unit)  # noqa: E731
    dealt = [_greedy(units[rank::num_processes], weight, budget) for rank in range(num_processes)]
    count = max(map(len, dealt))
    rows = dealt[process]
    while len(rows) < count:
        rows = _split_heaviest(rows, weight)
    return [[number for unit in row for number in unit] for row in rows]


def _greedy(units: list[list[int]], weight: Callable[[list[int]], int], budget: int) -> list[list[list[int]]]:
    rows: list[list[list[int]]] = []
    filled = budget
    for unit in units:
        if not rows or filled + weight(unit) > budget:
            rows.append([])
            filled = 0
        rows[-1].append(unit)
        filled += weight(unit)
    return rows


def _split_heaviest(rows: list[list[list[int]]], weight: Callable[[list[int]], int]) -> list[list[list[int]]]:
    chosen = max((k for k, row in enumerate(rows) if len(row) > 1), key=lambda k: sum(map(weight, rows[k])))
    row = rows[chosen]
    half = len(row) // 2
    return [*rows[:chosen], row[:half], row[half:], *rows[chosen + 1 :]]
