"""Blinded human ratings of reasoning answers: a rating page, the raters' files, and the agreement between raters.

The page opens from disk and the browser saves the ratings. It shows the reference of each clip and the answers of
several systems in random order, under numbers. Only `key.json`, which the raters do not get, says which system belongs
to a number. The file of a rater holds a rating from 1 to 5 per answer and question. `agreement` reads any number of
these files and returns the mean per system and Krippendorff's alpha (ordinal) per question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.files.publish import replace_bytes
from featurecache.outside_text import html_text
from featurecache.spec import canonical_json
from fusion_train.errors import DataError
from fusion_train.metrics.reliability import krippendorff_alpha
from fusion_train.seeding import generator

QUESTIONS = {
    "clues": "The description names what can be seen and heard.",
    "emotion": "The emotion it concludes is right.",
    "reasoning": "The conclusion follows from what it names.",
}
LOWEST, HIGHEST = 1, 5
FORMAT = 1
"""Version of `key.json` and of the raters' files."""


@dataclass(frozen=True)
class RaterAgreement:
    """Mean ratings, and how far the raters agree."""

    means: Mapping[str, Mapping[str, float]]
    """System -> question -> mean rating."""
    alpha: Mapping[str, float | None]
    """Question -> Krippendorff's alpha, ordinal; None if no answer was rated twice or all ratings are equal."""
    num_raters: int
    num_ratings: int


def write_sheet(
    systems: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path, *, clips: int, seed: int = 0, media: str = ""
) -> Path:
    """Write `sheet.html` for the raters and `key.json` for the evaluation; return the path of the sheet.

    Args:
        systems: name -> prediction rows of the same clips.
        clips: maximum number of clips, drawn by the seed.
        media: prefix of a clip id and `.mp4` that gives the address of the video, relative to the page; empty for no
            video.

    Raises:
        DataError: no system, or no clip that all of them answered.
    """
    answers = {name: {row["id"]: row for row in rows} for name, rows in systems.items()}
    common = sorted(set.intersection(*(set(rows) for rows in answers.values()))) if answers else []
    if not common:
        raise DataError("rating sheet", expected="clips that every system answered", got="none")
    order = generator(seed, "rating clips").permutation(len(common))[:clips]
    items, key = [], {}
    for place, clip in enumerate(common[index] for index in order):
        names = list(answers)
        shuffled = [names[k] for k in generator(seed, "rating order", place).permutation(len(names))]
        for number, name in enumerate(shuffled):
            key[f"{place + 1}.{number + 1}"] = {"id": clip, "system": name}
        items.append((place + 1, clip, [str(answers[name][clip]["prediction"]) for name in shuffled]))
    sheet_id = hashlib.sha256(canonical_json(key).encode()).hexdigest()[:16]
    references = {clip: str(answers[next(iter(answers))][clip].get("reference") or "") for _, clip, _ in items}
    page = _page(items, references, sheet_id, media)
    document = {"format": FORMAT, "sheet": sheet_id, "questions": list(QUESTIONS), "key": key}
    replace_bytes(folder / "key.json", (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    replace_bytes(folder / "sheet.html", page.encode())
    return folder / "sheet.html"


def agreement(key_file: Path, ratings: Sequence[Path]) -> RaterAgreement:
    """Read the raters' files and compute means and agreement.

    Raises:
        DataError: a file of another sheet, an unknown number, a rating outside 1 to 5, a rater with two files, or no
            rating.
    """
    key = _read(key_file, {"sheet", "key", "questions"})
    documents = [_read(path, {"sheet", "rater", "ratings"}) for path in ratings]
    problems = []
    for path, document in zip(ratings, documents, strict=True):
        if document["sheet"] != key["sheet"]:
            problems.append(f"{path}: of another sheet")
            continue
        for number, answer_ratings in document["ratings"].items():
            if number not in key["key"] or not isinstance(answer_ratings, dict):
                problems.append(f"{path}: no answer {number}")
                continue
            problems += [
                f"{path}: {number} {question}: {value!r}"
                for question, value in answer_ratings.items()
                if question not in key["questions"] or value not in range(LOWEST, HIGHEST + 1)
            ]
    raters = [document["rater"] for document in documents]
    problems += [f"{rater}: rated twice" for rater in sorted({r for r in raters if raters.count(r) > 1})]
    if problems or not documents:
        raise DataError(
            str(key_file),
            expected=f"ratings of this sheet from {LOWEST} to {HIGHEST}, one file per rater",
            got=f"{len(problems)} problems" if documents else "no file",
            problems=problems,
        )
    numbers = list(key["key"])
    table = {question: _table(question, numbers, documents) for question in key["questions"]}
    num_ratings = sum(int(np.isfinite(values).sum()) for values in table.values())
    if not num_ratings:
        raise DataError(str(key_file), expected="ratings", got="files without any")
    alpha = {question: krippendorff_alpha(values) for question, values in table.items()}
    return RaterAgreement(_means(key["key"], numbers, table), alpha, len(documents), num_ratings)


def _table(question: str, numbers: Sequence[str], documents: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the ratings of one question, (raters, answers); NaN if not rated."""
    return np.array(
        [[document["ratings"].get(number, {}).get(question, np.nan) for number in numbers] for document in documents],
        float,
    )


def _means(
    key: Mapping[str, Mapping[str, str]], numbers: Sequence[str], table: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return system -> question -> mean rating."""
    means: dict[str, dict[str, float]] = {}
    for system in sorted({entry["system"] for entry in key.values()}):
        columns = [index for index, number in enumerate(numbers) if key[number]["system"] == system]
        rated = {question: values[:, columns][np.isfinite(values[:, columns])] for question, values in table.items()}
        means[system] = {question: float(values.mean()) for question, values in rated.items() if len(values)}
    return means


def _read(path: Path, keys: set[str]) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(str(path), expected="a JSON file of the rating sheet", got=got) from error
    if not isinstance(document, dict) or not keys <= document.keys() or document.get("format") != FORMAT:
        raise DataError(str(path), expected=f"format {FORMAT} with " + ", ".join(sorted(keys)), got="another document")
    return document


def _page(items: Sequence[tuple[int, str, list[str]]], references: Mapping[str, str], sheet_id: str, media: str) -> str:
    cards = []
    for place, clip, texts in items:
        video = f'<video controls preload="none" src="{html_text(media + clip + ".mp4")}"></video>' if media else ""
        reference = f"<p class=reference>{html_text(references[clip])}</p>" if references[clip] else ""
        answers = "".join(_answer(f"{place}.{number}", text) for number, text in enumerate(texts, start=1))
        cards.append(f"<section><h2>Clip {place}</h2>{video}{reference}{answers}</section>")
    template = (files("fusion_train.evaluation") / "rating_sheet.html").read_text(encoding="utf-8")
    return template.replace("%SHEET%", sheet_id).replace("%FORMAT%", str(FORMAT)).replace("%CARDS%", "\n".join(cards))


def _answer(number: str, text: str) -> str:
    rows = []
    for question, statement in QUESTIONS.items():
        choices = "".join(
            f'<label><input type=radio name="{number} {question}" value={value}>{value}</label>'
            for value in range(LOWEST, HIGHEST + 1)
        )
        rows.append(f"<div class=question><span>{html_text(statement)}</span><span>{choices}</span></div>")
    return f"<article><h3>Answer {number}</h3><blockquote>{html_text(text)}</blockquote>{''.join(rows)}</article>"
