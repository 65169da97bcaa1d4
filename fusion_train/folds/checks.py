"""Folds that cannot be trained, found before the first one is; features are checked by `evaluation.linear_rows`."""

from __future__ import annotations

from collections import Counter

from fusion_train.errors import DataError
from fusion_train.folds.division import Division


def refuse_unlearnable(division: Division) -> list[str]:
    """Return notes about folds that lack a class.

    Raises:
        DataError: a label occurs in one fold only, so the run that holds this fold out cannot know it.
    """
    labels = division.labels
    classes = sorted(set(labels.values()))
    by_fold = {fold: Counter(labels[clip.id] for clip in division.held_out(fold)) for fold in division.folds}
    problems = [
        f"{label}: only in fold {fold}, {counts[label]} clips"
        for fold, counts in by_fold.items()
        for label in classes
        if counts[label] and not any(other[label] for name, other in by_fold.items() if name != fold)
    ]
    if problems:
        raise DataError(
            f"--folds {division.by}",
            expected="every label in at least two folds, since a fold is not trained on itself",
            got=f"{len(problems)} label{'s' if len(problems) > 1 else ''} in one fold",
            next_step="Leave these clips out with data.exclude, or choose other folds.",
            problems=problems,
        )
    notes = []
    for fold, counts in by_fold.items():
        missing = [label for label in classes if not counts[label]]
        if missing:
            notes.append(
                f"fold {fold} has no {', '.join(missing)}: its UAR is a mean over {len(classes) - len(missing)} of "
                f"{len(classes)} labels"
            )
    return notes
