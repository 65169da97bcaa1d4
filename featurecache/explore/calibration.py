"""When are two clips the same? Measured on altered copies of the list's own clips, against the pairs that look like it.

A rule has two parts. The screen goes by averages of tokens, as the index keeps them: it only chooses which pairs are
looked at, so it is set where copies hardly fall through. The decision is agreement in time (`agreement`): the threshold
lies where false pairs that matter do not come. Such pairs are clips of the same text by other speakers, where the list
knows text and speaker, and the nearest clips otherwise: clips drawn at random are never mistaken for each other, and a
rate over them says nothing. The threshold is set on one half of the clips and measured on the other half.

Without a calibration there is a rule too: pairs that are more alike than pairs drawn at random, and agree in time like
copies usually do. Its pairs are shown and not offered for exclusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from featurecache.errors import StoreError
from featurecache.explore.index_files import CALIBRATION, IndexFiles, open_sealed_json, sealed_json

MAX_FALSE_POSITIVE_RATE = 1e-3
MARGIN = 0.5
"""Of the rate allowed; the threshold is set there, so that the other half of the clips keeps the rate too."""
SCREEN_QUANTILE, SCREEN_MARGIN = 0.01, 0.1
"""The screen lies so far below the similarity that all but this share of copies reach."""
LOW_TRUE_QUANTILE, SHARE_OF_WAY = 0.05, 0.7
"""Where copies and others are far apart, the threshold lies so far on the way from the others to this quantile of
copies. Beyond the middle, since takes of one speaker and text agree more than the pairs measured, which cannot be such:
they may be copies."""
SCREEN_DEVIATIONS, FAR_DEVIATIONS = 4.0, 6.0
"""Without a calibration: where pairs are worth a look, and where hardly a pair drawn at random comes."""
HIGHEST_SCREEN, FLOOR_SHARE = 0.9, 0.5
UNCALIBRATED_AGREEMENT, UNCALIBRATED_SLOPE = 0.8, 20.0
CLIPPED = 30.0
SURE = 3.0
"""None of n pairs: with 95 % confidence the rate is below 3 / n."""


@dataclass(frozen=True)
class Calibration:
    """A rule for pairs, and how well it did."""

    threshold: float
    """Similarity of averages from which on a pair is looked at."""
    floor: float
    """What the less alike of sound and picture must reach, by averages."""
    agreement: float
    """Agreement in time from which on two clips are taken for the same."""
    slope: float
    """Confidence is a logistic function of the agreement in time: slope · a + intercept."""
    intercept: float
    fingerprints: Mapping[str, str]
    weights: Mapping[str, float]
    num_clips: int = 0
    """Clips that were altered; 0: not calibrated."""
    num_false_pairs: int = 0
    """Pairs that matter, on the half that the threshold was not set on."""
    num_false_positives: int = 0
    """Of these, taken for the same."""
    same_text: int = 0
    """Of these, pairs of the same text by other speakers; the others are nearest clips."""
    recall: Mapping[str, float] = field(default_factory=dict)
    """By augmentation, on the same half."""

    @property
    def calibrated(self) -> bool:
        return self.num_clips > 0

    @property
    def false_positive_rate(self) -> float | None:
        """Share of the pairs that matter that is taken for the same; None without a calibration."""
        return self.num_false_positives / self.num_false_pairs if self.num_false_pairs else None

    def screens(self, similarity: np.ndarray, floor: np.ndarray) -> np.ndarray:
        """Whether pairs are worth a look, by the similarity of their averages and that of the less alike modality."""
        return (similarity >= self.threshold) & (floor >= self.floor)

    def confidence(self, agreement: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(self.slope * agreement + self.intercept, -CLIPPED, CLIPPED)))

    def describe(self) -> str:
        """Lines for a person."""
        rule = (
            f"the same: agreement in time of {self.agreement:.2f}, among pairs similar by {self.threshold:.2f} or more"
        )
        if not self.calibrated:
            return f"{rule}\nnot calibrated: only identical media or content is offered for exclusion; see --calibrate"
        recall = ", ".join(f"{name} {share:.0%}" for name, share in self.recall.items())
        kinds = [
            (self.same_text, "of the same text by other speakers"),
            (self.num_false_pairs - self.same_text, "nearest clips"),
        ]
        pairs = " and ".join(f"{count} pairs {name}" for count, name in kinds if count)
        bound = f" (rate below {SURE / self.num_false_pairs:.1%})" if not self.num_false_positives else ""
        return (
            f"{rule}\n{self.num_clips} clips altered; recall: {recall}\n"
            f"false positives: {self.num_false_positives} of {pairs}{bound}"
        )

    def to_bytes(self) -> bytes:
        """The file: JSON with a checksum of itself."""
        return sealed_json(asdict(self))


def load_calibration(
    files: IndexFiles, fingerprints: Mapping[str, str], weights: Mapping[str, float]
) -> Calibration | None:
    """Read a calibration of exactly these features and weights; None where there is none.

    Raises:
        CorruptStoreError: the file contradicts its checksum.
        StoreError: it is of another form.
    """
    subject = str(files.root / CALIBRATION)
    try:
        document = open_sealed_json(files.read(CALIBRATION), subject)
        kept = Calibration(**document)
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise StoreError(
            subject, expected="a calibration", got=str(error), next_step="Delete it and calibrate again."
        ) from error
    same = dict(kept.fingerprints) == dict(fingerprints) and dict(kept.weights) == dict(weights)
    return kept if same else None


@dataclass(frozen=True)
class Measured:
    """What a calibration is fitted to; (n,) arrays over pairs of each kind."""

    copy_similarity: np.ndarray
    copy_floor: np.ndarray
    copy_agreement: np.ndarray
    """Of each altered copy with its original; −1 where their media cannot be compared."""
    copy_of: np.ndarray
    """Number of the original."""
    ways: Sequence[str]
    """Name of each copy's augmentation."""
    false_similarity: np.ndarray
    false_floor: np.ndarray
    false_agreement: np.ndarray
    """Of the pairs that matter."""
    false_of: np.ndarray
    """Number of the clip that each such pair begins with."""
    same_text: np.ndarray
    """(n,) bool: the same text by another speaker."""


def fit_calibration(
    pairs: Measured,
    fingerprints: Mapping[str, str],
    weights: Mapping[str, float],
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE,
) -> Calibration:
    """Set the rule on every second clip and measure it on the others.

    Raises:
        StoreError: no copy, or no pair that matters, could be compared in time.
    """
    from sklearn.linear_model import LogisticRegression

    clips = np.unique(np.concatenate([pairs.copy_of, pairs.false_of]))
    set_on = clips[::2]
    copies, others = np.isin(pairs.copy_of, set_on), np.isin(pairs.false_of, set_on)
    true = pairs.copy_agreement[copies & (pairs.copy_agreement > -1)]
    false = pairs.false_agreement[others]
    if not len(true) or not len(false):
        raise StoreError(
            "--calibrate",
            expected="clips whose media can be compared in time",
            got=f"{len(true)} copies and {len(false)} other pairs that can",
            next_step="Check the media with `fcache plan`, or raise --calibration-clips.",
        )
    highest_false = _quantile_above(false, MARGIN * max_false_positive_rate)
    way = float(np.quantile(true, LOW_TRUE_QUANTILE)) - highest_false
    threshold = highest_false + SHARE_OF_WAY * max(0.0, way)
    fitted = LogisticRegression(class_weight="balanced", C=100.0).fit(
        np.concatenate([true, false])[:, None], np.repeat([1, 0], [len(true), len(false)])
    )
    rule = Calibration(
        float(np.quantile(pairs.copy_similarity[copies], SCREEN_QUANTILE)) - SCREEN_MARGIN,
        float(np.quantile(pairs.copy_floor[copies], SCREEN_QUANTILE)) - SCREEN_MARGIN,
        threshold,
        float(fitted.coef_[0, 0]),
        float(fitted.intercept_[0]),
        dict(fingerprints),
        dict(weights),
        num_clips=len(np.unique(pairs.copy_of)),
    )
    found = rule.screens(pairs.copy_similarity, pairs.copy_floor) & (pairs.copy_agreement >= threshold)
    mistaken = rule.screens(pairs.false_similarity, pairs.false_floor) & (pairs.false_agreement >= threshold)
    names = np.asarray(pairs.ways)
    recall = {
        way: float(found[~copies & (names == way)].mean())
        for way in dict.fromkeys(pairs.ways)
        if (~copies & (names == way)).any()
    }
    counts = {
        "num_false_pairs": int((~others).sum()),
        "num_false_positives": int(mistaken[~others].sum()),
        "same_text": int(pairs.same_text[~others].sum()),
    }
    return Calibration(**asdict(rule) | counts | {"recall": recall})


def uncalibrated(
    similarity: np.ndarray,
    floor: np.ndarray,
    fingerprints: Mapping[str, str],
    weights: Mapping[str, float],
    deviations: float,
) -> Calibration:
    """A cautious rule from (n,) similarities of pairs drawn at random: so many deviations above their median."""
    middle, deviation = _robust(similarity)
    lower, spread = _robust(floor)
    threshold = min(HIGHEST_SCREEN, middle + deviations * deviation)
    lowest = min(HIGHEST_SCREEN, lower + FLOOR_SHARE * deviations * spread)
    return Calibration(
        threshold,
        lowest,
        UNCALIBRATED_AGREEMENT,
        UNCALIBRATED_SLOPE,
        -UNCALIBRATED_SLOPE * UNCALIBRATED_AGREEMENT,
        dict(fingerprints),
        dict(weights),
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
