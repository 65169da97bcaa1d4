"""Several sets of answers to one bench side by side: what noise, a hidden modality or a part taken out costs.

Differences are to the first, on the same clips, with an interval of the difference: both scores are formed without each
cluster in turn, so that what is hard for both does not widen it. The interval is over clips: it is about these answers,
not about what a model trained with another seed would answer; for that, a sweep compares variants over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featurecache.errors import suggest
from fusion_train.errors import DataError
from fusion_train.evaluation.score_report import ASKED, asked_text, scale_of
from fusion_train.evaluation.scoring import BenchmarkScores, SetScore
from fusion_train.report.page import Page
from fusion_train.report.tables import Table
from fusion_train.statistics.intervals import MIN_CLUSTERS, Interval, difference_interval, jackknife


@dataclass(frozen=True)
class Difference:
    """Of one set's main figure, to the first answers."""

    value: float
    interval: Interval | None
    """None where there are too few clusters."""


def contrast(scores: Mapping[str, BenchmarkScores]) -> Table:
    """One row for each set and answers: the score and, after the first, the difference to it with its interval.

    Raises:
        DataError: fewer than two, or no set that all of them have.
    """
    names = list(scores)
    if len(names) < 2:
        raise DataError("contrast", expected="two or more folders of answers", got=str(len(names)))
    first = scores[names[0]]
    common = [each for each in first.sets if all(each in other.sets for other in scores.values())]
    if not common:
        raise DataError("contrast", expected="a set that all of them have", got="none")
    table = Table(["set", "figure", "answers", "score", "difference", "from", "to", ASKED])
    for each in common:
        base = first.sets[each]
        scale = scale_of(base.scored)
        first_score = base.scored.value * scale
        table.rows.append([base.title, base.scored.main, names[0], first_score, None, None, None, asked_text(base)])
        for name in names[1:]:
            other = scores[name].sets[each]
            found = difference(base, other, name)
            bounds = (found.interval.low, found.interval.high) if found.interval else (None, None)
            numbers = (other.scored.value, found.value, *bounds)
            shown = (None if number is None else number * scale for number in numbers)
            table.rows.append(["", "", name, *shown, asked_text(other)])
    return table


def difference(base: SetScore, other: SetScore, name: str) -> Difference:
    """The other's main figure less the base's.

    Raises:
        DataError: they answer other clips.
    """
    refuse_other_clips(base, other, name)
    scores = [jackknife(each.scored.resample, base.clusters, each.scored.per_clip) for each in (other, base)]
    return Difference(scores[0].value - scores[1].value, difference_interval(scores[0].minus(scores[1])))


def refuse_other_clips(base: SetScore, other: SetScore, name: str) -> None:
    """Raise DataError where `other`, the answers of `name`, scores other clips than `base`."""
    expected, got = base.scored.clip_ids, other.scored.clip_ids
    if expected != got:
        odd = sorted(set(expected) ^ set(got))
        raise DataError(
            f"{name}: {base.title}",
            expected="the same clips",
            got=f"{len(odd)} others",
            next_step=suggest(odd[0], expected).strip() or None,
            problems=odd,
        )


def contrast_page(table: Table, title: str) -> Page:
    page = Page(title)
    page.table(table)
    page.text(
        "Per cent, except ratings. Differences to the first: 95 % intervals over clusters of the same clips "
        f"(jackknife, t); none below {MIN_CLUSTERS} clusters. They speak of these answers, not of another seed.",
        "note",
    )
    return page
