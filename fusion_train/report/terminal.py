"""A report's table on the terminal."""

from __future__ import annotations

import rich.table

from fusion_train.report.tables import Table, shown


def for_terminal(table: Table, title: str = "") -> rich.table.Table:
    """The same rows for `rich`; columns of numbers stand on the right."""
    drawn = rich.table.Table(title=title or table.caption or None, title_justify="left")
    for name, right in zip(table.header, table.numeric(), strict=True):
        drawn.add_column(name, justify="right" if right else "left")
    for number, row in enumerate(table.rows):
        drawn.add_row(*map(shown, row), style="bold" if number in table.emphasised else None)
    return drawn
