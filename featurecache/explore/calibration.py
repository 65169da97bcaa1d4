"""The rule for near duplicates: thresholds and confidence, fitted to altered copies of the list's own clips.

A rule has two parts. The screen compares token summaries, which the index stores; it only chooses the pairs whose media
are compared, so its thresholds are low enough for nearly all copies to pass. The decision is the agreement in time
(`agreement`); its threshold is above the agreement of hard negatives: pairs of different clips with the same text by
other speakers, or else nearest clips. Random pairs are never mistaken for copies, so a false positive rate over them
would say nothing. The threshold is set on one half of the clips and measured on the other half.

Without a calibration, a cautious rule applies: the summaries are more similar than those of random pairs, and the
agreement in time is that of typical copies. Its pairs are shown, but not excluded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from featurecache.errors import StoreError
from featurecache.explore.index_files import CALIBRATION, IndexFiles, open_sealed_json, sealed_json

MAX_FALSE_POSITIVE_RATE = 1e-3
MARGIN = 0.5
"""Share of the allowed rate at which the threshold is set, so that the other half of the clips keeps the rate too."""
SCREEN_QUANTILE, SCREEN_MARGIN = 0.01, 0.1
"""The screen lies SCREEN_MARGIN below this quantile of the similarity of copies."""
LOW_TRUE_QUANTILE, SHARE_OF_DISTANCE = 0.05, 0.7
"""If copies and negatives are far apart, the threshold lies at this share of the distance from the negatives to this
quantile of the copies. The share is above one half, because two takes of one speaker and text agree more than the
measured negatives do; such takes are not measured, because they may be copies."""
SCREEN_DEVIATIONS, FAR_DEVIATIONS = 4.0, 6.0
"""Without a calibration: deviations above the median of random pairs for the screen, and for a stricter screen."""
HIGHEST_SCREEN, FLOOR_SHARE = 0.9, 0.5
UNCALIBRATED_AGREEMENT, UNCALIBRATED_SLOPE = 0.8, 20.0
MAX_LOGIT = 30.0
RULE_OF_THREE = 3.0
"""With 0 of n false positives, the rate is below 3 / n with 95 % confidence."""


@dataclass(frozen=True)
class Calibration:
    """A rule for near duplicates, and its measured error rates. The fields are the keys of calibration.json."""

    threshold: float
    """Lowest similarity of summaries that passes the screen."""
    floor: float
    """Lowest similarity of the less similar modality that passes the screen."""
    agreement: float
    """Lowest agreement in time of duplicates."""
    slope: float
    """Confidence is the logistic function of slope · agreement + intercept."""
    intercept: float
    fingerprints: Mapping[str, str]
    weights: Mapping[str, float]
    num_clips: int = 0
    """Number of altered clips; 0: not calibrated."""
    num_false_pairs: int = 0
    """Hard negatives of the half that the threshold was not set on."""
    num_false_positives: int = 0
    """Of these, pairs that the rule takes for duplicates."""
    same_text: int = 0
    """Of these hard negatives, pairs with the same text by another speaker; the others are nearest clips."""
    recall: Mapping[str, float] = field(default_factory=dict)
    """By augmentation, on the half that the threshold was not set on."""

    @property
    def calibrated(self) -> bool:
        return self.num_clips > 0

    @property
    def false_positive_rate(self) -> float | None:
        """Share of the hard negatives that the rule takes for duplicates; None without a calibration."""
        return self.num_false_positives / self.num_false_pairs if self.num_false_pairs else None

    def screens(self, similarity: np.ndarray, floor: np.ndarray) -> np.ndarray:
        """Whether pairs pass the screen, by the similarity of summaries and that of the less similar modality."""
        return (similarity >= self.threshold) & (floor >= self.floor)

    def confidence(self, agreement: np.ndarray) -> np.ndarray:
        """Return the probability, 0 to 1, that pairs with this agreement in time are copies."""
        return 1 / (1 + np.exp(-np.clip(self.slope * agreement + self.intercept, -MAX_LOGIT, MAX_LOGIT)))

    def describe(self) -> str:
        """Return the rule and its error rates as lines of text."""
        rule = (
            f"the same: agreement in time of {self.agreement:.2f}, among pairs similar by {self.threshold:.2f} or more"
        )
        if not self.calibrated:
            return f"{rule}\nnot calibrated: only identical media or content is offered for exclusion; see --calibrate"
        recall = ", ".join(f"{name} {share:.0%}" for name, share in self.recall.items())
        negatives = [
            (self.same_text, "of the same text by other speakers"),
            (self.num_false_pairs - self.same_text, "nearest clips"),
        ]
        pairs = " and ".join(f"{count} pairs {name}" for count, name in negatives if count)
        bound = f" (rate below {RULE_OF_THREE / self.num_false_pairs:.1%})" if not self.num_false_positives else ""
        return (
            f"{rule}\n{self.num_clips} clips altered; recall: {recall}\n"
            f"false positives: {self.num_false_positives} of {pairs}{bound}"
        )

    def to_bytes(self) -> bytes:
        """Return the content of calibration.json."""
        return sealed_json(asdict(self))


def load_calibration(
    files: IndexFiles, fingerprints: Mapping[str, str], weights: Mapping[str, float]
) -> Calibration | None:
    """Read the calibration; None if there is none, or one of other features or weights.

    Raises:
        CorruptStoreError: the file contradicts its checksum.
        StoreError: the file has other fields than a calibration.
    """
    subject = str(files.root / CALIBRATION)
    try:
        document = open_sealed_json(files.read(CALIBRATION), subject)
        calibration = Calibration(**document)
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise StoreError(
            subject, expected="a calibration", got=str(error), next_step="Delete it and calibrate again."
        ) from error
    same_features = dict(calibration.fingerprints) == dict(fingerprints)
    return calibration if same_features and dict(calibration.weights) == dict(weights) else None


@dataclass(frozen=True)
class CalibrationPairs:
    """Measurements of true and false pairs: (n,) arrays over pairs of each kind."""

    copy_similarity: np.ndarray
    copy_floor: np.ndarray
    copy_agreement: np.ndarray
    """Agreement of each altered copy with its original; −1 if their media cannot be compared."""
    copy_of: np.ndarray
    """Row of the original."""
    augmentations: Sequence[str]
    """Augmentation of each copy."""
    false_similarity: np.ndarray
    false_floor: np.ndarray
    false_agreement: np.ndarray
    """Agreement of each hard negative."""
    false_of: np.ndarray
    """Row of the first clip of each hard negative."""
    same_text: np.ndarray
    """(n,) bool: whether a hard negative has the same text by another speaker."""


def fit_calibration(
    pairs: CalibrationPairs,
    fingerprints: Mapping[str, str],
    weights: Mapping[str, float],
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE,
) -> Calibration:
    """Fit the rule to every second clip and measure its error rates on the others.

    Raises:
        StoreError: no copy, or no hard negative, could be compared in time.
    """
    from sklearn.linear_model import LogisticRegression

    clips = np.unique(np.concatenate([pairs.copy_of, pairs.false_of]))
    fit_clips = clips[::2]
    fit_copies, fit_negatives = np.isin(pairs.copy_of, fit_clips), np.isin(pairs.false_of, fit_clips)
    true = pairs.copy_agreement[fit_copies & (pairs.copy_agreement > -1)]
    false = pairs.false_agreement[fit_negatives]
    if not len(true) or not len(false):
        raise StoreError(
            "--calibrate",
            expected="clips whose media can be compared in time",
            got=f"{len(true)} copies and {len(false)} other pairs that can",
            next_step="Check the media with `fcache plan`, or raise --calibration-clips.",
        )
    highest_false = _quantile_above(false, MARGIN * max_false_positive_rate)
    distance = float(np.quantile(true, LOW_TRUE_QUANTILE)) - highest_false
    threshold = highest_false + SHARE_OF_DISTANCE * max(0.0, distance)
    logistic = LogisticRegression(class_weight="balanced", C=100.0).fit(
        np.concatenate([true, false])[:, None], np.repeat([1, 0], [len(true), len(false)])
    )
    rule = Calibration(
        float(np.quantile(pairs.copy_similarity[fit_copies], SCREEN_QUANTILE)) - SCREEN_MARGIN,
        float(np.quantile(pairs.copy_floor[fit_copies], SCREEN_QUANTILE)) - SCREEN_MARGIN,
        threshold,
        float(logistic.coef_[0, 0]),
        float(logistic.intercept_[0]),
        dict(fingerprints),
        dict(weights),
        num_clips=len(np.unique(pairs.copy_of)),
    )
    detected = rule.screens(pairs.copy_similarity, pairs.copy_floor) & (pairs.copy_agreement >= threshold)
    mistaken = rule.screens(pairs.false_similarity, pairs.false_floor) & (pairs.false_agreement >= threshold)
    names = np.asarray(pairs.augmentations)
    recall = {
        name: float(detected[~fit_copies & (names == name)].mean())
        for name in dict.fromkeys(pairs.augmentations)
        if (~fit_copies & (names == name)).any()
    }
    counts = {
        "num_false_pairs": int((~fit_negatives).sum()),
        "num_false_positives": int(mistaken[~fit_negatives].sum()),
        "same_text": int(pairs.same_text[~fit_negatives].sum()),
    }
    return Calibration(**asdict(rule) | counts | {"recall": recall})


def uncalibrated(
    similarity: np.ndarray,
    floor: np.ndarray,
    fingerprints: Mapping[str, str],
    weights: Mapping[str, float],
    deviations: float,
) -> Calibration:
    """Return a cautious rule from (n,) similarities of random pairs: `deviations` deviations above their median."""
    median, deviation = _median_and_deviation(similarity)
    floor_median, floor_deviation = _median_and_deviation(floor)
    threshold = min(HIGHEST_SCREEN, median + deviations * deviation)
    lowest_floor = min(HIGHEST_SCREEN, floor_median + FLOOR_SHARE * deviations * floor_deviation)
    return Calibration(
        threshold,
        lowest_floor,
        UNCALIBRATED_AGREEMENT,
        UNCALIBRATED_SLOPE,
        -UNCALIBRATED_SLOPE * UNCALIBRATED_AGREEMENT,
        dict(fingerprints),
        dict(weights),
    )


def _median_and_deviation(values: np.ndarray) -> tuple[float, float]:
    """Return the median, and the standard deviation estimated from the median absolute deviation (normal values)."""
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(values - median)))


def _quantile_above(values: np.ndarray, share: float) -> float:
    """Return the smallest threshold that at most `share` of `values` reach."""
    ordered = np.sort(values)[::-1]
    allowed = int(share * len(ordered))
    return float(np.nextafter(ordered[min(allowed, len(ordered) - 1)], np.inf))
