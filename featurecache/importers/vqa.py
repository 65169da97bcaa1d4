"""VQA v2, OK-VQA and A-OKVQA: questions on pictures of COCO, answered by several people.

Source: visualqa.org, okvqa.allenai.org, allenai.org/project/a-okvqa; and the lists that LAVIS packs from them
({image, question, answer or direct_answers}). The answer that most people gave is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from featurecache.clips.clip_list import Clip, Question
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Request
from featurecache.importers.findings import Findings
from featurecache.importers.folders import contents
from featurecache.importers.image_text import IMAGES, Asked, annotation_files, clips_of, field, most_common, split_of
from featurecache.importers.tables import read_json


def read(dataset: str, patterns: Sequence[str], request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every picture with its questions."""
    yield from clips_of(_questions(patterns, request, found), dataset, request)


def _questions(patterns: Sequence[str], request: Request, found: Findings) -> Iterator[Asked]:
    for path in annotation_files(request.source, patterns, " or ".join(patterns)):
        split = split_of(path.stem)
        document = read_json(path, object, request.encoding)
        if isinstance(document, list):
            asked = _of_list(document, path)
        else:
            asked = _of_release(document, path, request)
        for name, text, answer in asked:
            if answer:
                yield name, split, Question("vqa", answer, text.strip())
            else:
                found.leave_out("a question without an answer", path.name)


def _of_list(document: Sequence[Any], path: Path) -> Iterator[tuple[str, str, str]]:
    """A-OKVQA as released, and everything that LAVIS packs."""
    for each in document:
        answers = each.get("direct_answers", each.get("answer")) if isinstance(each, dict) else None
        if answers is None:
            answers = field(each, "answer", path.name)
        if not answers and each.get("choices") and each.get("correct_choice_idx") is not None:
            answers = each["choices"][each["correct_choice_idx"]]
        name = each.get("image")
        if name is None:
            name = f"{split_of(path.stem)}2017/{int(field(each, 'image_id', path.name)):012d}.jpg"  # type: ignore[call-overload]
        text = str(field(each, "question", path.name))
        yield str(name), text, most_common(answers if isinstance(answers, list) else [str(answers)])


def _of_release(document: Any, path: Path, request: Request) -> Iterator[tuple[str, str, str]]:
    """VQA v2 and OK-VQA: questions in one file, answers in another."""
    beside = path.with_name(path.name.replace("OpenEnded_", "").replace("_questions", "_annotations"))
    if not beside.is_file():
        raise DatasetError(str(path), expected=f"{beside.name} beside it", got=contents(path.parent))
    answers = {}
    for each in field(read_json(beside, dict, request.encoding), "annotations", beside.name):  # type: ignore[attr-defined]
        given = [str(field(answer, "answer", beside.name)) for answer in each.get("answers", ())]
        answers[field(each, "question_id", beside.name)] = str(each.get("multiple_choice_answer") or most_common(given))
    release = str(document.get("data_subtype") or f"{split_of(path.stem)}2014")
    for each in field(document, "questions", path.name):  # type: ignore[attr-defined]
        number = int(field(each, "image_id", path.name))  # type: ignore[call-overload]
        answer = answers.get(field(each, "question_id", path.name), "")
        yield f"{release}/COCO_{release}_{number:012d}.jpg", str(field(each, "question", path.name)), answer


def _importer(name: str, title: str, dataset: str, patterns: tuple[str, ...], layout: str, licence: str) -> Importer:
    return Importer(
        name=name,
        title=title,
        read=partial(read, dataset, patterns),
        layout=(layout, "{train,val}{2014,2017}/<file>.jpg"),
        licence=f"{licence}; pictures of COCO under the terms of Flickr.",
        options={"images": IMAGES},
    )


COCO_VQA = _importer(
    "coco-vqa",
    "VQA v2",
    "coco_vqa",
    ("v2_OpenEnded_*_questions.json", "vqa_*.json"),
    "v2_OpenEnded_mscoco_{train,val}2014_questions.json and v2_mscoco_{train,val}2014_annotations.json",
    "Georgia Tech and Virginia Tech, CC BY 4.0: visualqa.org",
)
OK_VQA = _importer(
    "ok-vqa",
    "OK-VQA",
    "ok_vqa",
    ("OpenEnded_*_questions.json", "okvqa_*.json"),
    "OpenEnded_mscoco_{train,val}2014_questions.json and mscoco_{train,val}2014_annotations.json",
    "Allen Institute for AI: okvqa.allenai.org",
)
AOK_VQA = _importer(
    "aok-vqa",
    "A-OKVQA",
    "aok_vqa",
    ("aokvqa_*.json",),
    "aokvqa_v1p0_{train,val,test}.json",
    "Allen Institute for AI, Apache-2.0: github.com/allenai/aokvqa",
)
