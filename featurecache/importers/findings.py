"""Findings of one import: rows left out with the reason, unknown labels, notes; and readers of single cells.

An importer looks up a label in the vocabulary of its dataset, in lower case and without outer spaces; a vocabulary maps
other spellings to its labels.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from featurecache.errors import suggest

EMPTY_CELLS = ("", "nan", "none", "null", "unknown")
"""Contents of a cell, in lower case, that mean no value."""


@dataclass(frozen=True)
class Vocabulary:
    """The labels of one task in one dataset.

    `aliases` maps other spellings, in lower case, to labels.
    """

    task: str
    labels: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def find(self, cell: str) -> str | None:
        """Return the label that a cell names, None if it names none."""
        word = cell.strip().lower()
        word = self.aliases.get(word, word)
        return word if word in self.labels else None


class Findings:
    """Findings that an importer collects while it reads; the summary prints them."""

    def __init__(self, advance: Callable[[int, int], None] = lambda done, total: None) -> None:
        self.advance = advance
        """Receives (files read, all files) from an importer that reads many files."""
        self.left_out: dict[str, list[str]] = {}
        """Reason -> rows that give no clip."""
        self.unknown: list[str] = []
        """Labels outside the vocabulary, each with its row; without `--lenient` they end the import."""
        self.notes: list[str] = []
        self.published: dict[str, int] = {}
        """Published numbers of clips that hold only for these options; the importer has the general ones."""
        self.published_labels: dict[str, Mapping[str, int]] = {}
        """Published numbers of clips per label, likewise."""

    def leave_out(self, reason: str, row: str) -> None:
        """Record a row that gives no clip."""
        self.left_out.setdefault(reason, []).append(row)

    def note(self, text: str) -> None:
        """Record a note for the summary; a repeated note counts once."""
        if text not in self.notes:
            self.notes.append(text)

    def label(self, vocabulary: Vocabulary, cell: str, row: str) -> str | None:
        """Return the label of a cell; if it has none, record why the row is left out and return None."""
        if cell.strip().lower() in EMPTY_CELLS:
            self.leave_out(f"no {vocabulary.task}", row)
            return None
        label = vocabulary.find(cell)
        if label is None:
            spellings = [*vocabulary.labels, *vocabulary.aliases]
            near = suggest(cell.strip().lower(), spellings)
            self.unknown.append(f'{row}: {vocabulary.task} "{cell.strip()}".{near}')
            self.leave_out(f"{vocabulary.task} outside the vocabulary", row)
        return label

    def labels(self, vocabulary: Vocabulary, cells: list[str], row: str) -> list[str] | None:
        """Return the labels of several cells, perhaps none; None if any of them is unknown."""
        labels = [self.label(vocabulary, cell, row) for cell in cells]
        return None if None in labels else [label for label in labels if label is not None]


def score(cell: str) -> float | None:
    """Return the finite number in a cell, None if there is none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def scores(**cells: str | None) -> dict[str, float]:
    """Return the labels `<name>_score` -> number, for the cells that hold a number."""
    numbers = {f"{name}_score": score(cell) for name, cell in cells.items() if cell is not None}
    return {name: number for name, number in numbers.items() if number is not None}


def texts(**cells: str | None) -> dict[str, str]:
    """Return the responses name -> text, for the cells that hold a text."""
    return {name: cell.strip() for name, cell in cells.items() if cell and cell.strip().lower() not in EMPTY_CELLS}


def list_of(cell: str) -> list[str]:
    """Return the distinct words, in lower case, of a list: `['happy', 'at ease']`, `happy, at ease` or `[]`."""
    text = cell.strip()
    try:
        literal = ast.literal_eval(text) if text.startswith("[") else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        literal = None
    if not isinstance(literal, list):
        literal = re.split(r"['\",;]", text.removeprefix("[").removesuffix("]"))
    words = [str(word).strip().lower() for word in literal]
    return list(dict.fromkeys(word for word in words if word not in EMPTY_CELLS))
