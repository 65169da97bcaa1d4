"""The sheet on which a person decides about doubtful labels: one HTML file that opens from disk.

It shows the clips where they lie (paths relative to the sheet), what the judges hold against each label, and a button a
label. Decisions are kept by the browser and saved as `decisions.json`, which `fcache audit --decisions` reads back.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featurecache.clips import Clip, ClipList
from featurecache.outside_text import script_json
from featurecache.similarity.audit import Audit, Doubt

TEMPLATE = Path(__file__).with_name("review.html")
PLACEHOLDER = "/*SHEET*/null"


def review_sheet(audit: Audit, clips: ClipList, path: Path) -> str:
    """The sheet's HTML, to be written to `path`."""
    labels: dict[str, list[str]] = {}
    for noise in audit.noise:
        labels.setdefault(noise.dataset, []).append(noise.label)
    rows = [_row(doubt, clips, labels[doubt.dataset], path.parent) for doubt in audit.doubts]
    sheet = {"task": audit.task, "clips": rows}
    sheet["key"] = hashlib.sha256(json.dumps(sheet, sort_keys=True).encode()).hexdigest()[:16]
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACEHOLDER, script_json(sheet))


def _row(doubt: Doubt, clips: ClipList, labels: Sequence[str], folder: Path) -> dict[str, Any]:
    clip = clips.by_id(doubt.id)
    return {
        "id": doubt.id, "dataset": doubt.dataset, "text": clip.text, "labels": list(labels), "given": doubt.given,
        "suggested": doubt.suggested, "quality": round(doubt.quality, 3), "probability": round(doubt.probability, 3),
        "media": _media(clip, folder), "start_s": clip.start_s, "end_s": clip.end_s, "responses": dict(clip.responses),
        "evidence": [{"id": other, "label": label, "similarity": round(similarity, 2),
                      "media": _media(clips.by_id(other), folder)} for other, label, similarity in doubt.evidence],
    }  # fmt: skip


def _media(clip: Clip, folder: Path) -> dict[str, str]:
    return {
        kind: Path(os.path.relpath(path, folder)).as_posix()
        for kind in ("video", "audio", "image") if (path := getattr(clip, kind)) is not None
    }  # fmt: skip
