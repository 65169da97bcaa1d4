"""From media files and a question to the tensors of an exported model: the decoding and prompt that trained it.

    processor(video="clip.mp4", text="I see.", task="emotion")
    processor(video=["a.mp4", "b.mp4"], text=["I see.", None], task="reason")
    processor(audio="voice.wav", image="face.png", question="Does the person seem at ease?")

Shapes: B clips, L tokens of the longest prompt (padded on the left), M modalities in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

from featurecache.clips.clip_list import Clip
from featurecache.clips.crop import parse_crop
from featurecache.errors import MediaError
from featurecache.media.decode import Absent, Decoded, decode_each
from featurecache.views import View
from fusion_train.errors import DataError
from fusion_train.models.answering import pad_left
from fusion_train.models.recall import RECALL_TOKEN
from fusion_train.prompts.limits import PromptLimits, TooLong
from fusion_train.prompts.prompt import MAX_PROMPT_TOKENS, PromptFormat, Task, encode_answer, encode_prompt, find_task
from fusion_train.remote.configuration_emotion_llama import read_spec
from fusion_train.remote.encoding import INPUTS, needs_valid, rebuild_encoder

logger = logging.get_logger(__name__)

Decode = Callable[[Clip, Sequence[View], float | None], list[Decoded | MediaError]]
"""`media.decode_each` without its further arguments, or what stands in for it."""


@dataclass(frozen=True)
class ClipInputs:
    """One clip, ready to be stacked into a batch; a modality that it lacks, or that the task hides, is not in it."""

    id: str
    prompt_ids: list[int]
    views: Mapping[str, np.ndarray]
    """Modality -> what was decoded: frames (F, H, W, 3) uint8 or a waveform (S,) float32."""
    inputs: Mapping[str, np.ndarray]
    """Modality -> the network's input."""
    valid: Mapping[str, int]
    """Modality -> encoder tokens that the clip fills, where the pooling asks."""


class EmotionLlamaProcessor(ProcessorMixin):
    """Decodes, preprocesses, tokenises."""

    def __init__(
        self,
        tokenizer: Any = None,
        encoders: Mapping[str, Any] | None = None,
        networks: Mapping[str, Any] | None = None,
        soft_counts: Mapping[str, int] | None = None,
        prompt: Mapping[str, Any] | None = None,
        label_sets: Mapping[str, Any] | None = None,
        tasks: Sequence[str] = (),
        recall_keys: Sequence[str] = (),
        absent: str = "hidden",
        max_prompt_tokens: int = MAX_PROMPT_TOKENS,
        too_long: TooLong = "refuse",
        **kwargs: Any,
    ) -> None:
        """Arguments as in EmotionLlamaConfig; those besides:

        soft_counts: stream -> soft tokens that it has in a prompt.
        recall_keys: label tasks that the model recalls training clips for.
        max_prompt_tokens: of a prompt, soft tokens included.
        too_long: cut shortens the words of a clip whose prompt is longer, as in training; the others refuse the clip.
        """
        super().__init__(tokenizer)
        self.encoders, self.networks = dict(encoders or {}), dict(networks or {})
        self.soft_counts, self.prompt = dict(soft_counts or {}), dict(prompt or {})
        self.label_sets, self.tasks, self.recall_keys = dict(label_sets or {}), list(tasks), list(recall_keys)
        self.absent = absent
        self.max_prompt_tokens, self.too_long = max_prompt_tokens, too_long
        self._preprocess = {
            modality: rebuild_encoder(read_spec(entry["spec"]), self.networks[entry["network"]])
            for modality, entry in self.encoders.items()
        }

    def __call__(
        self,
        video: Any = None,
        text: Any = None,
        audio: Any = None,
        image: Any = None,
        *,
        task: str | None = None,
        question: str | None = None,
        labels: Sequence[str] | None = None,
        dataset: str | None = None,
        peak_frame: Any = None,
        start_s: Any = None,
        end_s: Any = None,
        crop: Any = None,
        person: Any = None,
    ) -> BatchFeature:
        """Prepare one clip, or a batch where any argument is a list.

        Args:
            video, audio, image: paths; the sound track of `video` is used where `audio` is not given.
            text: what the person says, or None.
            task: a task of training: emotion, sentiment, reason, …, or think:intent, the rationale for one label task;
                default: the first that the model was trained on. For one that it was not trained on, a warning is
                logged once.
            question: asked in place of the task's own instruction.
            labels: the closed set of answers named in the instruction; default: that of `dataset` in training.
            peak_frame, start_s, end_s, crop, person: as in a clip list.

        Raises:
            MediaError: a file that cannot be decoded.
            DataError: no medium and no text, lists of different lengths, or a crop that is none.
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
            "person": person,
        }
        task = task or next(iter(self.tasks), "emotion")
        if notice := self.untrained_notice(task):
            logger.warning_once(notice)
        if labels is None:
            labels = self.labels(task, dataset)
        task = self._asked(task, dataset).full_name
        clips = [replace(clip, dataset=dataset) for clip in _clips(values)]
        return self.collate([self.prepare(clip, task, question, labels) for clip in clips])

    def prepare(
        self,
        clip: Clip,
        task: str,
        question: str | None = None,
        labels: Sequence[str] = (),
        limit_s: float | None = None,
        decode: Decode = decode_each,
    ) -> ClipInputs:
        """Decode, preprocess and tokenise one clip; for threads. `decode` stands in for `decode_each`.

        Raises:
            MediaError: a file that cannot be decoded, or takes longer than `limit_s`.
            DataError: a prompt longer than its limit.
        """
        asked = self._asked(task, clip.dataset if clip.dataset in self.label_sets else None)
        encoders = {name: encoder for name, encoder in self._preprocess.items() if name in asked.modalities}
        found = decode(clip, [encoder.view for encoder in encoders.values()], limit_s)
        views: dict[str, np.ndarray] = {}
        for name, result in zip(encoders, found, strict=True):
            if isinstance(result, MediaError):
                raise result
            if not isinstance(result, Absent):
                views[name] = result
        inputs = {name: encoders[name].preprocess(view) for name, view in views.items()}
        valid = {name: encoders[name].num_valid(view) for name, view in views.items() if needs_valid(encoders[name])}  # type: ignore[attr-defined]
        prompt_ids = self._prompt_ids(clip, asked, list(views), labels, question)
        return ClipInputs(clip.id, prompt_ids, views, inputs, valid)

    def collate(self, clips: Sequence[ClipInputs]) -> BatchFeature:
        """Stack prepared clips into the tensors that the model takes."""
        ids, mask = pad_left([clip.prompt_ids for clip in clips], "cpu")
        present = [[modality in clip.inputs for modality in self.encoders] for clip in clips]
        data = {"input_ids": ids, "attention_mask": mask, "present": torch.tensor(present, dtype=torch.bool)}
        for modality in self.encoders:
            inputs = _stack([clip.inputs.get(modality) for clip in clips])
            if inputs is not None:
                data[INPUTS[modality]] = inputs
        if any(map(needs_valid, self._preprocess.values())):
            data["valid"] = torch.tensor([[clip.valid.get(name, 0) for name in self.encoders] for clip in clips])
        return BatchFeature(data)

    def labels(self, task: str, dataset: str | None = None) -> tuple[str, ...]:
        """The closed set of a task in training, sorted: of one dataset, or of all together; empty for an open task."""
        key = self._asked(task, dataset).closed_key
        return (
            () if key is None else tuple(sorted({label for sets in self._sets(dataset) for label in sets.get(key, ())}))
        )

    def _sets(self, dataset: str | None) -> list[Mapping[str, Any]]:
        """Label task -> closed set: of one dataset, or of every one."""
        return list(self.label_sets.values()) if dataset is None else [self.label_sets.get(dataset, {})]

    def _asked(self, task: str, dataset: str | None) -> Task:
        """The task; a rationale is for a label task that training had."""
        return find_task(task).among(label_task for sets in self._sets(dataset) for label_task in sets)

    def untrained_notice(self, task: str) -> str | None:
        """One line about a task that the model had no training samples of; None for one that it had."""
        if not self.tasks or task.partition(":")[0] in self.tasks:
            return None
        return f"this model was not trained on the task {task}; it was on {', '.join(self.tasks)}"

    def label_ids(self, labels: Sequence[str]) -> list[list[int]]:
        """Token ids of each label, for `model.label_probabilities`."""
        return [encode_answer(self.tokenizer, label) for label in labels]

    def answers(self, token_ids: Any) -> list[str]:
        """Generated token ids (B, T) -> texts."""
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]

    def _prompt_ids(
        self, clip: Clip, task: Task, shown: Sequence[str], labels: Sequence[str], question: str | None
    ) -> list[int]:
        seen = list(self.encoders) if self.absent == "visible" else shown
        streams = {*seen, *(["fusion"] if seen else [])}
        num_soft = sum(count for stream, count in self.soft_counts.items() if stream in streams)
        key = task.label_key
        place: list[int] = []
        if shown and not task.picture and key in self.recall_keys:
            place = [RECALL_TOKEN - self.recall_keys.index(key)]  # the model fills it in: it knows the features

        prompt = PromptFormat(**self.prompt)
        worded = prompt.worded(task, clip.dataset)

        def encoded(text: str) -> list[int]:
            before, said, asked = prompt.pieces(text, worded, labels, question, clip.person)
            rest = (asked, clip.id, (said, place)) if place else (said + asked, clip.id)
            return encode_prompt(self.tokenizer, before, num_soft, *rest, limit=None)

        limits = PromptLimits(too_long=self.too_long)
        return limits.fit(encoded, clip.text or "", self.max_prompt_tokens, clip.id)


def _clips(values: Mapping[str, Any]) -> list[Clip]:
    lengths = {name: len(value) for name, value in values.items() if isinstance(value, list | tuple)}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise DataError("processor", expected="lists of one length", got=said)
    clips = []
    for row in range(next(iter(lengths.values()), 1)):
        mine = {name: value[row] if name in lengths else value for name, value in values.items()}
        media = {name: Path(mine[name]) for name in ("video", "audio", "image") if mine[name] is not None}
        if not media and mine["text"] is None:
            raise DataError("processor", expected="video, audio, image or text", got="none of them")
        name = next((path.name for path in media.values()), f"clip {row}")
        problem, crop = ("", None) if mine["crop"] is None else parse_crop(mine["crop"])
        if problem:
            raise DataError(name, got=problem)
        clips.append(Clip(id=name, **{**mine, **media, "crop": crop}))
    return clips


def _stack(inputs: Sequence[np.ndarray | None]) -> torch.Tensor | None:
    """(B, …) with zeros, which are not used, where a clip has none; None where no clip has any."""
    some = next((array for array in inputs if array is not None), None)
    if some is None:
        return None
    return torch.from_numpy(np.stack([np.zeros_like(some) if array is None else array for array in inputs]))
