"""Turn media files and a question into the tensors of an exported model, with the decoding and prompt of training.

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
from fusion_train.remote.encoding import INPUTS, rebuild_encoder

logger = logging.get_logger(__name__)

Decode = Callable[[Clip, Sequence[View], float | None], list[Decoded | MediaError]]
"""Signature of `media.decode_each` without its optional arguments."""


@dataclass(frozen=True)
class ClipInputs:
    """Inputs of one clip, ready for a batch; modalities that the clip lacks or the task hides are not among them."""

    id: str
    prompt_ids: list[int]
    views: Mapping[str, np.ndarray]
    """Modality -> decoded frames (F, H, W, 3) uint8 or waveform (S,) float32."""
    inputs: Mapping[str, np.ndarray]
    """Modality -> preprocessed input of the network."""
    valid: Mapping[str, int]
    """Modality -> number of encoder tokens that the clip fills, for encoders whose pooling needs it."""


class EmotionLlamaProcessor(ProcessorMixin):
    """Decodes and preprocesses media, and tokenises prompts."""

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
        """Store the settings; arguments that are not listed are as in EmotionLlamaConfig.

        Args:
            soft_counts: stream -> number of its soft tokens in a prompt.
            recall_keys: label tasks for which the model recalls training clips.
            max_prompt_tokens: longest prompt, soft tokens included.
            too_long: "cut" shortens the text of a clip with a longer prompt, as in training; other values refuse it.
        """
        super().__init__(tokenizer)
        self.encoders, self.networks = dict(encoders or {}), dict(networks or {})
        self.soft_counts, self.prompt = dict(soft_counts or {}), dict(prompt or {})
        self.label_sets, self.tasks, self.recall_keys = dict(label_sets or {}), list(tasks), list(recall_keys)
        self.absent = absent
        self.max_prompt_tokens, self.too_long = max_prompt_tokens, too_long
        self._preprocess: dict[str, Any] = {
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
        """Prepare one clip, or a batch if any argument is a list.

        Args:
            video, audio, image: paths; without `audio` the sound track of `video` is used.
            text: what the person says, or None.
            task: a task of training: emotion, sentiment, reason, …, or think:intent, the rationale for one label task.
                None: the first that the model was trained on. A task without training logs a warning once.
            question: replaces the instruction of the task.
            labels: closed set of answers in the instruction; None: the labels of `dataset` in training.
            peak_frame, start_s, end_s, crop, person: as in a clip list.

        Raises:
            MediaError: a file that cannot be decoded.
            DataError: neither media nor text, lists of different lengths, or an invalid crop.
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
        task = self._task(task, dataset).full_name
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
        """Decode, preprocess and tokenise one clip; safe to call from several threads.

        Args:
            limit_s: longest time for decoding.
            decode: replaces `decode_each`.

        Raises:
            MediaError: a file that cannot be decoded, or takes longer than `limit_s`.
            DataError: a prompt longer than its limit.
        """
        clip_task = self._task(task, clip.dataset if clip.dataset in self.label_sets else None)
        encoders = {name: encoder for name, encoder in self._preprocess.items() if name in clip_task.modalities}
        results = decode(clip, [encoder.view for encoder in encoders.values()], limit_s)
        views: dict[str, np.ndarray] = {}
        for name, result in zip(encoders, results, strict=True):
            if isinstance(result, MediaError):
                raise result
            if not isinstance(result, Absent):
                views[name] = result
        inputs = {name: encoders[name].preprocess(view) for name, view in views.items()}
        valid = {name: encoders[name].num_valid(view) for name, view in views.items() if encoders[name].needs_valid}
        prompt_ids = self._prompt_ids(clip, clip_task, list(views), labels, question)
        return ClipInputs(clip.id, prompt_ids, views, inputs, valid)

    def collate(self, clips: Sequence[ClipInputs]) -> BatchFeature:
        """Stack prepared clips into the input tensors of the model."""
        ids, mask = pad_left([clip.prompt_ids for clip in clips], "cpu")
        present = [[modality in clip.inputs for modality in self.encoders] for clip in clips]
        data = {"input_ids": ids, "attention_mask": mask, "present": torch.tensor(present, dtype=torch.bool)}
        for modality in self.encoders:
            inputs = _stack([clip.inputs.get(modality) for clip in clips])
            if inputs is not None:
                data[INPUTS[modality]] = inputs
        if any(encoder.needs_valid for encoder in self._preprocess.values()):
            data["valid"] = torch.tensor([[clip.valid.get(name, 0) for name in self.encoders] for clip in clips])
        return BatchFeature(data)

    def labels(self, task: str, dataset: str | None = None) -> tuple[str, ...]:
        """Return the sorted labels of a task in training, of one dataset or of all; empty for an open task."""
        key = self._task(task, dataset).closed_key
        if key is None:
            return ()
        return tuple(sorted({label for sets in self._label_sets(dataset) for label in sets.get(key, ())}))

    def _label_sets(self, dataset: str | None) -> list[Mapping[str, Any]]:
        """Return mappings label task -> closed set: of one dataset, or one per dataset."""
        return list(self.label_sets.values()) if dataset is None else [self.label_sets.get(dataset, {})]

    def _task(self, task: str, dataset: str | None) -> Task:
        """Return the task; a rationale is about a label task that training had."""
        return find_task(task).among(label_task for sets in self._label_sets(dataset) for label_task in sets)

    def untrained_notice(self, task: str) -> str | None:
        """Return a remark on a task without training samples; None for a task that the model was trained on."""
        if not self.tasks or task.partition(":")[0] in self.tasks:
            return None
        return f"this model was not trained on the task {task}; it was on {', '.join(self.tasks)}"

    def label_ids(self, labels: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each label, for `model.label_probabilities`."""
        return [encode_answer(self.tokenizer, label) for label in labels]

    def answers(self, token_ids: Any) -> list[str]:
        """Decode generated token ids (B, T) into texts."""
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]

    def _prompt_ids(
        self, clip: Clip, task: Task, shown: Sequence[str], labels: Sequence[str], question: str | None
    ) -> list[int]:
        seen = list(self.encoders) if self.absent == "visible" else shown
        streams = {*seen, *(["fusion"] if seen else [])}
        num_soft = sum(count for stream, count in self.soft_counts.items() if stream in streams)
        key = task.label_key
        recall_place: list[int] = []
        if shown and not task.picture and key in self.recall_keys:
            # The model replaces this token by recalled text, because only it has the features.
            recall_place = [RECALL_TOKEN - self.recall_keys.index(key)]

        prompt = PromptFormat(**self.prompt)
        worded_task = prompt.worded(task, clip.dataset)

        def encoded(text: str) -> list[int]:
            before, quoted, instruction = prompt.pieces(text, worded_task, labels, question, clip.person)
            if recall_place:
                return encode_prompt(
                    self.tokenizer, before, num_soft, instruction, clip.id, (quoted, recall_place), limit=None
                )
            return encode_prompt(self.tokenizer, before, num_soft, quoted + instruction, clip.id, limit=None)

        limits = PromptLimits(too_long=self.too_long)
        return limits.fit(encoded, clip.text or "", self.max_prompt_tokens, clip.id)


def _clips(values: Mapping[str, Any]) -> list[Clip]:
    """Return the clips of a call: one, or as many as the lists among the arguments have entries."""
    lengths = {name: len(value) for name, value in values.items() if isinstance(value, list | tuple)}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise DataError("processor", expected="lists of one length", got=counts)
    clips = []
    for row in range(next(iter(lengths.values()), 1)):
        fields = {name: value[row] if name in lengths else value for name, value in values.items()}
        media = {name: Path(fields[name]) for name in ("video", "audio", "image") if fields[name] is not None}
        if not media and fields["text"] is None:
            raise DataError("processor", expected="video, audio, image or text", got="none of them")
        name = next((path.name for path in media.values()), f"clip {row}")
        problem, crop = ("", None) if fields["crop"] is None else parse_crop(fields["crop"])
        if problem:
            raise DataError(name, got=problem)
        clips.append(Clip(id=name, **{**fields, **media, "crop": crop}))
    return clips


def _stack(inputs: Sequence[np.ndarray | None]) -> torch.Tensor | None:
    """Stack inputs to (B, …); clips without input get zeros, which the model does not use. None if no clip has any."""
    example = next((array for array in inputs if array is not None), None)
    if example is None:
        return None
    return torch.from_numpy(np.stack([np.zeros_like(example) if array is None else array for array in inputs]))
