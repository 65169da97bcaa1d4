"""Datasets drawn by weight: which of a mixture's are at hand, and what is left out.

The rule. A mixture is a list of datasets with weights. Where the clip list has none of them, the mixture is not used:
every clip comes once an epoch. Where it has some, those alone are drawn, by their weights among themselves; the
mixture's other datasets, and datasets of the list that the mixture does not name, are left out. `leave_out` is told
of all that with a notice; `refuse` makes a dataset that is not at hand an error. Knows no store and no task.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from featurecache.errors import suggest
from fusion_train.config import OnAbsent
from fusion_train.errors import DataError


def weigh_datasets(
    weights: Mapping[str, float] | None, datasets: Collection[str], on_absent: OnAbsent, say: Callable[[str], None]
) -> dict[str, float]:
    """Return dataset -> share of the draws among the `datasets` at hand; empty where no mixture is used.

    Raises:
        DataError: negative weights, none above 0, or a dataset without clips that may not be left out.
    """
    if not weights:
        return {}
    there = set(datasets)
    absent = [name for name in weights if name not in there]
    if absent and on_absent == "refuse":
        raise DataError(
            "data.mixture",
            expected="datasets of the clip list: " + ", ".join(sorted(there)),
            got=", ".join(absent),
            next_step=(suggest(absent[0], there) + " Set data.mixture_absent=leave_out to do without them.").strip(),
        )
    kept = {name: float(weight) for name, weight in weights.items() if name in there}
    if not kept:
        say("mixture: none of its datasets is in the clip list, so every clip comes once an epoch")
        return {}
    if min(kept.values()) < 0 or not sum(kept.values()) > 0:
        raise DataError("data.mixture", expected="weights from 0 that do not sum to 0", got=str(kept))
    total = sum(kept.values())
    if absent:
        lost = sum(float(weights[name]) for name in absent) / sum(map(float, weights.values()))
        say(f"mixture: without {', '.join(absent)} ({lost:.0%} of its weight), which the clip list has no clips of")
    unnamed = sorted(there - set(weights))
    if unnamed:
        say(
            f"mixture: clips of {', '.join(name or 'no dataset' for name in unnamed)} are never drawn; give them a "
            f"weight with --set data.mixture.NAME=100, or --set data.mixture=null"
        )
    return {name: weight / total for name, weight in kept.items() if weight}
