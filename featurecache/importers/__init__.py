"""Importers: read the folder of a dataset into a clip list; `npy` reads .npy files of features into a store.

An importer is an `Importer` object, registered by one line of the entry-point group `featurecache.importers`; another
package can register its own. Its `read` function reads the tables of the dataset and yields clips with the paths of
their media. `importing` does the steps that all importers share: options, missing media, ids, writing, summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError, suggest

if TYPE_CHECKING:
    from featurecache.importers.findings import Findings

ENTRY_POINTS = "featurecache.importers"
SPLITS = ("train", "val", "test")
VALIDATION_NAMES = ("dev", "valid", "validation")
"""Names that datasets use for the split `val`."""


@dataclass(frozen=True)
class Option:
    """An option that one importer has in addition to the common ones."""

    help: str
    default: str = ""
    choices: tuple[str, ...] = ()
    """Allowed values; empty if any text is allowed."""


@dataclass(frozen=True)
class Request:
    """The arguments of an import: where the dataset is and which part of it to read."""

    source: Path
    splits: tuple[str, ...] = ()
    """Splits to read; empty for all."""
    fold: int = 0
    """Number of the cross-validation fold, from 1, for datasets that have folds."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Value per option of the importer, defaults included."""
    encoding: str = "utf-8-sig"
    """Encoding of tables and text files."""

    def wants(self, split: str) -> bool:
        """Return whether the request includes a split; `val` also matches the other names of that split."""
        names = {split, *(VALIDATION_NAMES if split == "val" else ())}
        return not self.splits or not names.isdisjoint(self.splits)


def plain_split(name: str) -> str:
    """Return the name of a split as clip lists spell it: lower case, and `val` for its other names."""
    name = name.strip().lower()
    return "val" if name in VALIDATION_NAMES else name


def named_split(words: Iterable[str]) -> str | None:
    """Return the first word that names a split (train, val, test), as clip lists spell it; None if no word does."""
    return next((split for word in words if (split := plain_split(word)) in SPLITS), None)


Read = Callable[[Request, "Findings"], Iterator[Clip]]


@dataclass(frozen=True)
class Importer:
    """Description of one dataset and the function that reads it."""

    name: str
    """Name on the command line."""
    title: str
    read: Read
    layout: tuple[str, ...]
    """Files that the importer reads, one per line."""
    licence: str
    """Holder of the rights and the address for access."""
    splits: tuple[str, ...] = ()
    """Splits of the dataset; empty if the tables name them."""
    folds: int = 0
    default_fold: int = 1
    published: Mapping[str, int] = field(default_factory=dict)
    """Number of clips that the authors publish, by split or by several splits joined with +; "" without splits."""
    published_labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Number of clips per label of one task, by split or by several splits joined with +."""
    options: Mapping[str, Option] = field(default_factory=dict)
    any_option: bool = False
    """Whether `read` accepts options of any name and checks them itself."""
    default_shares: str = ""
    """Shares of the splits that are made if neither the data nor the user names any (`70/15/15`); empty for none."""


def registered() -> list[str]:
    """Return the names of all installed importers, sorted."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)})


def find_importer(name: str) -> Importer:
    """Return an importer by name; case does not matter, and _ equals -.

    Raises:
        DatasetError: no importer has this name; the message suggests the nearest one.
    """
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name.lower().replace("_", "-")]
    if not points:
        names = registered()
        near = suggest(name, names).strip()
        raise DatasetError(
            f'importer "{name}"',
            expected="one of " + ", ".join(names),
            got="no such importer",
            next_step=f"{near} `fcache import csv` reads any table.".strip(),
        )
    importer: Importer = points[0].load()
    return importer
