"""MMEVerse: twelve training datasets and eighteen evaluation scores in one packaging, with texts of language models.

Source: Emotion-LLaMAv2 (arXiv 2601.16449) and its released readers. One folder per dataset below a common root:

    <SET>/<SET>_merged.csv        labels, subtitles, descriptions of sound and picture
    <SET>/<SET>_label.csv         labels for evaluation
    AU_gpt/<SET>_AU_gpt.csv       rationales
    <SET>/<SET>_peak.json         frame of the strongest expression
    <SET>/video/<id>.mp4

Rows of several tables about one clip are joined. The datasets number their clips alike, so ids are `<set>/<id>`.
MMEVerse keeps the label vocabulary of each dataset.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.clips.responses import Response
from featurecache.errors import DatasetError, suggest
from featurecache.importers import Importer, Option, Request, plain_split
from featurecache.importers.dialogues import (
    IEMOCAP_CODES,
    MC_EIU_EMOTIONS,
    MC_EIU_INTENTS,
    MELD_EMOTIONS,
    MELD_SENTIMENTS,
)
from featurecache.importers.findings import EMPTY_CELLS, Findings, Vocabulary, list_of, score
from featurecache.importers.folders import MediaFolder, any_of, contents
from featurecache.importers.in_the_wild import (
    BOLD_CATEGORIES,
    CAER_EMOTIONS,
    DFEW_EMOTIONS,
    E3_EMOTIONS,
    MAFW_EMOTIONS,
    MAFW_MULTI_LABELS,
)
from featurecache.importers.mer import EMOTIONS as MER_EMOTIONS
from featurecache.importers.mmsa import SENTIMENTS
from featurecache.importers.tables import header_of, read_json, read_table

AUDIO_COLUMNS = ("response_AudioReasoner", "response_Qwen2Audio")
IMAGE_COLUMNS = ("response_Qwen25vl_72B",)
PERSON_COLUMN = "person"


@dataclass(frozen=True, eq=False)
class MmeverseSet:
    """Folder names, columns and vocabularies of one dataset in the packaging."""

    dataset: str
    folders: tuple[str, ...]
    labels: tuple[tuple[Vocabulary, tuple[str, ...]], ...]
    """(vocabulary, columns) per task; the first column that has a value is used."""
    text: str
    """Column of the subtitle."""
    test_text: str = ""
    """Column of the subtitle outside the train split, if it is another one."""
    scores: tuple[str, ...] = ()
    """Columns of the sentiment score."""
    clip_column: str = ""
    """Column that is the second part of an id."""
    split_column: str = "mode"
    """Column of the split; a clip without a value belongs to the test split."""
    dialogue: str = ""
    """Regular expression for an id; its groups, joined, name the dialogue or source video of the clip."""
    rationales: tuple[tuple[str, str], ...] = (("emotion", "gpt-4o-mini_Emotion"),)
    """(label task, column of the text that argues for the label and ends with it)."""
    reason_tasks: tuple[str, ...] | None = None
    """Label tasks whose rationale is also the response to the task `reason`; None: all of `rationales`."""
    id_digits: int = 0
    """Numeric ids are padded with zeros to this many digits."""

    def dialogue_of(self, clip_id: str) -> str | None:
        """Return the name of the dialogue of a clip, None if the dataset has no"""
        match = re.match(self.dialogue, clip_id) if self.dialogue else None
        return None if match is None else "".join(group or "" for group in match.groups())

    @property
    def free_text_columns(self) -> tuple[str, ...]:
        """Columns of texts that the importer keeps byte for byte."""
        rationales = (column for _, column in self.rationales)
        names = (self.text, self.test_text, *rationales, *AUDIO_COLUMNS, *IMAGE_COLUMNS, PERSON_COLUMN)
        return tuple(name for name in names if name)


SENTIMENT_RATIONALE = (("sentiment", "gpt-4o-mini_Sentiment"),)
OPENSET = Vocabulary("openset", ())
BOLD_MULTI_LABELS = Vocabulary("multi-label", BOLD_CATEGORIES)
IEMOCAP_LABELS = Vocabulary(
    "emotion",
    tuple(IEMOCAP_CODES.values()),
    {"excitement": "excited", "frustrated": "frustration", **IEMOCAP_CODES},
)
SCORE_COLUMNS = ("val", "label", "score", "sentiment_score")
ALL_BUT_LAST_PART = r"(.+)_[^_]+$"


def _set(dataset: str, folders: str, text: str, *labels: tuple[Vocabulary, str], **columns: object) -> MmeverseSet:
    """Return one dataset; `folders` and the columns of a vocabulary are separated by spaces."""
    label_columns = tuple((vocabulary, tuple(names.split())) for vocabulary, names in labels)
    return MmeverseSet(dataset, tuple(folders.split()), label_columns, text, **columns)  # type: ignore[arg-type]


SETS = (
    _set("mer2023", "MER2023", "english", (MER_EMOTIONS, "emotion_label"), test_text="chinese",
         split_column="MER2023_mode"),
    _set("mer2024", "MER2024 MER2024-SEMI", "english", (MER_EMOTIONS, "emotion_label"), test_text="chinese",
         split_column="MER2024_mode"),
    _set("caer", "CAER", "text_whisper", (CAER_EMOTIONS, "emotion_label")),
    _set("dfew", "DFEW", "sentence", (DFEW_EMOTIONS, "label")),
    _set("mc_eiu", "MC-EIU", "Subtitle", (MC_EIU_EMOTIONS, "emotion"), (MC_EIU_INTENTS, "intent"),
         dialogue=r"(dia_\d+)_utt_\d+(_ch)?$", rationales=(("intent", "gpt-4o-mini_intent"),)),
    _set("mafw", "MAFW", "text_whisper", (MAFW_EMOTIONS, "single_label"), (MAFW_MULTI_LABELS, "multi_label"),
         id_digits=5, reason_tasks=("emotion",),
         rationales=(("emotion", "gpt-4o-mini_Single"), ("multi-label", "gpt-4o-mini_Multi"))),
    _set("bold", "BOLD", "text_whisper", (BOLD_MULTI_LABELS, "Emotion_label"), dialogue=r"(.+)_\d+_\d+$",
         rationales=(("multi-label", "gpt-4o-mini_Emotion"),)),
    _set("e3", "E3", "conversation", (E3_EMOTIONS, "emotion"), dialogue=ALL_BUT_LAST_PART),
    _set("iemocap", "IEMOCAP", "text", (IEMOCAP_LABELS, "official_label"), split_column="session",
         dialogue=ALL_BUT_LAST_PART),
    _set("ch_sims_v2_s", "CH-SIMS_v2_s CH-SIMS-v2", "text", (SENTIMENTS, "annotation"), scores=SCORE_COLUMNS,
         dialogue=ALL_BUT_LAST_PART, rationales=SENTIMENT_RATIONALE),
    _set("ch_sims", "CH-SIMS SIMS", "english", (SENTIMENTS, "annotation val_label"), scores=SCORE_COLUMNS,
         dialogue=ALL_BUT_LAST_PART, rationales=SENTIMENT_RATIONALE),
    _set("cmu_mosei", "CMU-MOSEI", "text", (SENTIMENTS, "sentiment_label"), scores=SCORE_COLUMNS,
         clip_column="clip_id", dialogue=ALL_BUT_LAST_PART, rationales=SENTIMENT_RATIONALE),
    _set("cmu_mosi", "CMU-MOSI", "text", (SENTIMENTS, "sentiment_label"), scores=SCORE_COLUMNS,
         dialogue=ALL_BUT_LAST_PART, rationales=SENTIMENT_RATIONALE),
    _set("meld", "MELD", "text", (MELD_EMOTIONS, "Emotion"), (MELD_SENTIMENTS, "Sentiment"),
         dialogue=r"(.*dia_?\d+)_utt_?\d+$", rationales=(("emotion", "gpt-4o-mini_Emotion"), *SENTIMENT_RATIONALE)),
    _set("ov_merd_plus", "OV-MERD+ OV-MERD-plus", "sentence", (OPENSET, "openset ovlabel")),
)  # fmt: skip
SPLIT_NAMES = {f"session{number}": "train" for number in range(1, 5)} | {"session5": "test", "test_semi": "semi"}
MISSING_TEXTS = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
))  # fmt: skip
"""Cells that pandas reads as missing; the released readers use pandas."""


def read(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the clips of the requested datasets; by default of all that are present."""
    folders = _folders(request)
    for mmeverse_set, folder in folders.items():
        rows = _rows(mmeverse_set, folder, request)
        peaks = _peaks(folder, request)
        videos = MediaFolder(folder / "video")
        for clip_id, place, cells in rows:
            labels = _labels(mmeverse_set, cells, place, findings)
            if labels is None:
                continue
            split = plain_split(cells.get(mmeverse_set.split_column, "test"))
            split = SPLIT_NAMES.get(split, split)
            text_column = mmeverse_set.text if split == "train" else mmeverse_set.test_text or mmeverse_set.text
            prefix = f"{mmeverse_set.dataset}/" if request.options["ids"] == "set/id" else ""
            video = clip_id.partition("#")[0]
            dialogue = mmeverse_set.dialogue_of(video)
            yield Clip(
                id=prefix + clip_id,
                video=videos.path_of(video),
                text=cells.get(text_column) or None,
                split=split,
                dataset=mmeverse_set.dataset,
                labels=labels,
                responses=_responses(mmeverse_set, cells, labels),
                peak_frame=peaks.get(video),
                person=cells.get(PERSON_COLUMN) or None,
                speaker=f"{dialogue}: {cells[PERSON_COLUMN].strip()}" if cells.get(PERSON_COLUMN) else None,
                dialogue=dialogue,
            )
        _note_features(mmeverse_set, folder, request, findings)


def _plain_name(name: str) -> str:
    """Return a folder's or dataset's name without case and separators: `CH-SIMS_v2_s` equals `ch_sims_v2_s`."""
    return re.sub(r"[-_ .]", "", name.lower().replace("+", "plus"))


def _folders(request: Request) -> dict[MmeverseSet, Path]:
    """Return the folder of every requested dataset.

    Raises:
        DatasetError: an unknown dataset is requested, a requested one is absent, or none is present.
    """
    set_of_name = {
        _plain_name(name): mmeverse_set
        for mmeverse_set in SETS
        for name in (mmeverse_set.dataset, *mmeverse_set.folders)
    }
    names = [word.strip() for word in request.options["sets"].split(",") if word.strip()]
    unknown = [name for name in names if _plain_name(name) not in set_of_name]
    if unknown:
        datasets = [mmeverse_set.dataset for mmeverse_set in SETS]
        near = suggest(unknown[0], datasets).strip() or None
        raise DatasetError(f"--option sets={unknown[0]}", expected=", ".join(datasets), got="another", next_step=near)
    requested = {set_of_name[_plain_name(name)] for name in names} if names else set(SETS)
    folders = {
        set_of_name[_plain_name(path.name)]: path
        for path in sorted(request.source.iterdir())
        if path.is_dir() and set_of_name.get(_plain_name(path.name)) in requested
    }
    absent = [
        mmeverse_set.dataset
        for mmeverse_set in SETS
        if names and mmeverse_set in requested and mmeverse_set not in folders
    ]
    if absent or not folders:
        expected = "the folders of " + ", ".join(absent or ("MER2023", "CAER", "…"))
        raise DatasetError(str(request.source), expected=expected, got=contents(request.source))
    return folders


def _rows(mmeverse_set: MmeverseSet, folder: Path, request: Request) -> list[tuple[str, str, dict[str, str]]]:
    """Return (id, place, cells by column name) of every clip, joined over the tables of the dataset.

    Where tables disagree, the first value counts. Rows about several persons in one video become several clips:
    `<id>`, `<id>#2` and so on.
    """
    candidates = [any_of(folder, (f"{folder.name}_{kind}.csv", f"*_{kind}.csv")) for kind in ("merged", "label")]
    for root in (folder.parent / "AU_gpt", folder):
        candidates.append(any_of(root, (f"{folder.name}_AU_gpt.csv",)))
    tables = [path for path in candidates if path is not None]
    if not tables:
        expected = f"{folder.name}_merged.csv or {folder.name}_label.csv"
        raise DatasetError(str(folder), expected=expected, got=contents(folder))
    # A table may have several rows of one clip and person; the n-th of them joins the n-th of another table.
    joined: dict[tuple[str, str, int], tuple[str, dict[str, str]]] = {}
    for table in tables:
        num_rows: Counter[tuple[str, str]] = Counter()
        columns = {name: (name,) for name in header_of(table, request.encoding) if name.strip()}
        free_text = {name for name in columns if name.strip() in mmeverse_set.free_text_columns}
        for row in read_table(table, {"video_id": ("video_id",)}, columns, request.encoding, verbatim=free_text):
            clip_id = row["video_id"]
            clip_id = clip_id.zfill(mmeverse_set.id_digits) if clip_id.isdigit() else clip_id
            if mmeverse_set.clip_column and row[mmeverse_set.clip_column]:
                clip_id += f"_{row[mmeverse_set.clip_column]}"
            cells = {
                name.strip(): cell
                for name, cell in row.cells.items()
                if (cell not in MISSING_TEXTS if name in free_text else cell.lower() not in EMPTY_CELLS)
            }
            person = cells.get(PERSON_COLUMN, "").strip()
            key = clip_id, person, num_rows[clip_id, person]
            num_rows[clip_id, person] += 1
            place, first_cells = joined.get(key, (row.place, {}))
            joined[key] = place, cells | first_cells
    persons_of: dict[str, list[str]] = {}
    rows = []
    for (clip_id, person, _), (place, cells) in joined.items():
        persons = persons_of.setdefault(clip_id, [])
        if person not in persons:
            persons.append(person)
        number = persons.index(person) + 1
        rows.append((clip_id if number == 1 else f"{clip_id}#{number}", place, cells))
    return rows


def _labels(
    mmeverse_set: MmeverseSet, cells: Mapping[str, str], place: str, findings: Findings
) -> dict[str, str | list[str] | float] | None:
    """Return the labels of every task; None if a label is unknown or the row has no label."""
    labels: dict[str, str | list[str] | float] = {}
    for vocabulary, columns in mmeverse_set.labels:
        cell = _first_value(cells, columns)
        if cell is None:
            continue
        number = score(cell)
        if vocabulary.task == "sentiment" and number is not None:
            labels["sentiment_score"] = number
            cell = "positive" if number > 0 else "negative" if number < 0 else "neutral"
        if vocabulary.task in ("multi-label", "openset"):
            words = list_of(cell.replace("_", ","))
            word_labels = words if vocabulary.task == "openset" else findings.labels(vocabulary, words, place)
            if word_labels is None:
                return None
            labels[vocabulary.task] = word_labels
            continue
        label = findings.label(vocabulary, cell, place)
        if label is None:
            return None
        labels[vocabulary.task] = label
    if "sentiment" in labels and "sentiment_score" not in labels:
        number = score(_first_value(cells, mmeverse_set.scores) or "")
        labels |= {} if number is None else {"sentiment_score": number}
    if not labels:
        findings.leave_out("no label", place)
        return None
    return labels


def _responses(
    mmeverse_set: MmeverseSet, cells: Mapping[str, str], labels: Mapping[str, object]
) -> dict[str, Response]:
    """Return the descriptions, and the rationales by the label task that they argue for, exactly as in the cells.

    If a clip has some but not all of several texts, the others are empty: a draw of an empty text asks for the label
    instead, as in the released readers.
    """
    responses: dict[str, Response] = {}
    for task, columns in (("audio", AUDIO_COLUMNS), ("image", IMAGE_COLUMNS)):
        texts = [cells.get(column, "") for column in columns]
        if any(map(str.strip, texts)):
            responses[task] = texts[0] if len(texts) == 1 else texts
    for task, label_tasks in (("reason", mmeverse_set.reason_tasks), ("think", None)):
        rationales = {
            label_task: cells.get(column, "") if label_task in labels else ""
            for label_task, column in mmeverse_set.rationales
            if label_tasks is None or label_task in label_tasks
        }
        if any(map(str.strip, rationales.values())):
            responses[task] = rationales["emotion"] if list(rationales) == ["emotion"] else rationales
    return responses


def _peaks(folder: Path, request: Request) -> dict[str, int]:
    """Return clip id -> frame of the strongest expression; empty if the dataset has no file of them."""
    path = any_of(folder, (f"{folder.name}_peak.json", "*_peak.json"))
    if path is None:
        return {}
    peaks = {}
    for clip_id, entry in read_json(path, dict, request.encoding).items():
        frame = entry.get("peak_index") if isinstance(entry, dict) else None
        if not isinstance(frame, int) or frame < 0:
            got = f"{clip_id}: {entry!r:.60}"
            raise DatasetError(str(path), expected='{"<id>": {"peak_index": a whole number from 0}}', got=got)
        peaks[clip_id] = frame
    return peaks


def _note_features(mmeverse_set: MmeverseSet, folder: Path, request: Request, findings: Findings) -> None:
    """Note the command that imports the features of a dataset, if its folder has any."""
    features = folder / "features"
    if features.is_dir():
        names = ", ".join(sorted(path.name for path in features.iterdir() if path.is_dir()))
        prefix = f" --prefix {mmeverse_set.dataset}/" if request.options["ids"] == "set/id" else ""
        findings.note(f"{features} has features ({names}): `fcache import-npy {features}/NAME --name NAME{prefix}`")


def _first_value(cells: Mapping[str, str], columns: tuple[str, ...]) -> str | None:
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
