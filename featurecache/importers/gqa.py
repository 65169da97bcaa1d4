"""GQA: questions on pictures of Visual Genome, made from scene graphs.

Source: cs.stanford.edu/people/dorarad/gqa: `{train,val,testdev}_balanced_questions.json`, an object of question id ->
{imageId, question, answer}; or the list that LAVIS packs, {image, question, answer}.
"""

from __future__ import annotations

from collections.abc import Iterator

from featurecache.clips.clip_list import Clip, Question
from featurecache.importers import Importer, Request
from featurecache.importers.findings import Findings
from featurecache.importers.image_text import IMAGES, Asked, annotation_files, clips_of, field, most_common
from featurecache.importers.tables import read_json

PATTERNS = ("*_balanced_questions.json", "gqa_*.json")


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every picture with its questions."""
    yield from clips_of(_questions(request, found), "gqa", request)


def _questions(request: Request, found: Findings) -> Iterator[Asked]:
    for path in annotation_files(request.source, PATTERNS, "{train,val,testdev}_balanced_questions.json"):
        split = next((word for word in ("train", "val", "testdev", "test") if word in path.stem), "train")
        document = read_json(path, object, request.encoding)
        for each in document if isinstance(document, list) else document.values():
            answer = field(each, "answer", path.name)
            answer = most_common(answer) if isinstance(answer, list) else str(answer)
            if not answer:
                found.leave_out("a question without an answer", path.name)
                continue
            name = each["image"] if "image" in each else f"{field(each, 'imageId', path.name)}.jpg"
            yield name, split, Question("vqa", answer, str(field(each, "question", path.name)).strip())


IMPORTER = Importer(
    name="gqa",
    title="GQA",
    read=read,
    layout=("{train,val,testdev}_balanced_questions.json or gqa_*.json", "images/<imageId>.jpg"),
    licence="Stanford University, CC BY 4.0: cs.stanford.edu/people/dorarad/gqa; pictures of Visual Genome.",
    options={"images": IMAGES},
)
