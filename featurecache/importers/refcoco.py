"""RefCOCO, RefCOCO+ and RefCOCOg: phrases that single out one thing in a picture, answered by its box.

Source: github.com/lichengunc/refer. The refs are released as a pickle, which is not read: save it as JSON beside
`instances.json` (`json.dump(pickle.load(open("refs(unc).p", "rb")), open("refs(unc).json", "w"))`, in an environment
where you trust the file). The packaging of MDETR (`finetune_refcoco_train.json`) is read too.
An answer is `{<x1><y1><x2><y2>}`, hundredths of the picture's width and height, as MiniGPT-v2 writes boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from featurecache.clips.clip_list import Clip, Question
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Request
from featurecache.importers.findings import Findings
from featurecache.importers.folders import any_of, contents
from featurecache.importers.image_text import IMAGES, Asked, clips_of, field
from featurecache.importers.tables import read_json

COCO_NAME = "COCO_train2014_{:012d}.jpg"
HUNDREDTHS = 100


def read(dataset: str, request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every picture with its phrases."""
    yield from clips_of(_phrases(dataset, request, found), dataset, request)


def box_answer(box: Sequence[float], width: float, height: float) -> str:
    """Return the text of a box given as x, y, width, height in pixels."""
    x, y, w, h = box
    edges = (x / width, y / height, (x + w) / width, (y + h) / height)
    return "{" + "".join(f"<{min(max(int(edge * HUNDREDTHS), 0), HUNDREDTHS)}>" for edge in edges) + "}"


def _phrases(dataset: str, request: Request, found: Findings) -> Iterator[Asked]:
    folder = any_of(request.source, (dataset, f"*/{dataset}")) or request.source
    packed = sorted(path for place in {folder, request.source} for path in place.glob(f"finetune_{dataset}_*.json"))
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
        yield from _of_refs(refs, folder, request, found)
        return
    for path in packed:
        document = read_json(path, dict, request.encoding)
        boxes: dict[Any, Any] = {
            field(each, "image_id", path.name): field(each, "bbox", path.name)
            for each in field(document, "annotations", path.name)
        }  # type: ignore[attr-defined]
        split = path.stem.rsplit("_", 1)[-1]
        for image in field(document, "images", path.name):  # type: ignore[attr-defined]
            box = boxes.get(field(image, "id", path.name))
            if box is None:
                found.leave_out("a phrase without a box", path.name)
                continue
            size = (field(image, "width", path.name), field(image, "height", path.name))
            yield image["file_name"], split, _question(str(field(image, "caption", path.name)), box, size)


def _of_refs(refs: Path, folder: Path, request: Request, found: Findings) -> Iterator[Asked]:
    path = any_of(folder, ("instances.json",))
    if path is None:
        raise DatasetError(str(folder), expected="instances.json beside the refs", got=contents(folder))
    instances = read_json(path, dict, request.encoding)
    images: dict[Any, Mapping[str, Any]] = {
        field(each, "id", path.name): each for each in field(instances, "images", path.name)
    }  # type: ignore[attr-defined]
    boxes = {
        field(each, "id", path.name): field(each, "bbox", path.name)
        for each in field(instances, "annotations", path.name)
    }  # type: ignore[attr-defined]
    for ref in read_json(refs, list, request.encoding):
        image, box = images.get(field(ref, "image_id", refs.name)), boxes.get(field(ref, "ann_id", refs.name))
        if image is None or box is None:
            found.leave_out("a phrase without a picture or a box", str(ref.get("ref_id")))
            continue
        name = image.get("file_name") or COCO_NAME.format(ref["image_id"])
        size = (field(image, "width", path.name), field(image, "height", path.name))
        for sentence in field(ref, "sentences", refs.name):  # type: ignore[attr-defined]
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
