"""Image-text datasets: COCO captions, VQA v2, OK-VQA, A-OKVQA, GQA, RefCOCO, RefCOCO+, RefCOCOg.

One clip stands for one picture. All captions and questions of the picture are `questions` of its clip, so the picture
is encoded once. Where several people answered a question, the most frequent answer is used.

Sources: cocodataset.org, visualqa.org, okvqa.allenai.org, allenai.org/project/a-okvqa,
cs.stanford.edu/people/dorarad/gqa; and the lists that LAVIS packs from them: {image, caption} or {image, question,
answer or direct_answers}. Referring expressions: github.com/lichengunc/refer, and the packaging of MDETR
(`finetune_refcoco_train.json`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from featurecache.clips.clip_list import Clip, Question
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Option, Request
from featurecache.importers.findings import Findings
from featurecache.importers.folders import any_of, contents
from featurecache.importers.tables import read_json

IMAGES = Option("folder of the pictures, where it is not below the source", "")
SPLIT_WORDS = re.compile(r"(train|val|test)")
PictureQuestion = tuple[str, str, Question]
"""(file name of the picture, split, question)."""


class ImageFolders:
    """Finds the file of a picture by the name that a table gives."""

    def __init__(self, request: Request) -> None:
        """Raises DatasetError if the folder of the option `images` does not exist."""
        images = request.options.get("images", "")
        root = request.source if request.source.is_dir() else request.source.parent
        if images:
            root = root / images
            if not root.is_dir():
                raise DatasetError(f"--option images={images}", expected="a folder", got=contents(root))
        self._roots = [root, root / "images", root / "images" / "mscoco"]

    def find(self, name: str) -> Path:
        """Return the path of the picture; if no file is there, the path where it is expected.

        Pictures of COCO lie in a folder per release (`train2014`); some tables state it and some do not.
        """
        path = PurePosixPath(name)
        release = re.match(r"COCO_([a-z]+\d{4})_", path.name)
        tails = [path, *([PurePosixPath(release[1]) / path.name] if release else []), PurePosixPath(path.name)]
        for index, root in enumerate(self._roots):
            for tail in tails:
                if (root / tail).is_file():
                    self._roots.insert(0, self._roots.pop(index))  # the next picture is most likely in the same folder
                    return root / tail
        return self._roots[0] / tails[0]


def clips_of(questions: Iterable[PictureQuestion], dataset: str, request: Request) -> Iterator[Clip]:
    """Yield one clip per picture and split, with all its questions.

    The id is the file name without its ending; a picture that is in several splits also gets the split.
    """
    pictures: dict[tuple[str, str], list[Question]] = {}
    for name, split, question in questions:
        if request.wants(split):
            pictures.setdefault((name, split), []).append(question)
    num_splits = Counter(name for name, _ in pictures)
    folders = ImageFolders(request)
    for (name, split), picture_questions in pictures.items():
        stem = PurePosixPath(name).stem
        yield Clip(
            id=stem if num_splits[name] == 1 else f"{stem}_{split}",
            image=folders.find(name),
            split=split,
            dataset=dataset,
            questions=tuple(picture_questions),
        )


def split_of(name: str) -> str:
    """Return the split in the name of a file; `train` if it names none."""
    match = SPLIT_WORDS.search(name.lower())
    return match[1] if match else "train"


def most_common(answers: Iterable[str]) -> str:
    """Return the most frequent answer; of equally frequent ones, the first."""
    counts = Counter(answer.strip() for answer in answers if answer.strip())
    return counts.most_common(1)[0][0] if counts else ""


def annotation_files(source: Path, patterns: Iterable[str], expected: str) -> list[Path]:
    """Return the JSON files that match the patterns, or `source` itself if it is a file.

    Raises:
        DatasetError: no file matches.
    """
    if source.is_file():
        return [source]
    folders = (source, source / "annotations")
    paths = {path for folder in folders for pattern in patterns for path in folder.glob(pattern)}
    if not paths:
        raise DatasetError(str(source), expected=expected, got=contents(source))
    return sorted(paths)


def field(item: object, key: str, place: str) -> Any:
    """Return a value of a JSON object.

    Raises:
        DatasetError: the object lacks the key; the message lists its keys.
    """
    if not isinstance(item, dict) or key not in item:
        got = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
        raise DatasetError(place, expected=f'an object with "{key}"', got=got)
    return item[key]


# COCO captions

CAPTION_FILES = ("captions_*.json", "coco_karpathy_*.json")


def read_captions(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every picture with its captions."""
    yield from clips_of(_captions(request, findings), "coco_caption", request)


def _captions(request: Request, findings: Findings) -> Iterator[PictureQuestion]:
    for path in annotation_files(
        request.source, CAPTION_FILES, "captions_{train,val}2014.json or coco_karpathy_*.json"
    ):
        split = split_of(path.stem)
        document = read_json(path, object, request.encoding)
        if isinstance(document, list):  # as LAVIS packs them
            pairs = [(field(item, "image", path.name), field(item, "caption", path.name)) for item in document]
        else:
            names = {
                field(image, "id", path.name): field(image, "file_name", path.name)
                for image in field(document, "images", path.name)
            }
            pairs = [
                (names.get(field(annotation, "image_id", path.name)), field(annotation, "caption", path.name))
                for annotation in field(document, "annotations", path.name)
            ]
        for name, caption in pairs:
            for text in caption if isinstance(caption, list) else [caption]:
                if name is None or not str(text).strip():
                    findings.leave_out("a caption of no picture, or an empty one", path.name)
                else:
                    yield str(name), split, Question("caption", " ".join(str(text).split()))


COCO_CAPTION = Importer(
    name="coco-caption",
    title="COCO captions",
    read=read_captions,
    layout=("annotations/captions_{train,val}{2014,2017}.json or coco_karpathy_*.json", "{train,val}2014/<file>.jpg"),
    licence="COCO Consortium; captions CC BY 4.0, pictures under the terms of Flickr: cocodataset.org.",
    options={"images": IMAGES},
)

# VQA v2, OK-VQA, A-OKVQA


def read_vqa(dataset: str, patterns: Sequence[str], request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every picture with its questions."""
    yield from clips_of(_vqa_questions(patterns, request, findings), dataset, request)


def _vqa_questions(patterns: Sequence[str], request: Request, findings: Findings) -> Iterator[PictureQuestion]:
    for path in annotation_files(request.source, patterns, " or ".join(patterns)):
        split = split_of(path.stem)
        document = read_json(path, object, request.encoding)
        if isinstance(document, list):
            rows = _vqa_list(document, path)
        else:
            rows = _vqa_release(document, path, request)
        for name, text, answer in rows:
            if answer:
                yield name, split, Question("vqa", answer, text.strip())
            else:
                findings.leave_out("a question without an answer", path.name)


def _vqa_list(document: Sequence[Any], path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (picture, question, answer) of one list: A-OKVQA as released, and the lists of LAVIS."""
    for item in document:
        answers = item.get("direct_answers", item.get("answer")) if isinstance(item, dict) else None
        if answers is None:
            answers = field(item, "answer", path.name)
        if not answers and item.get("choices") and item.get("correct_choice_idx") is not None:
            answers = item["choices"][item["correct_choice_idx"]]
        name = item.get("image")
        if name is None:
            name = f"{split_of(path.stem)}2017/{int(field(item, 'image_id', path.name)):012d}.jpg"
        text = str(field(item, "question", path.name))
        yield str(name), text, most_common(answers if isinstance(answers, list) else [str(answers)])


def _vqa_release(document: Any, path: Path, request: Request) -> Iterator[tuple[str, str, str]]:
    """Yield (picture, question, answer) of VQA v2 and OK-VQA, which have a file of questions and a file of answers."""
    answer_path = path.with_name(path.name.replace("OpenEnded_", "").replace("_questions", "_annotations"))
    if not answer_path.is_file():
        raise DatasetError(str(path), expected=f"{answer_path.name} beside it", got=contents(path.parent))
    answers = {}
    for annotation in field(read_json(answer_path, dict, request.encoding), "annotations", answer_path.name):
        texts = [str(field(answer, "answer", answer_path.name)) for answer in annotation.get("answers", ())]
        question_id = field(annotation, "question_id", answer_path.name)
        answers[question_id] = str(annotation.get("multiple_choice_answer") or most_common(texts))
    release = str(document.get("data_subtype") or f"{split_of(path.stem)}2014")
    for item in field(document, "questions", path.name):
        number = int(field(item, "image_id", path.name))
        answer = answers.get(field(item, "question_id", path.name), "")
        yield f"{release}/COCO_{release}_{number:012d}.jpg", str(field(item, "question", path.name)), answer


def _vqa(name: str, title: str, dataset: str, patterns: tuple[str, ...], layout: str, licence: str) -> Importer:
    return Importer(
        name=name,
        title=title,
        read=partial(read_vqa, dataset, patterns),
        layout=(layout, "{train,val}{2014,2017}/<file>.jpg"),
        licence=f"{licence}; pictures of COCO under the terms of Flickr.",
        options={"images": IMAGES},
    )


COCO_VQA = _vqa(
    "coco-vqa",
    "VQA v2",
    "coco_vqa",
    ("v2_OpenEnded_*_questions.json", "vqa_*.json"),
    "v2_OpenEnded_mscoco_{train,val}2014_questions.json and v2_mscoco_{train,val}2014_annotations.json",
    "Georgia Tech and Virginia Tech, CC BY 4.0: visualqa.org",
)
OK_VQA = _vqa(
    "ok-vqa",
    "OK-VQA",
    "ok_vqa",
    ("OpenEnded_*_questions.json", "okvqa_*.json"),
    "OpenEnded_mscoco_{train,val}2014_questions.json and mscoco_{train,val}2014_annotations.json",
    "Allen Institute for AI: okvqa.allenai.org",
)
AOK_VQA = _vqa(
    "aok-vqa",
    "A-OKVQA",
    "aok_vqa",
    ("aokvqa_*.json",),
    "aokvqa_v1p0_{train,val,test}.json",
    "Allen Institute for AI, Apache-2.0: github.com/allenai/aokvqa",
)

# GQA: pictures of Visual Genome; one answer per question, derived from a scene graph.

GQA_FILES = ("*_balanced_questions.json", "gqa_*.json")


def read_gqa(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every picture with its questions."""
    yield from clips_of(_gqa_questions(request, findings), "gqa", request)


def _gqa_questions(request: Request, findings: Findings) -> Iterator[PictureQuestion]:
    for path in annotation_files(request.source, GQA_FILES, "{train,val,testdev}_balanced_questions.json"):
        split = next((word for word in ("train", "val", "testdev", "test") if word in path.stem), "train")
        document = read_json(path, object, request.encoding)
        for item in document if isinstance(document, list) else document.values():
            answer = field(item, "answer", path.name)
            answer = most_common(answer) if isinstance(answer, list) else str(answer)
            if not answer:
                findings.leave_out("a question without an answer", path.name)
                continue
            name = item["image"] if "image" in item else f"{field(item, 'imageId', path.name)}.jpg"
            yield name, split, Question("vqa", answer, str(field(item, "question", path.name)).strip())


GQA = Importer(
    name="gqa",
    title="GQA",
    read=read_gqa,
    layout=("{train,val,testdev}_balanced_questions.json or gqa_*.json", "images/<imageId>.jpg"),
    licence="Stanford University, CC BY 4.0: cs.stanford.edu/people/dorarad/gqa; pictures of Visual Genome.",
    options={"images": IMAGES},
)


# RefCOCO, RefCOCO+, RefCOCOg: phrases that describe one object of a picture. The answer is the box of the object,
# {<x1><y1><x2><y2>} in hundredths of the picture's width and height, the format of MiniGPT-v2. The expressions are
# released as a pickle, which is not read; docs/guides/datasets.md has the line that converts it to JSON beside
# `instances.json`, in an environment where you trust the file.

COCO_NAME = "COCO_train2014_{:012d}.jpg"
HUNDREDTHS = 100


def read_phrases(dataset: str, request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every picture with its expressions."""
    yield from clips_of(_phrases(dataset, request, findings), dataset, request)


def box_answer(box: Sequence[float], width: float, height: float) -> str:
    """Return the answer for a box of (x, y, width, height) in pixels, in a picture of `width` × `height` pixels."""
    x, y, w, h = box
    edges = (x / width, y / height, (x + w) / width, (y + h) / height)
    return "{" + "".join(f"<{min(max(int(edge * HUNDREDTHS), 0), HUNDREDTHS)}>" for edge in edges) + "}"


def _phrases(dataset: str, request: Request, findings: Findings) -> Iterator[PictureQuestion]:
    """Yield the expressions of the release (`refs`) if it is there, else those of the MDETR files."""
    folder = any_of(request.source, (dataset, f"*/{dataset}")) or request.source
    packed = sorted(path for root in {folder, request.source} for path in root.glob(f"finetune_{dataset}_*.json"))
    refs = any_of(folder, ("refs(*).json", "refs*.json"))
    if not packed and refs is None:
        pickled = any_of(folder, ("refs(*).p", "refs*.p"))
        raise DatasetError(
            str(folder),
            expected=f"refs(*).json and instances.json, or finetune_{dataset}_train.json",
            got=f"{pickled.name}, a pickle, which is not read" if pickled else contents(folder),
            next_step="Save the pickle as JSON first; docs/guides/datasets.md has the line." if pickled else None,
        )
    if refs is not None:
        yield from _released_phrases(refs, folder, request, findings)
        return
    for path in packed:
        document = read_json(path, dict, request.encoding)
        boxes = {
            field(annotation, "image_id", path.name): field(annotation, "bbox", path.name)
            for annotation in field(document, "annotations", path.name)
        }
        split = path.stem.rsplit("_", 1)[-1]
        for image in field(document, "images", path.name):
            box = boxes.get(field(image, "id", path.name))
            if box is None:
                findings.leave_out("a phrase without a box", path.name)
                continue
            size = (field(image, "width", path.name), field(image, "height", path.name))
            yield image["file_name"], split, _phrase(str(field(image, "caption", path.name)), box, size)


def _released_phrases(refs: Path, folder: Path, request: Request, findings: Findings) -> Iterator[PictureQuestion]:
    """Yield the expressions of the release; the pictures and boxes come from `instances.json`."""
    path = any_of(folder, ("instances.json",))
    if path is None:
        raise DatasetError(str(folder), expected="instances.json beside the refs", got=contents(folder))
    instances = read_json(path, dict, request.encoding)
    images = {field(image, "id", path.name): image for image in field(instances, "images", path.name)}
    boxes = {
        field(annotation, "id", path.name): field(annotation, "bbox", path.name)
        for annotation in field(instances, "annotations", path.name)
    }
    for ref in read_json(refs, list, request.encoding):
        image, box = images.get(field(ref, "image_id", refs.name)), boxes.get(field(ref, "ann_id", refs.name))
        if image is None or box is None:
            findings.leave_out("a phrase without a picture or a box", str(ref.get("ref_id")))
            continue
        name = image.get("file_name") or COCO_NAME.format(ref["image_id"])
        size = (field(image, "width", path.name), field(image, "height", path.name))
        for sentence in field(ref, "sentences", refs.name):
            text = str(sentence.get("raw") or field(sentence, "sent", refs.name))
            yield name, str(field(ref, "split", refs.name)), _phrase(text, box, size)


def _phrase(phrase: str, box: Any, size: tuple[Any, Any]) -> Question:
    return Question("refer", box_answer(box, *size), phrase.strip())


def _refcoco(name: str, title: str) -> Importer:
    dataset = name.replace("-plus", "+")
    return Importer(
        name=name,
        title=title,
        read=partial(read_phrases, dataset),
        layout=(
            f"{dataset}/refs(*).json, saved from the released pickle, and {dataset}/instances.json",
            f"or finetune_{dataset}_{{train,val,testA,testB,test}}.json",
            "images/mscoco/train2014/<file>.jpg",
        ),
        licence="The phrases are of Kazemzadeh, Yu, Mao and others (github.com/lichengunc/refer), Apache-2.0; pictures"
        " of COCO under the terms of Flickr.",
        options={"images": IMAGES},
    )


REFCOCO = _refcoco("refcoco", "RefCOCO")
REFCOCO_PLUS = _refcoco("refcoco-plus", "RefCOCO+")
REFCOCOG = _refcoco("refcocog", "RefCOCOg")
