"""Emotion wheels: which group of feelings a word belongs to.

A folder holds `wheel1..5.xlsx` (columns level1, level2, level3; a blank cell carries the one above down),
`synonym.xlsx` (word_run1..8, synonym_run1..8) and `format.csv` (name, format = a comma list). All words are lower-cased
and stripped.

    F(surface) = the names whose row of `format.csv` lists it, the name itself included
    S(name)    = the wheel words beside which a name stands in any of the 8 runs, itself included
    C(word)    = the word's group on one wheel: its level 1, or its level 2; later rows overwrite earlier ones
    G(surface) = C(z), z the first in sorted order of all elements of S(b), b in F(surface), that C knows

The published tables may not be passed on; the small wheel in this folder is the project's own and serves without them,
its scores not comparable with published ones. Source: arXiv 2501.16566 (AffectGPT), `emotion_wheel` of its release.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml

from fusion_train.metrics.labels import label_list
from fusion_train.metrics.wheel_tables import Tree, read_formats, read_synonyms, read_wheel, refuse_missing_files

NUM_WHEELS = 5
Level = Literal[1, 2]


@dataclass(frozen=True)
class WheelSizes:
    """By which the published tables are known."""

    words: int
    synonyms: int
    """Wheel words and their synonyms."""
    surfaces: int
    level1: tuple[int, ...]
    """Groups of each wheel."""


PUBLISHED_SIZES = WheelSizes(words=253, synonyms=1255, surfaces=7386, level1=(6, 7, 6, 6, 6))


class EmotionWheels:
    """Word maps of one or more wheels."""

    def __init__(
        self, trees: Sequence[Tree], synonyms: Mapping[str, Iterable[str]], formats: Mapping[str, Iterable[str]]
    ) -> None:
        """Args: one tree a wheel; name -> the wheel words it stands beside; surface -> names that list it."""
        self._clusters = {
            1: [_clusters(tree, 1) for tree in trees],
            2: [_clusters(tree, 2) for tree in trees],
        }
        self._candidates = {
            surface: sorted({word for name in names for word in (name, *synonyms.get(name, ()))})
            for surface, names in formats.items()
        }
        words = {word for clusters in self._clusters[1] for word in clusters}
        self.sizes = WheelSizes(
            words=len(words),
            synonyms=len(words | set(synonyms)),
            surfaces=len(self._candidates),
            level1=tuple(len(tree) for tree in trees),
        )

    @classmethod
    def load(cls, folder: str | Path) -> EmotionWheels:
        """Read the tables of a folder.

        Raises:
            DataError: files or columns missing, a table that cannot be read, no words in it.
        """
        folder = Path(folder)
        names = [f"wheel{number}.xlsx" for number in range(1, NUM_WHEELS + 1)]
        refuse_missing_files(folder, [*names, "synonym.xlsx", "format.csv"])
        trees = [read_wheel(folder / name) for name in names]
        known = {word for tree in trees for word in _clusters(tree, 1)}
        return cls(trees, read_synonyms(folder / "synonym.xlsx", known), read_formats(folder / "format.csv"))

    @classmethod
    def small(cls) -> EmotionWheels:
        """The project's own wheel: six groups of common English words."""
        document = yaml.safe_load((files("fusion_train.metrics") / "small_wheel.yaml").read_text(encoding="utf-8"))
        tree = {group: {word: list(words) for word, words in kinds.items()} for group, kinds in document.items()}
        return cls([tree], {}, {word: [word] for word in _clusters(tree, 1)})

    def __len__(self) -> int:
        """Number of wheels."""
        return len(self._clusters[1])

    @property
    def comparable(self) -> bool:
        """Whether the tables have the sizes of the published ones, so that scores may stand beside published scores."""
        return self.sizes == PUBLISHED_SIZES

    @property
    def note(self) -> str:
        """What is to be said beside the scores."""
        sizes = self.sizes
        said = (
            f"{sizes.words} wheel words, {sizes.synonyms} with synonyms, {sizes.surfaces} surfaces, groups "
            + " ".join(map(str, sizes.level1))
        )
        return f"published word maps: {said}" if self.comparable else f"not comparable with published scores: {said}"

    def group(self, label: str, wheel: int = 0, level: Level = 1) -> str | None:
        """G of one label on wheel number `wheel`, from 0; None where the wheel does not know it."""
        clusters = self._clusters[level][wheel]
        for word in self._candidates.get(label.strip().lower(), ()):
            if word in clusters:
                return clusters[word]
        return None

    def groups(self, labels: str | Iterable[str], wheel: int = 0, level: Level = 1) -> frozenset[str]:
        """Groups of those of one or more labels that the wheel knows."""
        found = (self.group(label, wheel, level) for label in label_list(labels))
        return frozenset(group for group in found if group is not None)


def _clusters(tree: Tree, level: Level) -> dict[str, str]:
    """Word -> its group at one level; a level-1 word stands at level 2 for the first of its own."""
    clusters: dict[str, str] = {}
    for level1, kinds in tree.items():
        clusters[level1] = level1 if level == 1 else min(kinds, default=level1)
        for level2, words in kinds.items():
            clusters[level2] = level1 if level == 1 else level2
            clusters.update(dict.fromkeys(words, clusters[level2]))
    return clusters
