"""COCO captions: pictures with five captions each.

Source: cocodataset.org, `captions_{train,val}{2014,2017}.json`, or the Karpathy split as LAVIS packs it: a list of
{image, caption}.
"""

from __future__ import annotations

from collections.abc import Iterator

from featurecache.clips.clip_list import Clip, Question
from featurecache.importers import Importer, Request
from featurecache.importers.findings import Findings
from featurecache.importers.image_text import IMAGES, Asked, annotation_files, clips_of, field, split_of
from featurecache.importers.tables import read_json

PATTERNS = ("captions_*.json", "coco_karpathy_*.json")


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every picture with its captions."""
    yield from clips_of(_captions(request, found), "coco_caption", request)


def _captions(request: Request, found: Findings) -> Iterator[Asked]:
    for path in annotation_files(request.source, PATTERNS, "captions_{train,val}2014.json or coco_karpathy_*.json"):
        split = split_of(path.stem)
        document = read_json(path, object, request.encoding)
        if isinstance(document, list):
            pairs = [(field(each, "image", path.name), field(each, "caption", path.name)) for each in document]
        else:
            names = {
                field(each, "id", path.name): field(each, "file_name", path.name)
                for each in field(document, "images", path.name)
            }  # type: ignore[attr-defined]
            pairs = [
                (names.get(field(each, "image_id", path.name)), field(each, "caption", path.name))
                for each in field(document, "annotations", path.name)
            ]  # type: ignore[attr-defined]
        for name, caption in pairs:
            captions = caption if isinstance(caption, list) else [caption]
            for text in captions:
                if name is None or not str(text).strip():
                    found.leave_out("a caption of no picture, or an empty one", path.name)
                else:
                    yield str(name), split, Question("caption", " ".join(str(text).split()))


IMPORTER = Importer(
    name="coco-caption",
    title="COCO captions",
    read=read,
    layout=("annotations/captions_{train,val}{2014,2017}.json or coco_karpathy_*.json", "{train,val}2014/<file>.jpg"),
    licence="COCO Consortium; captions CC BY 4.0, pictures under the terms of Flickr: cocodataset.org.",
    options={"images": IMAGES},
)
