"""MER2026 and EmoPrefer: the emotion of a listener, free words for emotions, and which description people prefer.

Sources: MER2026 (github.com/zeroQiaoba/MERTools, folder MER2026); EmoPrefer (arXiv 2507.04278, ICLR 2026).

    track 1    MER-Cross: six emotions of speakers to train on; the candidates show the listener of a dialogue, who is
               seen while another person is heard
    track 2    MER-FG: words of an open vocabulary, by people (1,532) and by a model (MER-Caption+); the same candidates
    track 3    MER-Prefer: a clip, two descriptions `a1` and `a2`, and the one that people prefer, or `same`

EmoPrefer has the labelled pairs of track 3, and no splits. Candidates have no labels; their split is `candidate`. A
recording with several pairs of descriptions gives a clip per pair: `<name>`, `<name>#2`, ….
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.importers import Importer, Option, Request
from featurecache.importers.findings import Findings, Vocabulary, list_of, texts
from featurecache.importers.folders import MediaFolder, any_of, first_of
from featurecache.importers.mer import EMOTION_COLUMNS, EMOTIONS, LANGUAGE, LICENCE, NAME, subtitles
from featurecache.importers.tables import Row, read_table

CANDIDATE = "candidate"
NAME_COLUMN = {"name": NAME}
OPENSET_COLUMNS = {"name": NAME, "openset": ("openset",)}
DESCRIPTION_COLUMNS = {"name": NAME, "a1": ("a1",), "a2": ("a2",)}
PREFERENCE_COLUMN = {"preference": ("preference",)}
PREFERENCES = Vocabulary("preference", ("a1", "a2", "same"))
TRACK2_TABLES = {"mer2026_human": "track2_train_human.csv", "mer_caption_plus": "track2_train_mercaptionplus.csv"}
PREFERENCE_TABLES = {
    "emoprefer": ("track3_emoprefer.csv", "preference_emoprefer.csv"),
    "emoprefer_v2": ("track3_emopreferv2.csv", "preference_emopreferv2.csv"),
}
"""Dataset -> names of its table, in MER2026 and in EmoPrefer."""
NUM_CLIPS = {
    "1": {"train": 9395, CANDIDATE: 20000},
    "2": {"train": 1532 + 31327, CANDIDATE: 20000},
    "3": {"train": 574 + 2096, CANDIDATE: 10000},
}
"""Track -> split -> published number of rows."""


Pairs = dict[str, list[dict[str, str]]]
"""Name of a recording -> its pairs of descriptions so far."""


class _Release:
    """The media and subtitles of one release."""

    def __init__(self, request: Request, findings: Findings) -> None:
        folder = any_of(request.source, ("video", "videos")) or request.source / "video"
        self._videos = MediaFolder(folder, deep=True)
        self._text_of = subtitles(request, findings)

    def clip(self, name: str, split: str | None, dataset: str) -> Clip:
        """Return a clip without labels, with its video and its words."""
        text = self._text_of.get(name) or None
        return Clip(id=name, video=self._videos.path_of(name), text=text, split=split, dataset=dataset)


def read_mer2026(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the labelled clips and the candidates of one track."""
    track = request.options["track"]
    findings.published.update(NUM_CLIPS[track])
    release = _Release(request, findings)
    yield from TRACKS[track](release, request, findings)


def _read_track1(release: _Release, request: Request, findings: Findings) -> Iterator[Clip]:
    if request.wants("train"):
        for row in read_table(_table(request, "track1_train.csv"), EMOTION_COLUMNS, encoding=request.encoding):
            if emotion := findings.label(EMOTIONS, row["emotion"], row.place):
                yield replace(release.clip(row["name"], "train", "mer2026"), labels={"emotion": emotion})
    if request.wants(CANDIDATE):
        seen_only = request.options["listener"] == "seen"
        if seen_only:
            findings.note("the listeners are mute and without words (--option listener=all for what they hear)")
        for clip in _candidates(release, request, "track1_track2_candidate.csv"):
            yield replace(clip, text=None, mute=True) if seen_only else clip


def _read_track2(release: _Release, request: Request, findings: Findings) -> Iterator[Clip]:
    if request.wants("train"):
        by_people: set[str] = set()
        for dataset, name in TRACK2_TABLES.items():
            for row in read_table(_table(request, name), OPENSET_COLUMNS, encoding=request.encoding):
                if dataset == "mer_caption_plus" and row["name"] in by_people:
                    findings.leave_out("people named its emotions too", row["name"])
                    continue
                if dataset == "mer2026_human":
                    by_people.add(row["name"])
                words = list_of(row["openset"])
                if not words:
                    findings.note("clips whose list of words is empty are neutral")
                yield replace(release.clip(row["name"], "train", dataset), labels={"openset": words})
    if request.wants(CANDIDATE):
        yield from _candidates(release, request, "track1_track2_candidate.csv")


def _read_track3(release: _Release, request: Request, findings: Findings) -> Iterator[Clip]:
    if request.wants("train"):
        yield from _preferences("train", release, request, findings)
    if request.wants(CANDIDATE):
        pairs: Pairs = {}
        table = _table(request, "track3_candidate.csv")
        for row in read_table(table, DESCRIPTION_COLUMNS, encoding=request.encoding):
            if clip := _described(release.clip(row["name"], CANDIDATE, "mer2026"), row, pairs, findings):
                yield clip


Track = Callable[[_Release, Request, Findings], Iterator[Clip]]
TRACKS: Mapping[str, Track] = {"1": _read_track1, "2": _read_track2, "3": _read_track3}


def read_emoprefer(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every pair of descriptions with a preference."""
    yield from _preferences(None, _Release(request, findings), request, findings)


def _preferences(split: str | None, release: _Release, request: Request, findings: Findings) -> Iterator[Clip]:
    pairs: Pairs = {}
    for dataset, names in PREFERENCE_TABLES.items():
        columns = {**DESCRIPTION_COLUMNS, **PREFERENCE_COLUMN}
        for row in read_table(_table(request, *names), columns, encoding=request.encoding):
            clip = _described(release.clip(row["name"], split, dataset), row, pairs, findings)
            if clip is not None and (preference := findings.label(PREFERENCES, row["preference"], row.place)):
                yield replace(clip, labels={"preference": preference})


def _described(clip: Clip, row: Row, pairs: Pairs, findings: Findings) -> Clip | None:
    """Return the clip with both descriptions, None if one is empty; its id has the number of the pair in `pairs`."""
    descriptions = texts(a1=row["a1"], a2=row["a2"])
    if len(descriptions) < 2:
        findings.leave_out("a description is empty", row.place)
        return None
    known = pairs.setdefault(clip.id, [])
    if descriptions not in known:
        known.append(descriptions)
    number = known.index(descriptions) + 1
    clip_id = clip.id if number == 1 else f"{clip.id}#{number}"
    return replace(clip, id=clip_id, responses=descriptions, dialogue=clip.id)


def _candidates(release: _Release, request: Request, table: str) -> Iterator[Clip]:
    for row in read_table(_table(request, table), NAME_COLUMN, encoding=request.encoding):
        yield release.clip(row["name"], CANDIDATE, "mer2026")


def _table(request: Request, *names: str) -> Path:
    return first_of(request.source, [*names, *(f"dataset/{name}" for name in names)], "the table")


MER2026 = Importer(
    name="mer2026",
    title="MER2026",
    read=read_mer2026,
    layout=(
        "track1_train.csv: name, discrete; track1_track2_candidate.csv: name",
        "track2_train_human.csv, track2_train_mercaptionplus.csv: name, openset",
        "track3_emoprefer.csv, track3_emopreferv2.csv: name, a1, a2, preference; track3_candidate.csv: name, a1, a2",
        "subtitle_chieng.csv: name, chinese, english",
        "video/<name>.mp4, in any folder below video",
    ),
    licence=LICENCE,
    splits=("train", CANDIDATE),
    options={
        "track": Option("MER-Cross (1), MER-FG (2) or MER-Prefer (3)", "1", tuple(TRACKS)),
        "listener": Option(
            "of track 1: only the pictures, or also sound and words of the other person", "seen", ("seen", "all")
        ),
        "language": LANGUAGE,
    },
)

EMOPREFER = Importer(
    name="emoprefer",
    title="EmoPrefer",
    read=read_emoprefer,
    layout=(
        "preference_emoprefer.csv, preference_emopreferv2.csv: name, a1, a2, preference",
        "any table of name, chinese, english",
        "video/<name>.mp4 of MER2025",
    ),
    licence="The annotations are of the authors of EmoPrefer, Apache-2.0 (github.com/zeroQiaoba/AffectGPT); the clips"
    " are those of the MER challenges. " + LICENCE,
    published={"": 574 + 2096},
    options={"language": LANGUAGE},
)
