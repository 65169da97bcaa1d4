"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg, phrases that describe one object of a picture.

Source: github.com/lichengunc/refer, and the packaging of MDETR (`finetune_refcoco_train.json`). The expressions are
released as a pickle, which this module does not read. Convert it to JSON beside `instances.json`, in an environment
where you trust the file: `json.dump(pickle.load(open("refs(unc).p", "rb")), open("refs(unc).json", "w"))`.
The answer is the box of the object, `{<x1><y1><x2><y2>}` in hundredths of the picture's width and height, the format of
MiniGPT-v2.
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
from featurecache.importers.folders import any_of, contents
from featurecache.importers.image_text import IMAGES, PictureQuestion, clips_of, field
from featurecache.importers.tables import read_json

COCO_NAME = "COCO_train2014_{:012d}.jpg"
HUNDREDTHS = 100


def read(dataset: str, request: Request, findings: Findings) -> Iterator[Clip]:
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
        yield from _released(refs, folder, request, findings)
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
            yield image["file_name"], split, _question(str(field(image, "caption", path.name)), box, size)


def _released(refs: Path, folder: Path, request: Request, findings: Findings) -> Iterator[PictureQuestion]:
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
            yield name, str(field(ref, "split", refs.name)), _question(text, box, size)


def _question(phrase: str, box: Any, size: tuple[Any, Any]) -> Question:
    return Question("refer", box_answer(box, *size), phrase.strip())


def _importer(name: str, title: str) -> Importer:
    dataset = name.replace("-plus", "+")
    return Importer(
        name=name,
        title=title,
        read=partial(read, dataset),
        layout=(
            f"{dataset}/refs(*).json, saved from the released pickle, and {dataset}/instances.json",
            f"or finetune_{dataset}_{{train,val,testA,testB,test}}.json",
            "images/mscoco/train2014/<file>.jpg",
        ),
        licence="The phrases are of Kazemzadeh, Yu, Mao and others (github.com/lichengunc/refer), Apache-2.0; pictures"
        " of COCO under the terms of Flickr.",
        options={"images": IMAGES},
    )


REFCOCO = _importer("refcoco", "RefCOCO")
REFCOCO_PLUS = _importer("refcoco-plus", "RefCOCO+")
REFCOCOG = _importer("refcocog", "RefCOCOg")
