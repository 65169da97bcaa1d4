"""A report's table on the terminal."""

from __future__ import annotations

import rich.table

from fusion_train.report.tables import Table, shown

WIDEST_NAME = 24  # characters of a first column that stays on one line


def for_terminal(table: Table, title: str = "") -> rich.table.Table:
    """The same rows for `rich`; columns of numbers stand on the right."""
    drawn = rich.table.Table(title=title or table.caption or None, title_justify="left",
                             caption=table.note or None, caption_justify="left")  # fmt: skip
    for column, (name, right) in enumerate(zip(table.header, table.numeric(), strict=True)):
        widest = max((len(shown(row[column])) for row in table.rows), default=0)
        whole = column == 0 and widest <= WIDEST_NAME  # what a row is about is not cut
        drawn.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=whole)
    for number, row in enumerate(table.rows):
        drawn.add_row(*map(shown, row), style="bold" if number in table.emphasised else None)
    return drawn
