"""A self-contained HTML page of headings, texts, tables, drawings and cards of clips; no scripts, nothing loaded.

Drawings are SVG from matplotlib, without dates or random ids, so that equal content gives equal bytes. The style covers
print, narrow windows and dark mode.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from featurecache.files.publish import replace_bytes
from featurecache.outside_text import html_text
from fusion_train.report.tables import Table

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: GrayText; padding-bottom: .2rem; }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { border-bottom-width: 2px; } .number { text-align: right; white-space: nowrap; }
td:first-child { white-space: nowrap; }
.strong td { font-weight: 600; } .note { color: GrayText; margin: .3rem 0; } .scroll { overflow-x: auto; }
.warning { border-left: 4px solid #c80; padding: .3rem .8rem; background: var(--soft); }
.side { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
figure { margin: .6rem 0; } figure svg { background: #fff; max-width: 100%; height: auto; }
figcaption { color: GrayText; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1.2rem 1rem; }
.card { margin: 0; min-width: 0; overflow-wrap: anywhere; font-size: .85rem; }
.card img, .card .empty { width: 100%; aspect-ratio: 4/3; object-fit: contain; background: var(--soft); }
.card img { display: block; }
.card .empty { display: flex; align-items: center; justify-content: center; color: GrayText; }
.card svg { background: none; width: 100%; height: 2.2rem; display: block; color: #4477aa; }
.card figcaption { color: inherit; } .card .name { color: GrayText; font-size: .78rem; }
details { margin: .6rem 0; } summary { cursor: pointer; } pre { font-size: .8rem; overflow-x: auto; }
"""
ENVELOPE_BARS = 96


@dataclass(frozen=True)
class Card:
    """One clip on a page: a picture or the reason why there is none, the sound, and lines of text."""

    name: str
    lines: Sequence[str]
    picture: bytes | None = None
    """JPEG."""
    reason: str = ""
    """Why there is no picture; empty for a clip of sound only."""
    sound: np.ndarray | None = None
    """(S,) waveform."""

    def html(self) -> str:
        if self.picture is None:
            picture = f'<div class="empty">{html_text(self.reason)}</div>' if self.reason else ""
        else:
            data = base64.b64encode(self.picture).decode()
            picture = f'<img alt="{html_text(self.name)}" src="data:image/jpeg;base64,{data}">'
        lines = "<br>".join(map(html_text, self.lines))
        caption = f'<figcaption>{lines}<br><span class="name">{html_text(self.name)}</span></figcaption>'
        return f'<figure class="card">{picture}{_envelope(self.sound)}{caption}</figure>'


class Page:
    """A page whose parts are added in order; `write` publishes it as one file."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{html_text(title)}</h1>"]
        if lead:
            self.text(lead)

    def heading(self, text: str, level: int = 2) -> None:
        self._parts.append(f"<h{level}>{html_text(text)}</h{level}>")

    def text(self, text: str, kind: str = "") -> None:
        """Add a paragraph; `kind` may be note or warning."""
        css_class = f' class="{kind}"' if kind else ""
        self._parts.append(f"<p{css_class}>{html_text(text)}</p>")

    def table(self, table: Table) -> None:
        self._parts.append(table.html())

    def drawing(self, figure: Figure, caption: str = "") -> None:
        self._parts.append(_drawing(figure, caption))

    def side_by_side(self, *parts: Table | Figure) -> None:
        """Add tables and drawings that share one row if the window is wide enough."""
        rendered = [part.html() if isinstance(part, Table) else _drawing(part, "") for part in parts]
        self._parts.append(f'<div class="side">{"".join(rendered)}</div>')

    def cards(self, cards: Sequence[Card]) -> None:
        """Add cards of clips, as many per row as the window has room for."""
        self._parts.append(f'<div class="cards">{"".join(card.html() for card in cards)}</div>')

    def fold(self, title: str, text: str) -> None:
        """Add a text of fixed width that is shown when its title is clicked."""
        self._parts.append(f"<details><summary>{html_text(title)}</summary><pre>{html_text(text)}</pre></details>")

    def html(self) -> str:
        title = html_text(self.title)
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}'
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}</title><style>{STYLE}</style></head>\n<body>\n'
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )

    def write(self, path: Path) -> Path:
        replace_bytes(path, self.html().encode())
        return path


def _envelope(sound: np.ndarray | None) -> str:
    """Return the loudest sample of each part of a waveform as bars of an SVG."""
    if sound is None or not sound.size:
        return ""
    parts = np.array_split(np.abs(sound.astype(np.float32)), min(ENVELOPE_BARS, sound.size))
    peaks = np.array([part.max() for part in parts])
    heights = np.maximum(np.round(peaks / max(float(peaks.max()), 1e-9) * 18), 0.5)
    bars = "".join(f"M{number + 0.5} {20 - height:g}v{2 * height:g}" for number, height in enumerate(heights))
    size = f'viewBox="0 0 {len(parts)} 40" preserveAspectRatio="none"'
    return f'<svg {size} role="img" aria-label="sound"><path d="{bars}" stroke="currentColor" stroke-width=".7"/></svg>'


def _drawing(figure: Figure, caption: str) -> str:
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "featurecache", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)
    return f"<figure>{svg}{f'<figcaption>{html_text(caption)}</figcaption>' if caption else ''}</figure>"
