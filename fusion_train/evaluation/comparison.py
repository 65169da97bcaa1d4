"""Compare several sets of answers to one benchmark: score differences, and the best of several candidates.

`compare_answers` gives the difference of each set of answers to the first one, on the same clips: what noise, a hidden
modality or a removed part costs. Both scores are recomputed without each cluster of clips in turn, so a cluster that is
hard for both does not widen the interval. The interval is over clips: it describes these answers, not what a model
trained with another seed would answer. A sweep compares variants over seeds.

`select` gives the scores of the best answers to each set, corrected for the choice. Candidates may be checkpoints of a
run, settings, or runs. The best candidate is chosen for each set separately, as in tables that print the best epoch of
each set. The statistics are in `statistics.selection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from featurecache.errors import suggest
from fusion_train.errors import DataError
from fusion_train.evaluation.score_report import ASKED, asked_text, scale_of
from fusion_train.evaluation.scoring import BenchmarkMean, BenchmarkScores, SetScore
from fusion_train.report.page import Page
from fusion_train.report.tables import Table
from fusion_train.statistics.intervals import MIN_CLUSTERS, Interval, difference_interval, jackknife
from fusion_train.statistics.selection import best_of, bound, correct


@dataclass(frozen=True)
class ScoreDifference:
    """Difference of one set's main figure to the first answers."""

    value: float
    interval: Interval | None
    """None if there are too few clusters."""


def compare_answers(scores: Mapping[str, BenchmarkScores]) -> Table:
    """Return one row per set and per name: the score and, after the first name, the difference to it with its interval.

    Args:
        scores: name of a set of answers -> its scores; differences are to the first.

    Raises:
        DataError: fewer than two names, or no set that all of them have.
    """
    names = list(scores)
    if len(names) < 2:
        raise DataError("contrast", expected="two or more folders of answers", got=str(len(names)))
    first = scores[names[0]]
    common_sets = [name for name in first.sets if all(name in other.sets for other in scores.values())]
    if not common_sets:
        raise DataError("contrast", expected="a set that all of them have", got="none")
    table = Table(["set", "figure", "answers", "score", "difference", "from", "to", ASKED])
    for set_name in common_sets:
        base = first.sets[set_name]
        scale = scale_of(base.scored)
        first_score = base.scored.value * scale
        table.add([base.title, base.scored.main, names[0], first_score, None, None, None, asked_text(base)])
        for name in names[1:]:
            other = scores[name].sets[set_name]
            gap = difference(base, other, name)
            bounds = (gap.interval.low, gap.interval.high) if gap.interval else (None, None)
            numbers = (other.scored.value, gap.value, *bounds)
            scaled = (None if number is None else number * scale for number in numbers)
            table.add(["", "", name, *scaled, asked_text(other)])
    return table


def difference(base: SetScore, other: SetScore, name: str) -> ScoreDifference:
    """Return the other's main figure minus the base's.

    Raises:
        DataError: the two score different clips.
    """
    refuse_other_clips(base, other, name)
    resampled = [jackknife(score.scored.resample, base.clusters, score.scored.per_clip) for score in (other, base)]
    return ScoreDifference(
        resampled[0].value - resampled[1].value, difference_interval(resampled[0].minus(resampled[1]))
    )


def refuse_other_clips(base: SetScore, other: SetScore, name: str) -> None:
    """Raise DataError if `other`, the answers of `name`, scores other clips than `base`."""
    expected, got = base.scored.clip_ids, other.scored.clip_ids
    if expected != got:
        differing = sorted(set(expected) ^ set(got))
        raise DataError(
            f"{name}: {base.title}",
            expected="the same clips",
            got=f"{len(differing)} others",
            next_step=suggest(differing[0], expected).strip() or None,
            problems=differing,
        )


def comparison_page(table: Table, title: str) -> Page:
    """Return the page of a table from `compare_answers`."""
    page = Page(title)
    page.table(table)
    page.text(
        "Per cent; ratings, CCC, r and errors as they are. Differences to the first: 95 % intervals over clusters "
        f"of the same clips (jackknife, t); none below {MIN_CLUSTERS} clusters. They describe these answers, not "
        "another seed.",
        "note",
    )
    return page


def select(
    candidates: Mapping[str, BenchmarkScores], num_candidates: int, correlation: float | None
) -> BenchmarkScores:
    """Return the best answers to each set, with the score corrected for the choice among `num_candidates`.

    Args:
        candidates: name -> scores of its answers; only the best candidate if the others are not available.
        correlation: assumed between the errors of two candidates, if only the best is available; None assumes 0. Not
            used if all candidates are available.

    Raises:
        DataError: more candidates than `num_candidates`, some but not all of them, or candidates that answer other
            sets or clips.
    """
    if len(candidates) not in (1, num_candidates):
        raise DataError(
            "--selected-from",
            expected=f"{len(candidates)}, the number of candidates, or only the answers of the best one",
            got=str(num_candidates),
            next_step="Name the answers of all candidates, or those of the best.",
        )
    if correlation is not None and len(candidates) > 1:
        raise DataError(
            "--correlation",
            expected="only the answers of the best candidate",
            got=f"those of {len(candidates)}, which show the correlation themselves",
            next_step="Leave --correlation out.",
        )
    first = next(iter(candidates.values()))
    errors = {score.scored.main for score in first.sets.values() if score.scored.is_error}
    if errors:
        raise DataError(
            "--main",
            expected="a figure of which more is better, to choose the best candidate by",
            got=", ".join(sorted(errors)),
            next_step="Choose by CCC or r.",
        )
    for name, scores in candidates.items():
        if scores.sets.keys() != first.sets.keys():
            raise DataError(
                name,
                expected=f"answers to {', '.join(first.sets)}",
                got=", ".join(scores.sets),
                next_step="Every candidate answers the same sets.",
            )
    sets = {
        set_name: _best_candidate(
            {name: scores.sets[set_name] for name, scores in candidates.items()}, num_candidates, correlation or 0.0
        )
        for set_name in first.sets
    }
    means = {name: _mean_of_best(mean, first.benchmark.means[name], sets) for name, mean in first.means.items()}
    return replace(first, sets=sets, means=means, comparable=all(score.scored.comparable for score in sets.values()))


def _best_candidate(candidates: Mapping[str, SetScore], num_candidates: int, correlation: float) -> SetScore:
    names, scores = list(candidates), list(candidates.values())
    for name, score in candidates.items():
        refuse_other_clips(scores[0], score, name)
    clusters, scored = scores[0].clusters, [score.scored for score in scores]
    if len(scored) == num_candidates:
        selection = correct(scored, clusters)
    else:
        selection = bound(scored[0], clusters, num_candidates, correlation=correlation)
    best = best_of(scored)
    title = scores[best].title + (f" ({names[best]})" if len(names) > 1 else "")
    return replace(scores[best], title=title, selection=selection)


def _mean_of_best(mean: BenchmarkMean, members: Sequence[str], sets: Mapping[str, SetScore]) -> BenchmarkMean:
    if mean.missing:
        return mean
    value = sum(sets[member].scored.value for member in members) / len(members)
    selections = [sets[member].selection for member in members]
    corrected = [selection.corrected for selection in selections if selection and selection.corrected is not None]
    complete = len(corrected) == len(members)
    return BenchmarkMean(value, corrected=sum(corrected) / len(corrected) if complete else None)
