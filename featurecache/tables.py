"""Tables of text for a terminal or a log: columns under a rule, in any width, without a word that is cut.

Columns without any text are left out. A table that is too wide folds its texts, first at spaces, then behind separators
(`clips/train/a_1`), at last anywhere. If the columns do not fit even so, it continues below with further columns,
under its first column again. Headers and numbers stay whole. This module prints nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

from featurecache.outside_text import one_line

Cell = str | float | int | None
"""A float is shown with two decimals, or its first digit if it is smaller; None is shown as a dash."""
GAP = "  "
LONGEST_PIECE = 16
"""Characters of a word or part of an id that are kept together when a column is narrowed."""
LONGEST_NAME = 24
"""Characters of the first column, which names the row, that are kept together."""
_NUMBER = re.compile(r"[+−-]?[\d.,]+(e[+-]?\d+)?( ?(%|s|B|[kMGT]B|[KMGT]iB))?|–|")
_PIECES = re.compile(r"(?: × |[^\s/_\-,;:|&=])+[/_\-,;:|&=]*|[/_\-,;:|&=]+|\s+")


@dataclass
class Table:
    """Rows under a header; columns of numbers are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]] = ()
    caption: str = ""
    note: str = ""
    """A remark below the rows."""
    emphasised: frozenset[int] = frozenset()
    """Indices of the rows in bold."""

    def add(self, row: Sequence[Cell]) -> None:
        """Append a row."""
        self.rows = [*self.rows, row]

    def numeric(self) -> list[bool]:
        """Return, per column, whether it has numbers and no texts."""
        columns = [[row[n] for row in self.rows if n < len(row)] for n in range(len(self.header))]
        return [any(map(_is_number, cells)) and all(map(_is_number_or_empty, cells)) for cells in columns]

    def records(self) -> list[dict[str, Cell]]:
        """Return header -> cell of every row."""
        return [dict(zip(self.header, row, strict=True)) for row in self.rows]

    def lines(self, width: int) -> list[tuple[str, bool]]:
        """Lay the table out in at most `width` characters a line; returns (line, whether it is bold)."""
        texts = [[one_line(shown(cell)) for cell in row] for row in self.rows]
        columns = [
            _Column(one_line(name), [row[n] for row in texts], right, LONGEST_PIECE if n else LONGEST_NAME)
            for n, (name, right) in enumerate(zip(self.header, self.numeric(), strict=True))
            if n == 0 or not texts or any(row[n] for row in texts)
        ]
        lines = [(line, False) for line in _fold(one_line(self.caption), width) if line]
        for number, part in enumerate(_parts(columns, width)):
            lines += ([("", False)] if number else []) + self._part(part, width)
        return lines + [(line, False) for line in _fold(one_line(self.note), width) if line]

    def _part(self, columns: Sequence[_Column], width: int) -> list[tuple[str, bool]]:
        widths = _widths(columns, width)
        lines = [(line, True) for line in _row([column.header for column in columns], columns, widths)]
        lines.append((GAP.join("─" * column_width for column_width in widths), False))
        rows = [_row([column.texts[n] for column in columns], columns, widths) for n in range(len(self.rows))]
        folded = any(len(row) > 1 for row in rows)
        for number, row in enumerate(rows):
            lines += [(line, number in self.emphasised) for line in row]
            if folded and number < len(rows) - 1:
                lines.append(("", False))  # tells where the next row begins
        return lines


@dataclass(frozen=True)
class _Column:
    header: str
    texts: Sequence[str]
    right: bool
    kept_together: int

    @property
    def natural(self) -> int:
        """Width in which nothing folds."""
        return max(1, *map(cell_len, (self.header, *self.texts)))

    @property
    def least(self) -> int:
        """Width in which headers, numbers and short words stay whole."""
        header = max(map(cell_len, self.header.split()), default=1)
        if self.right:
            return max((header, *map(cell_len, self.texts)))
        if self.natural <= self.kept_together:
            return self.natural
        pieces = (cell_len(piece.rstrip()) for text in self.texts for piece in _PIECES.findall(text))
        return max(header, min(self.kept_together, max(pieces, default=1)))


def shown(cell: Cell) -> str:
    """Return the text of a cell."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.2f}" if abs(cell) >= 0.005 or not cell else f"{cell:.1g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) or (bool(cell) and cell != "–" and _is_number_or_empty(cell))


def _is_number_or_empty(cell: Cell) -> bool:
    return not isinstance(cell, str) or _NUMBER.fullmatch(cell) is not None


def _parts(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Divide the columns into groups that fit; every group begins with the first column."""
    parts = [list(columns[:1])]
    for column in columns[1:]:
        if sum(other.least + len(GAP) for other in parts[-1]) + column.least > width and len(parts[-1]) > 1:
            parts.append(list(columns[:1]))
        parts[-1].append(column)
    return parts


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """Return the widths of the columns: the widest are narrowed first, none below what it needs if that is possible."""
    widths = [min(column.natural, width) for column in columns]
    least = [column.least for column in columns]
    available = max(width - len(GAP) * (len(columns) - 1), len(columns))
    while sum(widths) > available:
        reducible = [n for n in range(len(columns)) if widths[n] > least[n]] or range(len(columns))
        widths[max(reducible, key=widths.__getitem__)] -= 1
    return widths


def _row(texts: Sequence[str], columns: Sequence[_Column], widths: Sequence[int]) -> list[str]:
    """Return the lines of one row."""
    cells = [_fold(text, width) for text, width in zip(texts, widths, strict=True)]
    lines = []
    for number in range(max(map(len, cells))):
        parts = []
        for cell, column, width in zip(cells, columns, widths, strict=True):
            text = cell[number] if number < len(cell) else ""
            padding = " " * (width - cell_len(text))
            parts.append(padding + text if column.right else text + padding)
        lines.append(GAP.join(parts).rstrip())
    return lines


def _fold(text: str, width: int) -> list[str]:
    """Fold a text into lines: at spaces, else behind separators, else anywhere."""
    lines, line = [], ""
    for piece in _PIECES.findall(text):
        if cell_len(line + piece.rstrip()) <= width:
            line += piece
            continue
        lines += [line.rstrip()] if line.strip() else []
        *whole, line = chop_cells(piece.lstrip(), width) or [""]
        lines += whole
    return [*lines, line.rstrip()]
