"""MMEVerse: twelve training sets and eighteen scores in one packaging, with texts that language models wrote.

Source: Emotion-LLaMAv2 (arXiv 2601.16449) and its released readers. Below one root, for each set: `<SET>_merged.csv`
(labels, subtitles, descriptions of sound and picture), `AU_gpt/<SET>_AU_gpt.csv` (reasons), `<SET>_label.csv`
(evaluation), `<SET>_peak.json` (the frame of strongest expression) and `video/<id>.mp4`. A clip that several tables
name is one clip. Ids are `<set>/<id>`, since the sets number their clips alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.clips.responses import Response
from featurecache.errors import DatasetError, suggest
from featurecache.importers import Importer, Option, Request, plain_split
from featurecache.importers.findings import EMPTY_CELLS, Findings, list_of, score
from featurecache.importers.folders import MediaFolder, any_of, contents
from featurecache.importers.mmeverse_sets import AUDIO, IMAGE, PERSON, SETS, MmeverseSet, plain_name
from featurecache.importers.tables import header_of, read_json, read_table

SPLIT_NAMES = {f"session{number}": "train" for number in range(1, 5)} | {"session5": "test", "test_semi": "semi"}
NO_TEXTS = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
))  # fmt: skip
"""Cells that hold no text: those that pandas, by which the released readers read, takes for no value."""


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield the clips of every set that is there, or of those asked for."""
    folders = _folders(request)
    for mmeverse_set, folder in folders.items():
        rows = _rows(mmeverse_set, folder, request)
        peaks = _peaks(folder, request)
        videos = MediaFolder(folder / "video")
        for clip_id, place, cells in rows:
            labels = _labels(mmeverse_set, cells, place, found)
            if labels is None:
                continue
            split = plain_split(cells.get(mmeverse_set.mode, "test"))
            split = SPLIT_NAMES.get(split, split)
            spoken = mmeverse_set.text if split == "train" else mmeverse_set.text_of_tests or mmeverse_set.text
            prefix = f"{mmeverse_set.dataset}/" if request.options["ids"] == "set/id" else ""
            video = clip_id.partition("#")[0]
            dialogue = mmeverse_set.dialogue_of(video)
            yield Clip(
                id=prefix + clip_id,
                video=videos.path_of(video),
                text=cells.get(spoken) or None,
                split=split,
                dataset=mmeverse_set.dataset,
                labels=labels,
                responses=_responses(mmeverse_set, cells, labels),
                peak_frame=peaks.get(video),
                person=cells.get(PERSON) or None,
                speaker=f"{dialogue}: {cells[PERSON].strip()}" if cells.get(PERSON) else None,
                dialogue=dialogue,
            )
        _note_features(mmeverse_set, folder, request, found)


def _folders(request: Request) -> dict[MmeverseSet, Path]:
    """The sets asked for, and where they lie.

    Raises:
        DatasetError: no such set, or none is there.
    """
    there = {plain_name(path.name): path for path in sorted(request.source.iterdir()) if path.is_dir()}
    names = {plain_name(name): each for each in SETS for name in (each.dataset, *each.folders)}
    asked = [word.strip() for word in request.options["sets"].split(",") if word.strip()]
    unknown = [word for word in asked if plain_name(word) not in names]
    if unknown:
        known = [each.dataset for each in SETS]
        near = suggest(unknown[0], known).strip() or None
        raise DatasetError(f"--option sets={unknown[0]}", expected=", ".join(known), got="another", next_step=near)
    wanted = {names[plain_name(word)] for word in asked} if asked else set(SETS)
    found = {names[name]: path for name, path in there.items() if name in names and names[name] in wanted}
    absent = [each.dataset for each in SETS if asked and each in wanted and each not in found]
    if absent or not found:
        expected = "the folders of " + ", ".join(absent or ("MER2023", "CAER", "…"))
        raise DatasetError(str(request.source), expected=expected, got=contents(request.source))
    return found


def _rows(mmeverse_set: MmeverseSet, folder: Path, request: Request) -> list[tuple[str, str, dict[str, str]]]:
    """(id, place, cells by the names of their columns) of every clip, joined over the tables; the first value counts.

    Rows of one video about several persons are several clips, `<id>#2` and so on.
    """
    candidates = [any_of(folder, (f"{folder.name}_{kind}.csv", f"*_{kind}.csv")) for kind in ("merged", "label")]
    for place in (folder.parent / "AU_gpt", folder):
        candidates.append(any_of(place, (f"{folder.name}_AU_gpt.csv",)))
    tables = [path for path in candidates if path is not None]
    if not tables:
        expected = f"{folder.name}_merged.csv or {folder.name}_label.csv"
        raise DatasetError(str(folder), expected=expected, got=contents(folder))
    joined: dict[tuple[str, str, int], tuple[str, dict[str, str]]] = {}
    for table in tables:
        seen: Counter[tuple[str, str]] = Counter()
        wanted = {name: (name,) for name in header_of(table, request.encoding) if name.strip()}
        free = {name for name in wanted if name.strip() in mmeverse_set.free_text}
        for row in read_table(table, {"video_id": ("video_id",)}, wanted, request.encoding, verbatim=free):
            clip_id = row["video_id"]
            clip_id = clip_id.zfill(mmeverse_set.id_digits) if clip_id.isdigit() else clip_id
            if mmeverse_set.clip_column and row[mmeverse_set.clip_column]:
                clip_id += f"_{row[mmeverse_set.clip_column]}"
            cells = {
                name.strip(): cell
                for name, cell in row.cells.items()
                if (cell not in NO_TEXTS if name in free else cell.lower() not in EMPTY_CELLS)
            }
            person = cells.get(PERSON, "").strip()
            key = clip_id, person, seen[clip_id, person]
            seen[clip_id, person] += 1
            place, before = joined.get(key, (row.place, {}))
            joined[key] = place, cells | before
    persons: dict[str, list[str]] = {}
    rows = []
    for (clip_id, person, _), (place, cells) in joined.items():
        mine = persons.setdefault(clip_id, [])
        if person not in mine:
            mine.append(person)
        number = mine.index(person) + 1
        rows.append((clip_id if number == 1 else f"{clip_id}#{number}", place, cells))
    return rows


def _labels(mmeverse_set: MmeverseSet, cells: Mapping[str, str], place: str, found: Findings) -> dict | None:  # type: ignore[type-arg]
    """Labels of every task; None where a label is unknown, or there is none at all."""
    labels: dict[str, object] = {}
    for vocabulary, columns in mmeverse_set.labels:
        cell = _first(cells, columns)
        if cell is None:
            continue
        number = score(cell)
        if vocabulary.task == "sentiment" and number is not None:
            labels["sentiment_score"] = number
            cell = "positive" if number > 0 else "negative" if number < 0 else "neutral"
        if vocabulary.task in ("multi-label", "openset"):
            words = list_of(cell.replace("_", ","))
            several = words if vocabulary.task == "openset" else found.labels(vocabulary, words, place)
            if several is None:
                return None
            labels[vocabulary.task] = several
            continue
        label = found.label(vocabulary, cell, place)
        if label is None:
            return None
        labels[vocabulary.task] = label
    if "sentiment" in labels and "sentiment_score" not in labels:
        number = score(_first(cells, mmeverse_set.scores) or "")
        labels |= {} if number is None else {"sentiment_score": number}
    if not labels:
        found.leave_out("no label", place)
        return None
    return labels


def _responses(
    mmeverse_set: MmeverseSet, cells: Mapping[str, str], labels: Mapping[str, object]
) -> dict[str, Response]:
    """Descriptions, and rationales by the label task that they argue for, as the cells have them.

    Where a clip lacks one of several texts, an empty one stands for it: as published, drawing it asks for the label.
    """
    responses: dict[str, Response] = {}
    for task, columns in (("audio", AUDIO), ("image", IMAGE)):
        texts = [cells.get(column, "") for column in columns]
        if any(map(str.strip, texts)):
            responses[task] = texts[0] if len(texts) == 1 else texts
    for task, argued in (("reason", mmeverse_set.reasons), ("think", None)):
        found = {
            label: cells.get(column, "") if label in labels else ""
            for label, column in mmeverse_set.thinks
            if argued is None or label in argued
        }
        if any(map(str.strip, found.values())):
            responses[task] = found["emotion"] if list(found) == ["emotion"] else found
    return responses


def _peaks(folder: Path, request: Request) -> dict[str, int]:
    path = any_of(folder, (f"{folder.name}_peak.json", "*_peak.json"))
    if path is None:
        return {}
    peaks = {}
    for clip_id, about in read_json(path, dict, request.encoding).items():
        number = about.get("peak_index") if isinstance(about, dict) else None
        if not isinstance(number, int) or number < 0:
            got = f"{clip_id}: {about!r:.60}"
            raise DatasetError(str(path), expected='{"<id>": {"peak_index": a whole number from 0}}', got=got)
        peaks[clip_id] = number
    return peaks


def _note_features(mmeverse_set: MmeverseSet, folder: Path, request: Request, found: Findings) -> None:
    features = folder / "features"
    if features.is_dir():
        names = ", ".join(sorted(path.name for path in features.iterdir() if path.is_dir()))
        prefix = f" --prefix {mmeverse_set.dataset}/" if request.options["ids"] == "set/id" else ""
        found.note(f"{features} has features ({names}): `fcache import-npy {features}/NAME --name NAME{prefix}`")


def _first(cells: Mapping[str, str], columns: tuple[str, ...]) -> str | None:
    return next((cells[column] for column in columns if cells.get(column)), None)


IMPORTER = Importer(
    name="mmeverse",
    title="MMEVerse",
    read=read,
    layout=(
        "<SET>/<SET>_merged.csv: video_id, labels, subtitle, mode, response_*",
        "<SET>/<SET>_label.csv: the same for evaluation",
        "AU_gpt/<SET>_AU_gpt.csv: gpt-4o-mini_Emotion, _Sentiment, _intent, _Single, _Multi",
        "<SET>/<SET>_peak.json, <SET>/video/<id>.mp4",
    ),
    licence="The texts are of the authors of Emotion-LLaMAv2 (github.com/ooochen-30/Emotion-LLaMA-v2); every set keeps"
    " the licence of its own holder: `fcache import SET` names it.",
    options={
        "sets": Option("names of sets, with commas between; every set that is there by default"),
        "ids": Option("whether ids carry the set's name", "set/id", ("set/id", "id")),
    },
)
