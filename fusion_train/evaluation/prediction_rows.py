"""Read files of predictions, of this project (`predictions`) or of any other system.

A file is JSON Lines with `id` and `prediction` in each line, or CSV with these columns. `reference`, `task`, `tags`,
`speaker` and `dialogue` are further keys, or come from a clip list. A clip with two predictions, a line without a
prediction, and a CSV row with more cells than columns (a comma in a text without quotes) are errors; all are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurecache.clips.clip_list import ClipList
from featurecache.errors import suggest
from featurecache.files.table_rows import read_csv
from fusion_train.errors import DataError
from fusion_train.evaluation.append_only import read_lines


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a file, sorted by clip id.

    Raises:
        DataError: no such file, lines that are no predictions, two predictions about one clip, or an empty file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            str(path),
            expected="a file of predictions",
            got="a folder" if path.is_dir() else "no such file",
            next_step='Write one line per clip: {"id": "a1", "prediction": "happy"}.',
        )
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else read_lines(path)
    problems, seen = [], set()
    for number, row in enumerate(rows, start=1):
        clip_id, prediction = row.get("id"), row.get("prediction")
        if not isinstance(clip_id, str) or not clip_id:
            near = suggest("id", row).strip()
            problems.append(f"row {number}: expected an id, got {sorted(row)}. {near}".rstrip())
        elif isinstance(prediction, int | float) and not isinstance(prediction, bool):
            row["prediction"] = repr(prediction)  # valence, arousal: other systems write numbers
        elif not isinstance(prediction, str):
            problems.append(f"{clip_id}: expected a prediction as text, got {prediction!r}")
        elif clip_id in seen:
            problems.append(f"{clip_id}: predicted twice")
        seen.add(clip_id)
    if problems or not rows:
        raise DataError(
            str(path),
            expected="one prediction per clip",
            got=f"{len(problems)} problems" if rows else "an empty file",
            problems=problems,
        )
    return sorted(rows, key=lambda row: row["id"])


def with_references(rows: list[dict[str, Any]], references: Mapping[str, Any], clips: ClipList) -> list[dict[str, Any]]:
    """Return rows with the references, tags, speakers and dialogues of a clip list, which replace those of the rows.

    Raises:
        DataError: clips without a prediction, or predictions about other clips.
    """
    predicted = {row["id"] for row in rows}
    missing, extra = sorted(references.keys() - predicted), sorted(predicted - references.keys())
    if missing or extra:
        raise DataError(
            "predictions",
            expected=f"one for each of {len(references)} clips",
            got=f"{len(missing)} missing, {len(extra)} for other clips",
            next_step=suggest(extra[0], missing).strip() or None if extra else None,
            problems=[f"missing: {clip}" for clip in missing] + [f"not asked: {clip}" for clip in extra],
        )
    joined = []
    for row in rows:
        clip = clips.by_id(row["id"])
        clip_fields = {
            "tags": list(clip.tags),
            "speaker": clip.speaker,
            "dialogue": clip.dialogue,
            "dataset": clip.dataset,
        }
        joined.append({**row, **clip_fields, "reference": references[row["id"]]})
    return joined


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    rows, problems = [], []
    for line, row in read_csv(path):
        if isinstance(row, str):
            problems.append(f"line {line}: {row}")
        else:
            rows.append(dict(row))
    if problems:
        raise DataError(str(path), expected="CSV with a header", got="other lines", problems=problems)
    return rows
