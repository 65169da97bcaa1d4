"""Importers: from a dataset's own folder to a clip list, or from files of another format into a store (`npy`).

An importer of a dataset is one module with one `Importer` object, registered by one line of the entry point group
`featurecache.importers`, so that a user's own package can add one. It reads tables and yields `Clip`s whose media paths
lie where the dataset has them; what is the same for all (missing media, ids, summary, writing) is done by `importing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError, suggest

if TYPE_CHECKING:
    from featurecache.importers.findings import Findings

ENTRY_POINTS = "featurecache.importers"
VALIDATION_NAMES = ("dev", "valid", "validation")
"""What some datasets call the split that is `val` here, so that one training can hold out the same of all."""


@dataclass(frozen=True)
class Option:
    """A choice that one importer offers beside those of all."""

    help: str
    default: str = ""
    choices: tuple[str, ...] = ()
    """Empty where any text will do."""


@dataclass(frozen=True)
class Request:
    """What the user asks an importer for."""

    source: Path
    splits: tuple[str, ...] = ()
    """Empty for all."""
    fold: int = 0
    """From 1, for datasets with cross-validation folds."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Every option of the importer, defaults filled in."""
    encoding: str = "utf-8-sig"
    """Of tables and text files."""

    def wants(self, split: str) -> bool:
        """Whether a split of that name is asked for; `val` also by the names that datasets have for it."""
        asked = {split, *(VALIDATION_NAMES if split == "val" else ())}
        return not self.splits or not asked.isdisjoint(self.splits)


def plain_split(name: str) -> str:
    """Return a split's name as clip lists have it."""
    name = name.strip().lower()
    return "val" if name in VALIDATION_NAMES else name


Read = Callable[[Request, "Findings"], Iterator[Clip]]


@dataclass(frozen=True)
class Importer:
    """One dataset: how it is read, and what is known of it."""

    name: str
    """What the command line calls it."""
    title: str
    read: Read
    layout: tuple[str, ...]
    """The files that are read, one a line."""
    licence: str
    """Who holds the rights, and where to ask."""
    splits: tuple[str, ...] = ()
    """Empty where the data names them."""
    folds: int = 0
    default_fold: int = 1
    published: Mapping[str, int] = field(default_factory=dict)
    """Clips by split, or by several joined by +, as its authors count them before anything is missing."""
    published_labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Clips by label, by split, or by several joined by +; where a count stands here, it is of one label task."""
    options: Mapping[str, Option] = field(default_factory=dict)
    any_option: bool = False
    """Whether `read` takes options of any name and checks them itself."""


def registered() -> list[str]:
    """Names of every installed importer, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)})


def find_importer(name: str) -> Importer:
    """Return an importer by name.

    Raises:
        DatasetError: no importer of this name; the near one is suggested.
    """
    found = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name.lower().replace("_", "-")]
    if not found:
        known = registered()
        near = suggest(name, known).strip()
        raise DatasetError(
            f'importer "{name}"',
            expected="one of " + ", ".join(known),
            got="no such importer",
            next_step=f"{near} `fcache import csv` reads any table.".strip(),
        )
    return found[0].load()
