"""When are two clips the same? Measured on altered copies of the store's own clips.

Some clips are copied in every way of `augment`, encoded with the features' own encoders, and compared with all clips:
a copy with its original is a true pair, with any other clip a false one. On one half of the clips the threshold is set,
where the false-positive rate a pair is as asked for; on the other half it is measured, with the recall of each way.

Without a calibration the threshold lies where pairs drawn at random hardly reach: six deviations above their median.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from featurecache.errors import StoreError

MAX_FALSE_POSITIVE_RATE = 1e-3
MARGIN = 0.5
"""Of the rate asked for; the threshold is set there, so that the other half of the clips keeps the rate too."""
FLOOR_QUANTILE = 0.01
"""Of true pairs, whose less alike modality may lie below the floor."""
UNCALIBRATED_DEVIATIONS, UNCALIBRATED_FLOOR = 6.0, 3.0
CLIPPED = 30.0


@dataclass(frozen=True)
class Calibration:
    """A rule for pairs, and how well it did."""

    threshold: float
    """Similarity from which on two clips are taken for the same."""
    floor: float
    """What the less alike of sound and picture must reach."""
    slope: float
    """Confidence is a logistic function of the similarity: slope · s + intercept."""
    intercept: float
    fingerprints: Mapping[str, str]
    weights: Mapping[str, float]
    num_clips: int = 0
    """Clips that were altered; 0: not calibrated."""
    false_positive_rate: float | None = None
    """A pair of different clips, on the half that the threshold was not set on."""
    recall: Mapping[str, float] = field(default_factory=dict)
    """By augmentation, on the same half."""

    @property
    def calibrated(self) -> bool:
        return self.num_clips > 0

    def passes(self, similarity: np.ndarray, agreement: np.ndarray) -> np.ndarray:
        return (similarity >= self.threshold) & (agreement >= self.floor)

    def confidence(self, similarity: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(self.slope * similarity + self.intercept, -CLIPPED, CLIPPED)))

    def describe(self) -> str:
        """One line for a person."""
        rule = f"similar by {self.threshold:.3f} or more, sound and picture each by {self.floor:.3f}"
        if not self.calibrated:
            return f"{rule}; not calibrated: run with --calibrate to learn recall and false-positive rate"
        recall = ", ".join(f"{name} {share:.0%}" for name, share in self.recall.items())
        return (
            f"{rule}; on {self.num_clips} altered clips: false-positive rate a pair "
            f"{self.false_positive_rate:.2%}, recall: {recall}"
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def load_calibration(path: Path, fingerprints: Mapping[str, str], weights: Mapping[str, float]) -> Calibration | None:
    """Read a calibration of exactly these features and weights; None where there is none.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        found = Calibration(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StoreError(str(path), expected="a calibration", got=str(error), next_step="Delete it.") from error
    same = dict(found.fingerprints) == dict(fingerprints) and dict(found.weights) == dict(weights)
    return found if same else None


def fit_calibration(
    similarity: np.ndarray,
    agreement: np.ndarray,
    original: np.ndarray,
    ways: Sequence[str],
    fingerprints: Mapping[str, str],
    weights: Mapping[str, float],
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE,
) -> Calibration:
    """Set the rule and measure it.

    Args:
        similarity, agreement: (copies, clips) of every altered copy with every clip; −1 to leave a pair out.
        original: (copies,) column of each copy's original.
        ways: name of each copy's augmentation.
    """
    from sklearn.linear_model import LogisticRegression

    copies = np.arange(len(original))
    true = np.zeros(similarity.shape, bool)
    true[copies, original] = True
    clips = np.unique(original)
    setting = np.isin(original, clips[::2])
    false_pairs = ~true & (similarity > -1)
    threshold = _quantile_above(similarity[setting][false_pairs[setting]], MARGIN * max_false_positive_rate)
    floor = float(np.quantile(agreement[setting][true[setting]], FLOOR_QUANTILE))
    positive, negative = similarity[setting][true[setting]], similarity[setting][false_pairs[setting]]
    fitted = LogisticRegression(class_weight="balanced", C=100.0).fit(
        np.concatenate([positive, negative])[:, None], np.repeat([1, 0], [len(positive), len(negative)])
    )
    rule = Calibration(
        threshold, floor, float(fitted.coef_[0, 0]), float(fitted.intercept_[0]), dict(fingerprints), dict(weights)
    )
    passed = rule.passes(similarity, agreement)
    held = ~setting
    names = np.asarray(ways)
    recall = {
        way: float(passed[held & (names == way)][true[held & (names == way)]].mean()) for way in dict.fromkeys(ways)
    }
    measured = float(passed[held][false_pairs[held]].mean())
    return Calibration(**asdict(rule) | {"num_clips": len(clips), "false_positive_rate": measured, "recall": recall})


def uncalibrated(
    similarity: np.ndarray, agreement: np.ndarray, fingerprints: Mapping[str, str], weights: Mapping[str, float]
) -> Calibration:
    """A cautious rule from pairs drawn at random."""
    middle, deviation = _robust(similarity)
    lower, spread = _robust(agreement)
    threshold = min(0.99, middle + UNCALIBRATED_DEVIATIONS * deviation)
    slope = 4 / max(1e-6, 1 - threshold)
    return Calibration(
        threshold, lower + UNCALIBRATED_FLOOR * spread, slope, -slope * threshold, dict(fingerprints), dict(weights)
    )


def _robust(values: np.ndarray) -> tuple[float, float]:
    """Median, and the deviation that the median distance from it stands for in a normal distribution."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


def _quantile_above(values: np.ndarray, share: float) -> float:
    """The smallest threshold that at most `share` of `values` reach."""
    ordered = np.sort(values)[::-1]
    allowed = int(share * len(ordered))
    return float(np.nextafter(ordered[min(allowed, len(ordered) - 1)], np.inf))
