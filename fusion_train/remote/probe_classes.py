"""The class number of every label that a probe was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featurecache.clips.clip_list import Clip
from fusion_train.errors import DataError
from fusion_train.prompts.prompt import Task


class Classes:
    """The class number of every label of every dataset and label task."""

    def __init__(self, sets: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Number the labels.

        Args:
            sets: dataset -> label task -> closed set of labels.
        """
        keys = [
            (dataset, task, label)
            for dataset in sorted(sets)
            for task in sorted(sets[dataset])
            for label in sets[dataset][task]
        ]
        self._number = {key: number for number, key in enumerate(keys)}

    def __len__(self) -> int:
        return len(self._number)

    def numbers(self, clip: Clip, task: Task, labels: Sequence[str]) -> list[int]:
        """Return the class numbers of a clip's closed set.

        Raises:
            DataError: a label that training did not have.
        """
        keys = [(clip.dataset or "", task.key, label) for label in labels]
        unknown = [key[2] for key in keys if key not in self._number]
        if unknown or not keys:
            raise DataError(
                clip.id,
                expected=f"labels of {task.name} of dataset {clip.dataset!r} that were trained on",
                got=", ".join(unknown) or "none",
            )
        return [self._number[key] for key in keys]
