"""Turn media files and a question into the tensors of an exported model, with the decoding and prompt of training.

    processor(video="clip.mp4", text="I see.", task="emotion")
    processor(video=["a.mp4", "b.mp4"], text=["I see.", None], task="reason")
    processor(audio="voice.wav", image="face.png", question="Does the person seem at ease?")

Shapes: B clips, L tokens of the longest prompt (padded on the left), M modalities in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import BatchFeature
from transformers.utils import logging

from featurecache.clips.clip_list import Clip
from featurecache.media.decode import decode_each
from fusion_train.models.answering import pad_left
from fusion_train.models.recall import RECALL_TOKEN
from fusion_train.prompts.limits import PromptLimits, TooLong
from fusion_train.prompts.prompt import MAX_PROMPT_TOKENS, PromptFormat, Task, encode_answer, encode_prompt
from fusion_train.remote.clip_processor import ClipInputs, ClipProcessor, Decode, clips_of

logger = logging.get_logger(__name__)


class EmotionLlamaProcessor(ClipProcessor):
    """Decodes and preprocesses media, and tokenises prompts."""

    prompt_names = ("input_ids", "attention_mask", "present")
    """Tensors of `collate` that no encoder reads."""

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
        self._set_clips(encoders, networks, label_sets, tasks)
        self.soft_counts, self.prompt = dict(soft_counts or {}), dict(prompt or {})
        self.recall_keys, self.absent = list(recall_keys), absent
        self.max_prompt_tokens, self.too_long = max_prompt_tokens, too_long

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
        clips = [replace(clip, dataset=dataset) for clip in clips_of(values)]
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
        prepared = self.decoded(clip, clip_task, limit_s, decode)
        prompt_ids = self._prompt_ids(clip, clip_task, list(prepared.views), labels, question)
        return replace(prepared, prompt_ids=prompt_ids)

    def collate(self, clips: Sequence[ClipInputs]) -> BatchFeature:
        """Stack prepared clips into the input tensors of the model."""
        ids, mask = pad_left([clip.prompt_ids for clip in clips], "cpu")
        return BatchFeature({"input_ids": ids, "attention_mask": mask} | self.stacked(clips))

    def label_ids(self, labels: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each label, for `model.label_probabilities`."""
        return [encode_answer(self.tokenizer, label) for label in labels]

    def label_inputs(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of `model.label_probabilities` beside the tensors of a batch."""
        return {"label_ids": self.label_ids(labels)}

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
