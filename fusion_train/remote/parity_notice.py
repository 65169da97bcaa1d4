"""What an exported folder's certificate says against using it; nothing where every bound held.

The code of an exported folder reads this without the package, so it checks nothing else of the certificate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CERTIFICATE = "certificate.json"


def parity_notice(folder: Any) -> str | None:
    """Return one sentence that names the bounds which did not hold; None where all did, or there is no certificate."""
    path = Path(str(folder)) / CERTIFICATE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        passed, figures = document.get("passed"), document.get("figures")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if passed is True:
        return None
    listed = figures if isinstance(figures, list) else []
    failed = [str(one.get("name")) for one in listed if isinstance(one, dict) and one.get("passed") is not True]
    named = ": " + "; ".join(failed) if failed else ""
    return (
        f"{folder}: this model did not pass its own check: it does not compute what was trained{named}. "
        "See CERTIFICATE.md in the folder; export the run again before using its answers."
    )
