"""Turn samples into the tensors of one forward pass.

A batch is a pure function of its samples. Its tensors lie in one block of memory, so that one copy brings them to the
device.

Shapes: B samples on G clips in one row of L tokens, S of them supervised; M modalities in use, K tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from featurecache.clips.clip_list import Clip
from fusion_train.data.feature_reader import BatchBuffer, FeatureReader
from fusion_train.data.packing import Encoded, pack
from fusion_train.data.samples import Sample, SampleStats
from fusion_train.models.packed_attention import Layout
from fusion_train.models.token_streams import MODALITIES
from fusion_train.prompts.limits import PromptLimits
from fusion_train.prompts.prompt import PromptFormat, Task, encode_answer, encode_prompt

ROW = ("token_ids", "position_ids", "kept", "targets", "owners")


@dataclass
class Batch:
    """The inputs of a forward pass: `EmotionLlama.forward(**batch.tensors())`."""

    buffer: BatchBuffer
    """token_ids, position_ids (1, L); kept, targets, owners (S,) as in `Packed`; present (G, M); features (G, K, D)."""
    layout: Layout
    """Which tokens of the row see which."""
    clip_ids: list[str]
    """(B,) the clip of every sample."""
    num_supervised: int
    """Tokens that the loss counts."""
    sample_stats: list[SampleStats]
    """(B,) in the order of `ModelOutput.sample_losses`."""

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.layout.length

    @property
    def features(self) -> dict[str, Tensor]:
        """Modality -> (G, K, D) in the store's dtype."""
        return {name: self.buffer[name] for name in MODALITIES if name in self.buffer}

    @property
    def present(self) -> Tensor:
        """(G, M) bool."""
        return self.buffer["present"]

    def tensors(self) -> dict[str, Any]:
        """Return the keyword arguments of `EmotionLlama.forward`."""
        tensors: dict[str, Any] = {name: self.buffer[name] for name in (*ROW, "present")}
        return tensors | {"features": self.features, "layout": self.layout, "num_samples": len(self.sample_stats)}

    def to(self, device: torch.device) -> Batch:
        """Copy to a device, without waiting for the copy if the memory is pinned."""
        return replace(self, buffer=self.buffer.to(device))


class Collator:
    """Samples -> Batch."""

    def __init__(
        self,
        reader: FeatureReader,
        tokenizer: Any,
        prompt: PromptFormat,
        soft_counts: Mapping[str, int],
        *,
        share_prefix: bool = True,
        recall: Callable[[Clip, Task, Sequence[bool]], Sequence[int]] | None = None,
        limits: PromptLimits | None = None,
    ) -> None:
        """Args:
        soft_counts: stream -> soft tokens of a clip that has every modality.
        share_prefix: whether questions on one clip share the tokens that their prompts begin with.
        recall: (clip, task, modalities shown) -> token ids of the nearest training clips' labels, see `retrieval`.
        limits: how long prompts may be, and whether longer texts are cut.
        """
        self._reader, self._tokenizer, self.form = reader, tokenizer, prompt
        self._forms: Mapping[str, PromptFormat] = {}
        self.recalls, self.limits = recall is not None, limits or PromptLimits()
        self.recall = recall or (lambda clip, task, shown: ())
        self._soft_counts, self.share_prefix = dict(soft_counts), share_prefix

    def with_prompts(self, prompts: Mapping[str, PromptFormat]) -> Collator:
        """Return a collator with other prompt formats for the datasets that `prompts` names."""
        other = copy.copy(self)
        other._forms = dict(prompts)
        return other

    def wordings(self, task: Task, dataset: str | None) -> int:
        """Return how many instructions a task has for the clips of a dataset."""
        return len(self.form_of(dataset).wordings(task, dataset))

    def form_of(self, dataset: str | None) -> PromptFormat:
        """Return the prompt format for the clips of a dataset."""
        return self._forms.get(dataset or "", self.form)

    def present(self, clip: Clip, hidden: Sequence[str] = ()) -> list[bool]:
        """Return (M,) which modalities of a clip the model is shown."""
        return self._reader.shown(clip.id, hidden)

    def prompt_ids(self, sample: Sample, shown: Sequence[bool], answer_tokens: int | None = None) -> list[int]:
        """Return the token ids of a prompt, with a place for every soft token of the modalities `shown`.

        Args:
            answer_tokens: tokens of the answer that follows; None leaves room for a generated answer.

        Raises:
            DataError: the prompt is too long, and is not cut.
        """
        limit = self.limits.answering if answer_tokens is None else self.limits.beside(answer_tokens)
        recalled = self.recall(sample.clip, sample.task, shown)
        return self.limits.fit(
            lambda text: self._encoded(sample, text, shown, recalled), sample.clip.text or "", limit, sample.clip.id
        )

    def prompt_tokens(self, sample: Sample, shown: Sequence[bool]) -> int:
        """Return the number of tokens of a prompt before anything is cut."""
        recalled = self.recall(sample.clip, sample.task, shown)
        return len(self._encoded(sample, sample.clip.text, shown, recalled))

    def frame_tokens(self, sample: Sample) -> int:
        """Return the number of tokens of a prompt with every modality shown and nothing recalled."""
        return len(self._encoded(sample, sample.clip.text, [True] * len(self._reader.modalities), ()))

    def _encoded(self, sample: Sample, text: str | None, shown: Sequence[bool], recalled: Sequence[int]) -> list[int]:
        """Return the token ids of a prompt with `text` as the words of the clip."""
        prompt, clip = self.form_of(sample.clip.dataset), sample.clip
        task = prompt.worded(sample.task, clip.dataset, sample.draw)
        before, words, question = prompt.pieces(text, task, sample.labels, sample.question, clip.person)
        visible = self._reader.visible(shown)
        streams = dict(zip(self._reader.modalities, visible, strict=True)) | {"fusion": any(visible)}
        num_soft = sum(count for stream, count in self._soft_counts.items() if streams[stream])
        if recalled:
            return encode_prompt(self._tokenizer, before, num_soft, question, clip.id, (words, recalled), limit=None)
        return encode_prompt(self._tokenizer, before, num_soft, words + question, clip.id, limit=None)

    def answer_ids(self, sample: Sample) -> list[int]:
        """Return the token ids of the answer, with the end-of-sequence token."""
        prompt = self.form_of(sample.clip.dataset)
        return encode_answer(self._tokenizer, prompt.answer(sample.answer, sample.task))

    def encode(self, sample: Sample) -> Encoded:
        """Tokenise a sample."""
        shown, answer = self.present(sample.clip, sample.hidden), self.answer_ids(sample)
        return Encoded(self.prompt_ids(sample, shown, len(answer)), answer, (sample.clip.id, *shown))

    def __call__(self, samples: Sequence[Sample], encoded: Sequence[Encoded] | None = None) -> Batch:
        """Tokenise the samples unless `encoded` holds them, pack them into one row, and read each clip once."""
        encoded = encoded or [self.encode(sample) for sample in samples]
        packed = pack(encoded, share=self.share_prefix)
        groups = [samples[number] for number in packed.first_of_group]
        shown = [self.present(sample.clip, sample.hidden) for sample in groups]
        row = {
            "token_ids": packed.token_ids,
            "position_ids": packed.layout.position_ids(),
            "kept": packed.kept,
            "targets": packed.targets,
            "owners": packed.owners,
            "present": torch.tensor([self._reader.visible(clip_shown) for clip_shown in shown], dtype=torch.bool),
        }
        buffer = BatchBuffer.of(row, self._reader.buffer_spec(len(groups)))
        self._reader.read_visible([sample.clip.id for sample in groups], shown, buffer)
        stats = [
            SampleStats.of(sample, self._reader.presence(sample.clip.id), num_tokens, len(sample_ids.answer))
            for sample, num_tokens, sample_ids in zip(samples, packed.own_tokens, encoded, strict=True)
        ]
        clip_ids = [sample.clip.id for sample in samples]
        return Batch(buffer, packed.layout, clip_ids, len(packed.targets), stats)
