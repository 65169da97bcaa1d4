"""What the image-text sets share: one clip for each picture, with all questions that are asked of it.

A picture is encoded once, whatever the number of captions or questions; they are `questions` of its clip. Pictures of
COCO lie in folders named after the release (`train2014`), which tables name with the file or leave out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from featurecache.clips.clip_list import Clip, Question
from featurecache.errors import DatasetError
from featurecache.importers import Option, Request
from featurecache.importers.folders import contents

IMAGES = Option("folder of the pictures, where it is not below the source", "")
SPLIT_WORDS = re.compile(r"(train|val|test)")
Asked = tuple[str, str, Question]
"""File name of the picture, split, question."""


class ImageFolders:
    """Finds pictures by the names that tables have for them."""

    def __init__(self, request: Request) -> None:
        """Raises DatasetError where the folder that the user names is not there."""
        named = request.options.get("images", "")
        root = request.source if request.source.is_dir() else request.source.parent
        if named:
            root = root / named
            if not root.is_dir():
                raise DatasetError(f"--option images={named}", expected="a folder", got=contents(root))
        self._roots = [root, root / "images", root / "images" / "mscoco"]

    def find(self, name: str) -> Path:
        """Return the picture's path, or where it is expected."""
        plain = PurePosixPath(name)
        release = re.match(r"COCO_([a-z]+\d{4})_", plain.name)
        tails = [plain, *([PurePosixPath(release[1]) / plain.name] if release else []), PurePosixPath(plain.name)]
        for number, root in enumerate(self._roots):
            for tail in tails:
                if (root / tail).is_file():
                    self._roots.insert(0, self._roots.pop(number))  # the next one most likely lies beside it
                    return root / tail
        return self._roots[0] / tails[0]


def clips_of(asked: Iterable[Asked], dataset: str, request: Request) -> Iterator[Clip]:
    """Group questions by picture; the id is the file's name without ending, and the split where it is in several."""
    pictures: dict[tuple[str, str], list[Question]] = {}
    for name, split, question in asked:
        if request.wants(split):
            pictures.setdefault((name, split), []).append(question)
    splits = Counter(name for name, _ in pictures)
    folders = ImageFolders(request)
    for (name, split), questions in pictures.items():
        stem = PurePosixPath(name).stem
        yield Clip(
            id=stem if splits[name] == 1 else f"{stem}_{split}",
            image=folders.find(name),
            split=split,
            dataset=dataset,
            questions=tuple(questions),
        )


def split_of(name: str, default: str = "train") -> str:
    """Return the split that a file's or folder's name says."""
    match = SPLIT_WORDS.search(name.lower())
    return match[1] if match else default


def most_common(answers: Iterable[str]) -> str:
    """Return the answer that most people gave; the first of those given equally often."""
    counted = Counter(answer.strip() for answer in answers if answer.strip())
    return counted.most_common(1)[0][0] if counted else ""


def annotation_files(source: Path, patterns: Iterable[str], expected: str) -> list[Path]:
    """Return the JSON files of these patterns, or `source` itself where it is a file.

    Raises:
        DatasetError: there is none.
    """
    if source.is_file():
        return [source]
    places = (source, source / "annotations")
    found = {path for place in places for pattern in patterns for path in place.glob(pattern)}
    if not found:
        raise DatasetError(str(source), expected=expected, got=contents(source))
    return sorted(found)


def field(item: object, key: str, place: str) -> object:
    """Return a value of a JSON object.

    Raises:
        DatasetError: it is not there; the keys that are there, are named.
    """
    if not isinstance(item, dict) or key not in item:
        got = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
        raise DatasetError(place, expected=f'an object with "{key}"', got=got)
    return item[key]
