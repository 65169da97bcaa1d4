"""BoLD: people in films, each with how strongly raters saw 26 categories of emotion in body and face.

Source: the BoLD release (ARBEE, IJCV 2020), `annotations/{train,val}.csv` without a header; the test labels are not
public. A category counts from 0.5. One clip of a film may show several people: an id is `<film>_<clip>_<person>`, and
the pictures are of the whole scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Request
from featurecache.importers.findings import Findings, score, scores
from featurecache.importers.folders import first_of
from featurecache.importers.tables import read_lines

CATEGORIES = (
    "peace", "affection", "esteem", "anticipation", "engagement", "confidence", "happiness", "pleasure", "excitement",
    "surprise", "sympathy", "doubt/confusion", "disconnection", "fatigue", "embarrassment", "yearning", "disapproval",
    "aversion", "annoyance", "anger", "sensitivity", "sadness", "disquietment", "fear", "pain", "suffering",
)  # fmt: skip
THRESHOLD = 0.5
FIRST_SCORE = 4  # after video_id, person_id, start_frame, end_frame
DIMENSIONS = ("valence", "arousal", "dominance")
FEWEST_CELLS = FIRST_SCORE + len(CATEGORIES) + len(DIMENSIONS)


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every person of every clip."""
    root = first_of(request.source, ("BOLD_public", "annotations"), "the release")
    root = root if root.name == "BOLD_public" else request.source
    for split in ("train", "val"):
        if request.wants(split):
            table = first_of(root, (f"annotations/{split}.csv",), f"the table of split {split}")
            for place, line in read_lines(table, request.encoding):
                clip = _clip(table, place, [cell.strip() for cell in line.split(",")], split, root, found)
                if clip is not None:
                    yield clip


def _clip(table: Path, place: str, cells: list[str], split: str, root: Path, found: Findings) -> Clip | None:
    strengths = [score(cell) for cell in cells[FIRST_SCORE : FIRST_SCORE + len(CATEGORIES)]]
    if len(cells) < FEWEST_CELLS or None in strengths:
        raise DatasetError(
            str(table),
            expected=f"{FEWEST_CELLS} cells or more: video, person, start, end, 26 scores, 3 dimensions, …",
            got=f"{place}: {len(cells)} cells",
        )
    outside = [f"{name} {value:g}" for name, value in zip(CATEGORIES, strengths, strict=True) if not 0 <= value <= 1]  # type: ignore[operator]
    if outside:
        found.unknown.append(f"{place}: strengths outside 0 to 1: {', '.join(outside)}")
        found.leave_out("strengths outside 0 to 1", place)
        return None
    chosen = [name for name, value in zip(CATEGORIES, strengths, strict=True) if value >= THRESHOLD]  # type: ignore[operator]
    if not chosen:
        found.note("clips in which no category reaches 0.5 have an empty list")
    name = PurePosixPath(cells[0])
    film = name.parent.name.removesuffix(".mp4")
    valence, arousal, dominance = cells[FIRST_SCORE + len(CATEGORIES) : FEWEST_CELLS]
    person = cells[1].removesuffix(".0")
    return Clip(
        id=f"{film}_{name.stem}_{person}",
        video=root / "videos" / name,
        split=split,
        dataset="bold",
        labels={"multi-label": chosen, **scores(valence=valence, arousal=arousal, dominance=dominance)},
        speaker=f"{film}_{name.stem}_{person}",
        dialogue=film,
    )


IMPORTER = Importer(
    name="bold",
    title="BoLD",
    read=read,
    layout=(
        "BOLD_public/annotations/{train,val}.csv, without header: video, person, start, end, 26 scores, valence, …",
        "BOLD_public/videos/<video>",
    ),
    licence="Pennsylvania State University, for research after an agreement; the films' owners hold their rights:"
    " cydar.ist.psu.edu/emotionchallenge.",
    splits=("train", "val"),
)
