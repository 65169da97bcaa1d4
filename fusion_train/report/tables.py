"""Tables with three output formats: HTML to read, CSV to compute with, LaTeX (booktabs) for a paper; and terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import rich.table

from featurecache.outside_text import html_text, one_line, printable

Cell = str | float | int | None
"""A float is shown with two decimals, or its first digit if it is smaller; None is shown as a dash."""
_LATEX = str.maketrans({
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "…": r"\ldots{}", "−": "$-$",
})  # fmt: skip


@dataclass
class Table:
    """Rows under a header; columns of numbers are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]] = ()
    caption: str = ""
    note: str = ""
    """A remark that is shown with the rows in every format except CSV."""
    warned: bool = False
    """Whether the note is a warning."""
    emphasised: frozenset[int] = frozenset()
    """Indices of the rows in bold."""

    def add(self, row: Sequence[Cell]) -> None:
        """Append a row."""
        self.rows = [*self.rows, row]

    def only(self, columns: Sequence[str]) -> Table:
        """Return the table with only these columns, in this order."""
        places = [list(self.header).index(name) for name in columns]
        return replace(self, header=columns, rows=[[row[place] for place in places] for row in self.rows])

    def html(self) -> str:
        """Return the table as HTML."""
        right = self.numeric()
        lines = ["<table>"] + ([f"<caption>{html_text(self.caption)}</caption>"] if self.caption else [])
        cells = (f"<th{_side(right[n])}>{html_text(name)}</th>" for n, name in enumerate(self.header))
        lines.append(f"<thead><tr>{''.join(cells)}</tr></thead><tbody>")
        for number, row in enumerate(self.rows):
            cells = (f"<td{_side(right[n])}>{html_text(shown(cell))}</td>" for n, cell in enumerate(row))
            bold = ' class="strong"' if number in self.emphasised else ""
            lines.append(f"<tr{bold}>{''.join(cells)}</tr>")
        kind = "warning" if self.warned else "note"
        note = f'<p class="{kind}">{html_text(self.note)}</p>' if self.note else ""
        return '<div class="scroll">' + "\n".join([*lines, "</tbody></table>"]) + f"</div>{note}"

    def csv(self) -> str:
        """Return CSV with numbers in full precision; None is an empty cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(printable, self.header))
        writer.writerows([printable(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows)
        return text.getvalue()

    def latex(self) -> str:
        """Return a tabular environment for booktabs."""
        columns = "".join("r" if right else "l" for right in self.numeric())
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines.append(" & ".join(_latex(name) for name in self.header) + r" \\")
        lines.append(r"\midrule")
        for number, row in enumerate(self.rows):
            texts = [_latex(shown(cell)) for cell in row]
            texts = [rf"\textbf{{{text}}}" for text in texts] if number in self.emphasised else texts
            lines.append(" & ".join(texts) + r" \\")
        if self.note:
            lines += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{l}}{{\footnotesize {_latex(self.note)}}} \\"]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def numeric(self) -> list[bool]:
        """Return, per column, whether it has numbers and no texts."""
        columns = [[row[n] for row in self.rows if n < len(row)] for n in range(len(self.header))]
        return [
            any(isinstance(c, int | float) for c in cells) and not any(isinstance(c, str) for c in cells)
            for cells in columns
        ]


def shown(cell: Cell) -> str:
    """Return the text of a cell."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.2f}" if abs(cell) >= 0.005 or not cell else f"{cell:.1g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _side(right: bool) -> str:
    return ' class="number"' if right else ""


def _latex(text: str) -> str:
    return one_line(text).translate(_LATEX)


MAX_UNWRAPPED = 24  # characters of a first column that stays on one line


def for_terminal(table: Table, title: str = "") -> rich.table.Table:
    """Return the table for `rich`; columns of numbers are aligned to the right."""
    rich_table = rich.table.Table(
        title=title or table.caption or None, title_justify="left", caption=table.note or None, caption_justify="left"
    )
    for column, (name, right) in enumerate(zip(table.header, table.numeric(), strict=True)):
        widest = max((len(shown(row[column])) for row in table.rows), default=0)
        no_wrap = column == 0 and widest <= MAX_UNWRAPPED  # the first column names the row
        rich_table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=no_wrap)
    for number, row in enumerate(table.rows):
        rich_table.add_row(*map(shown, row), style="bold" if number in table.emphasised else None)
    return rich_table
