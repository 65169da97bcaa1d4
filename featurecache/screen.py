"""A terminal for rich that shows text from outside as it is: `[laughs]` is text, not markup, and no code acts on it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from featurecache.outside_text import printable


class Screen(Console):
    """Every string that is printed, a table's cells and titles among them; what is coloured comes as a `Text`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **(settings | {"markup": False, "emoji": False}))
