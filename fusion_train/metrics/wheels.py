"""Emotion wheels: map an emotion word to its group on each wheel.

A folder holds `wheel1..5.xlsx` (columns level1, level2, level3; a blank cell repeats the cell above), `synonym.xlsx`
(word_run1..8, synonym_run1..8) and `format.csv` (name, format = a list with commas). All words are stripped and in
lower case. A surface is a word as a model writes it.

    F(surface) = the names whose row of `format.csv` lists the surface, and the surface itself if it is a name
    S(name)    = the wheel words next to which the name stands in any of the 8 runs, and the name itself
    C(word)    = the group of a word on one wheel: its level 1 or its level 2; later rows overwrite earlier rows
    G(surface) = C(z), where z is the first word, in sorted order of all S(b) for b in F(surface), that C contains

The published tables may not be redistributed. The small wheel in this folder belongs to this project and works without
them, but its scores are not comparable with published scores. Source: arXiv 2501.16566 (AffectGPT), `emotion_wheel` of
its release.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from featurecache.errors import suggest
from featurecache.files.spreadsheet import first_sheet
from featurecache.files.table_rows import read_csv
from fusion_train.errors import DataError
from fusion_train.metrics.labels import label_list, parse_list

NUM_RUNS = 8
LEVELS = ("level1", "level2", "level3")

Tree = dict[str, dict[str, list[str]]]
"""Level 1 -> level 2 -> words of level 3, in the order of the table."""


def refuse_missing_files(folder: Path, names: Sequence[str]) -> None:
    """Raise DataError if some of the files do not exist."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            str(folder),
            expected="a folder with " + ", ".join(names),
            got="no such folder" if not folder.is_dir() else "no " + ", ".join(missing),
            next_step="Name the folder of the emotion wheels with --wheels, or leave it out for the small wheel.",
        )


def read_wheel(path: Path) -> Tree:
    """Read one wheel.

    Raises:
        DataError: a column is missing, the first row has no level1, or there are no rows.
    """
    tree: Tree = {}
    current = dict.fromkeys(LEVELS, "")
    for row in _rows(path, LEVELS):
        current |= {level: row[level] for level in LEVELS if row[level]}
        if not current["level1"]:
            raise DataError(str(path), expected="a level1 in the first row", got="a blank")
        kinds = tree.setdefault(current["level1"], {})
        if current["level2"]:
            words = kinds.setdefault(current["level2"], [])
            words += [current["level3"]] if current["level3"] else []
    if not tree:
        raise DataError(str(path), expected="rows of level1, level2, level3", got="only a header")
    return tree


def read_synonyms(path: Path, wheel_words: set[str]) -> dict[str, set[str]]:
    """Return S: name -> the wheel words next to which it stands in any run, itself included.

    Raises:
        DataError: a word is on no wheel, or a column is missing.
    """
    runs = [(f"word_run{number}", f"synonym_run{number}") for number in range(1, NUM_RUNS + 1)]
    synonyms: dict[str, set[str]] = {}
    unknown: set[str] = set()
    for row in _rows(path, [column for run in runs for column in run]):
        for word_column, synonym_column in runs:
            word = row[word_column]
            if not word:
                continue
            if word not in wheel_words:
                unknown.add(word)
            synonyms.setdefault(word, set()).add(word)
            for synonym in parse_list(row[synonym_column]):
                synonyms.setdefault(synonym, set()).add(word)
    if unknown:
        first = min(unknown)
        raise DataError(
            str(path),
            expected="words of the wheels in word_run1..8",
            got=f"{len(unknown)} others",
            next_step=suggest(first, wheel_words).strip() or None,
            problems=sorted(unknown),
        )
    return synonyms


def read_formats(path: Path) -> dict[str, set[str]]:
    """Return F: surface -> the names whose row lists it; each name is also a surface of itself.

    Raises:
        DataError: a column is missing, a row is torn, or there are no rows.
    """
    formats: dict[str, set[str]] = {}
    for line, row in read_csv(path):
        if isinstance(row, str):
            raise DataError(str(path), expected="rows of name, format", got=f"line {line}: {row}")
        _refuse_missing_columns(path, ("name", "format"), list(row))
        name = _word(row["name"])
        if name:
            for surface in [name, *parse_list(_word(row["format"]))]:
                formats.setdefault(surface, set()).add(name)
    if not formats:
        raise DataError(str(path), expected="rows of name, format", got="only a header")
    return formats


def _rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Yield the rows below the header of the first sheet, as words in lower case; "" for a blank cell."""
    rows = first_sheet(path, extra="scores")
    header = [_word(cell) for cell in next(rows, ())]
    _refuse_missing_columns(path, columns, header)
    for row in rows:
        cells = dict(zip(header, map(_word, row), strict=False))
        yield {column: cells.get(column, "") for column in columns}


def _refuse_missing_columns(path: Path, columns: Sequence[str], header: Sequence[str]) -> None:
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(
            str(path),
            expected="the columns " + ", ".join(columns),
            got=", ".join(name for name in header if name) or "none",
            next_step="Missing: " + ", ".join(missing) + ".",
        )


def _word(cell: Any) -> str:
    return "" if cell is None else str(cell).strip().lower()


NUM_WHEELS = 5
Level = Literal[1, 2]


@dataclass(frozen=True)
class WheelSizes:
    """Sizes of the tables, by which the published ones are recognised."""

    words: int
    """Words on the wheels."""
    synonyms: int
    """Wheel words and their synonyms."""
    surfaces: int
    """Spellings in `format.csv`."""
    level1: tuple[int, ...]
    """Groups of each wheel."""


PUBLISHED_SIZES = WheelSizes(words=253, synonyms=1255, surfaces=7386, level1=(6, 7, 6, 6, 6))


class EmotionWheels:
    """Maps from words to groups, for one or more wheels."""

    def __init__(
        self, trees: Sequence[Tree], synonyms: Mapping[str, Iterable[str]], formats: Mapping[str, Iterable[str]]
    ) -> None:
        """Args: one tree per wheel; S, name -> wheel words; F, surface -> names."""
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
            DataError: a file or column is missing, or a table cannot be read or holds no words.
        """
        folder = Path(folder)
        names = [f"wheel{number}.xlsx" for number in range(1, NUM_WHEELS + 1)]
        refuse_missing_files(folder, [*names, "synonym.xlsx", "format.csv"])
        trees = [read_wheel(folder / name) for name in names]
        known = {word for tree in trees for word in _clusters(tree, 1)}
        return cls(trees, read_synonyms(folder / "synonym.xlsx", known), read_formats(folder / "format.csv"))

    @classmethod
    def small(cls) -> EmotionWheels:
        """Return the wheel of this project: six groups of common English words."""
        document = yaml.safe_load((files("fusion_train.metrics") / "small_wheel.yaml").read_text(encoding="utf-8"))
        tree = {group: {word: list(words) for word, words in kinds.items()} for group, kinds in document.items()}
        return cls([tree], {}, {word: [word] for word in _clusters(tree, 1)})

    def __len__(self) -> int:
        """Number of wheels."""
        return len(self._clusters[1])

    @property
    def comparable(self) -> bool:
        """Whether the tables have the published sizes; only then are scores comparable with published scores."""
        return self.sizes == PUBLISHED_SIZES

    @property
    def note(self) -> str:
        """Sizes of the word maps, to print with the scores."""
        sizes = self.sizes
        size_text = (
            f"{sizes.words} wheel words, {sizes.synonyms} with synonyms, {sizes.surfaces} surfaces, groups "
            + " ".join(map(str, sizes.level1))
        )
        return (
            f"published word maps: {size_text}"
            if self.comparable
            else f"not comparable with published scores: {size_text}"
        )

    def group(self, label: str, wheel: int = 0, level: Level = 1) -> str | None:
        """Return G of one label on the wheel with index `wheel`; None if that wheel lacks the label."""
        clusters = self._clusters[level][wheel]
        for word in self._candidates.get(label.strip().lower(), ()):
            if word in clusters:
                return clusters[word]
        return None

    def groups(self, labels: str | Iterable[str], wheel: int = 0, level: Level = 1) -> frozenset[str]:
        """Return the groups of one or more labels; labels that the wheel lacks are skipped."""
        groups = (self.group(label, wheel, level) for label in label_list(labels))
        return frozenset(group for group in groups if group is not None)


def _clusters(tree: Tree, level: Level) -> dict[str, str]:
    """Return C: word -> group at one level; at level 2, a level-1 word belongs to the first of its level-2 words."""
    clusters: dict[str, str] = {}
    for level1, kinds in tree.items():
        clusters[level1] = level1 if level == 1 else min(kinds, default=level1)
        for level2, words in kinds.items():
            clusters[level2] = level1 if level == 1 else level2
            clusters.update(dict.fromkeys(words, clusters[level2]))
    return clusters
