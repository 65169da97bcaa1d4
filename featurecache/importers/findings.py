"""What an importer notices while it reads: rows left out and why, labels that it does not know, remarks.

A label is looked up in the vocabulary of its dataset, in lower case and without outer spaces; spellings that mean the
same in that dataset are one label.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from featurecache.errors import suggest

EMPTY_CELLS = ("", "nan", "none", "null", "unknown")
"""What stands in a table for no value."""


@dataclass(frozen=True)
class Vocabulary:
    """The labels of one task in one dataset."""

    task: str
    labels: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def find(self, cell: str) -> str | None:
        """Return the label that a cell names, or None."""
        word = cell.strip().lower()
        word = self.aliases.get(word, word)
        return word if word in self.labels else None


class Findings:
    """Collected over one import."""

    def __init__(self) -> None:
        self.left_out: dict[str, list[str]] = {}
        """Reason -> rows."""
        self.unknown: list[str] = []
        """Labels outside the vocabulary, each with its row."""
        self.notes: list[str] = []
        self.published: dict[str, int] = {}
        """Published counts that hold for what was asked, beside those of the importer."""
        self.published_labels: dict[str, Mapping[str, int]] = {}

    def leave_out(self, reason: str, row: str) -> None:
        """Note a row that gives no clip."""
        self.left_out.setdefault(reason, []).append(row)

    def note(self, text: str) -> None:
        """Note something for the summary, once."""
        if text not in self.notes:
            self.notes.append(text)

    def label(self, vocabulary: Vocabulary, cell: str, row: str) -> str | None:
        """Return the label of a cell; where there is none, note why the row is left out and return None."""
        if cell.strip().lower() in EMPTY_CELLS:
            self.leave_out(f"no {vocabulary.task}", row)
            return None
        found = vocabulary.find(cell)
        if found is None:
            known = [*vocabulary.labels, *vocabulary.aliases]
            self.unknown.append(f'{row}: {vocabulary.task} "{cell.strip()}".{suggest(cell.strip().lower(), known)}')
            self.leave_out(f"{vocabulary.task} outside the vocabulary", row)
        return found

    def labels(self, vocabulary: Vocabulary, cells: list[str], row: str) -> list[str] | None:
        """As `label` for a list, which may be empty; None where any of them is unknown."""
        found = [self.label(vocabulary, cell, row) for cell in cells]
        return None if None in found else [label for label in found if label is not None]


def score(cell: str) -> float | None:
    """Return a cell's number, or None where it has none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if number == number and abs(number) != float("inf") else None


def scores(**cells: str | None) -> dict[str, float]:
    """Labels of numbers: name -> number, for the cells that hold one."""
    found = {f"{name}_score": score(cell) for name, cell in cells.items() if cell is not None}
    return {name: number for name, number in found.items() if number is not None}


def texts(**cells: str | None) -> dict[str, str]:
    """Responses: name -> text, for the cells that hold one."""
    return {name: cell.strip() for name, cell in cells.items() if cell and cell.strip().lower() not in EMPTY_CELLS}


def list_of(cell: str) -> list[str]:
    """Words of a cell that holds a list: `['happy', 'at ease']`, `happy, at ease`, `[]`; in lower case, each once."""
    text = cell.strip()
    try:
        literal = ast.literal_eval(text) if text.startswith("[") else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        literal = None
    if not isinstance(literal, list):
        literal = re.split(r"['\",;]", text.removeprefix("[").removesuffix("]"))
    words = [str(word).strip().lower() for word in literal]
    return list(dict.fromkeys(word for word in words if word not in EMPTY_CELLS))
