"""Turn media files into the tensors of an exported probe, with the decoding of training.

    processor(video="clip.mp4", task="emotion")
    processor(video=["a.mp4", "b.mp4"], audio=[None, "b.wav"], dataset="meld")

A probe answers no open question: it chooses among the labels of a task and dataset of training. It reads the clip's
words only if it was trained on a feature of them.
Shapes: B clips, L labels, M modalities in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import BatchFeature

from featurecache.clips.clip_list import Clip
from featurecache.media.decode import decode_each
from fusion_train.errors import DataError
from fusion_train.prompts.prompt import find_task
from fusion_train.remote.clip_processor import ClipInputs, ClipProcessor, Decode, clips_of
from fusion_train.remote.probe_classes import Classes


class EmotionProbeProcessor(ClipProcessor):
    """Decodes and preprocesses media, and names the classes of a question."""

    prompt_names = ("present", "classes")
    """Tensors of `collate` that no encoder reads."""
    tokenizer = None

    def __init__(
        self,
        encoders: Mapping[str, Any] | None = None,
        networks: Mapping[str, Any] | None = None,
        label_sets: Mapping[str, Any] | None = None,
        tasks: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        """Store the settings, which are as in EmotionProbeConfig."""
        super().__init__()
        self._set_clips(encoders, networks, label_sets, tasks)

    def __call__(
        self,
        video: Any = None,
        audio: Any = None,
        image: Any = None,
        text: Any = None,
        *,
        task: str | None = None,
        dataset: str | None = None,
        peak_frame: Any = None,
        start_s: Any = None,
        end_s: Any = None,
        crop: Any = None,
    ) -> BatchFeature:
        """Prepare one clip, or a batch if any argument is a list.

        Args:
            video, audio, image: paths; without `audio` the sound track of `video` is used.
            text: what the person says, or None.
            task: a task of training; None: the first.
            dataset: dataset of training whose labels are meant; may be left out if only one has labels of the task.
            peak_frame, start_s, end_s, crop: as in a clip list.

        Raises:
            MediaError: a file that cannot be decoded.
            DataError: neither media nor text, lists of different lengths, an invalid crop, or labels that training did
                not have.
        """
        values = {
            "video": video,
            "audio": audio,
            "image": image,
            "text": text,
            "peak_frame": peak_frame,
            "start_s": start_s,
            "end_s": end_s,
            "crop": crop,
        }
        task = task or self.tasks[0]
        labels = self.labels(task, dataset)
        clips = [replace(clip, dataset=dataset) for clip in clips_of(values)]
        return self.collate([self.prepare(clip, task, labels=labels) for clip in clips])

    def prepare(
        self,
        clip: Clip,
        task: str,
        question: str | None = None,
        labels: Sequence[str] = (),
        limit_s: float | None = None,
        decode: Decode = decode_each,
    ) -> ClipInputs:
        """Decode and preprocess one clip; safe to call from several threads.

        Args:
            labels: labels of training to choose among; empty: all of the task and of the clip's dataset.
            limit_s: longest time for decoding.
            decode: replaces `decode_each`.

        Raises:
            MediaError: a file that cannot be decoded, or takes longer than `limit_s`.
            DataError: a question in words, or labels that training did not have.
        """
        if question is not None:
            raise DataError(
                clip.id, expected="a task of training, for a model without language model", got="a question"
            )
        dataset = self._dataset(task, clip.dataset)
        clip_task = find_task(task)
        numbers = Classes(self.label_sets).numbers(
            replace(clip, dataset=dataset), clip_task, labels or self.labels(task, dataset)
        )
        return replace(self.decoded(clip, clip_task, limit_s, decode), classes=numbers)

    def collate(self, clips: Sequence[ClipInputs]) -> BatchFeature:
        """Stack prepared clips, which have equally many labels, into the input tensors of the model."""
        return BatchFeature({"classes": torch.tensor([clip.classes for clip in clips])} | self.stacked(clips))

    def labels(self, task: str, dataset: str | None = None) -> tuple[str, ...]:
        """Return the labels of a task in training, in the order of the probabilities.

        Raises:
            DataError: no such labels, or several datasets that have them and none named.
        """
        return tuple(sorted(self.label_sets[self._dataset(task, dataset)][str(find_task(task).closed_key)]))

    def label_inputs(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of `model.label_probabilities` beside the tensors of a batch: none."""
        return {}

    def _dataset(self, task: str, dataset: str | None) -> str:
        """Return the dataset whose labels are meant: the named one, or the only one that has labels of the task."""
        key = find_task(task).closed_key
        known = [name for name, sets in self.label_sets.items() if sets.get(str(key))]
        if dataset in known or (dataset is None and len(known) == 1):
            return dataset if dataset is not None else known[0]
        if len(known) == 1 and dataset not in self.label_sets:
            return known[0]
        raise DataError(
            f"labels of {task}",
            expected="dataset= one of " + (", ".join(known) or "none: no dataset of training has them"),
            got="none" if dataset is None else f'"{dataset}"',
            next_step="Each dataset has classes of its own." if known else "Tasks: " + ", ".join(self.tasks),
        )
