"""Scores need one prediction for every reference, and no other: clips that only one side has are an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurecache.errors import suggest
from fusion_train.errors import DataError


def paired_ids(references: Mapping[str, Any], predictions: Mapping[str, Any]) -> list[str]:
    """Clip ids, sorted: the order of everything that is computed a clip, so that no score depends on the order given.

    Raises:
        DataError: no references, or clips that only one side has.
    """
    missing, extra = sorted(references.keys() - predictions), sorted(predictions.keys() - references)
    if missing or extra or not references:
        raise DataError(
            "predictions",
            expected=f"one for each of {len(references)} clips",
            got=f"{len(missing)} missing, {len(extra)} for other clips" if references else "no references",
            next_step=suggest(extra[0], missing).strip() or None if extra else None,
            problems=[f"missing: {clip}" for clip in missing] + [f"unknown: {clip}" for clip in extra],
        )
    return sorted(references)
