"""Tables of reports: HTML to read, CSV to compute with, LaTeX (booktabs) for a paper, beside the text of a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import featurecache.tables
from featurecache.outside_text import html_text, one_line, printable
from featurecache.tables import shown

_LATEX = str.maketrans({
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "…": r"\ldots{}", "−": "$-$",
})  # fmt: skip


@dataclass
class Table(featurecache.tables.Table):
    """A table of a report, which a terminal shows too."""

    warned: bool = False
    """Whether the note, which stands in every format except CSV, is a warning."""

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


def _side(right: bool) -> str:
    return ' class="number"' if right else ""


def _latex(text: str) -> str:
    return one_line(text).translate(_LATEX)
