"""Files whose names are spelt in another Unicode form than what names them.

macOS writes é as e and an accent (NFD), tables mostly have it as one character (NFC): the same name to a person, two
names to Linux. This module looks at names alone and opens no file.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path


def spelt_otherwise(path: Path) -> Path | None:
    """Return the file or folder that `path` names in another Unicode form; None where there is none, or two."""
    if str(path).isascii():
        return None
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not (found / part).exists():
            names = _names(found).get(unicodedata.normalize("NFC", part), ())
            if len(names) != 1:
                return None
            part = names[0]
        found /= part
    return found


@lru_cache(maxsize=256)
def _names(folder: Path) -> dict[str, tuple[str, ...]]:
    """Names in a folder by their NFC form."""
    found: dict[str, tuple[str, ...]] = {}
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            form = unicodedata.normalize("NFC", entry.name)
            found[form] = (*found.get(form, ()), entry.name)
    return found
