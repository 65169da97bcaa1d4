"""The scores of a bench where the answers to each set are the best of several: corrected for that choice.

Candidates may be checkpoints of a run, settings, or runs; which is best is looked up for each set by itself, as tables
do that print the best epoch of each set. The statistics are in `selection`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fusion_train.errors import DataError
from fusion_train.evaluation.contrast import refuse_other_clips
from fusion_train.evaluation.scoring import BenchmarkScores, Mean, SetScore
from fusion_train.statistics.selection import best_of, bound, correct


def select(
    candidates: Mapping[str, BenchmarkScores], num_candidates: int, correlation: float | None
) -> BenchmarkScores:
    """The best answers to each set, with their score corrected for the choice among `num_candidates`.

    Args:
        candidates: name -> scores of its answers; one where the others are not known.
        correlation: of the errors of candidates that are not known; None takes 0, where all are known nothing.

    Raises:
        DataError: more candidates than `num_candidates`, some but not all of them, or candidates that answer other
            sets or clips.
    """
    if len(candidates) not in (1, num_candidates):
        raise DataError(
            "--selected-from",
            expected=f"{len(candidates)}, the number of candidates, or the best one's answers alone",
            got=str(num_candidates),
            next_step="Name the answers of all candidates, or those of the best.",
        )
    if correlation is not None and len(candidates) > 1:
        raise DataError(
            "--correlation",
            expected="the answers of the best candidate alone",
            got=f"those of {len(candidates)}, from which it is known",
            next_step="Leave --correlation out.",
        )
    first = next(iter(candidates.values()))
    for name, each in candidates.items():
        if each.sets.keys() != first.sets.keys():
            raise DataError(
                name,
                expected=f"answers to {', '.join(first.sets)}",
                got=", ".join(each.sets),
                next_step="Every candidate answers the same sets.",
            )
    sets = {
        name: _best(
            {candidate: each.sets[name] for candidate, each in candidates.items()}, num_candidates, correlation or 0.0
        )
        for name in first.sets
    }
    means = {name: _mean(mean, first.benchmark.means[name], sets) for name, mean in first.means.items()}
    return replace(first, sets=sets, means=means, comparable=all(each.scored.comparable for each in sets.values()))


def _best(candidates: Mapping[str, SetScore], num_candidates: int, correlation: float) -> SetScore:
    names, scores = list(candidates), list(candidates.values())
    for name, each in candidates.items():
        refuse_other_clips(scores[0], each, name)
    clusters, scored = scores[0].clusters, [each.scored for each in scores]
    if len(scored) == num_candidates:
        selection = correct(scored, clusters)
    else:
        selection = bound(scored[0], clusters, num_candidates, correlation=correlation)
    place = best_of(scored)
    title = scores[place].title + (f" ({names[place]})" if len(names) > 1 else "")
    return replace(scores[place], title=title, selection=selection)


def _mean(mean: Mean, members: tuple[str, ...] | list[str], sets: Mapping[str, SetScore]) -> Mean:
    if mean.missing:
        return mean
    value = sum(sets[member].scored.value for member in members) / len(members)
    corrected = [sets[member].selection.corrected for member in members]  # type: ignore[union-attr]
    known = [each for each in corrected if each is not None]
    return Mean(value, corrected=sum(known) / len(known) if len(known) == len(corrected) else None)
