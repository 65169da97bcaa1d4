"""From store and clip list to the tensors of a step.

A batch is a pure function of its samples. Its tensors lie in one block of memory (pinned where there is a GPU) that
the store writes into and that one copy brings to the device.

Shapes: B samples on G clips in one row of L tokens, S of them supervised; M modalities in use, K tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import featurecache
from featurecache.clips.clip_list import Clip, ClipList
from featurecache.errors import FingerprintError, MissingFeatureError
from featurecache.store.protocols import ClipRecord, Feature, Status
from fusion_train.data.batch_buffer import BatchBuffer, Spec
from fusion_train.data.packing import Encoded, pack
from fusion_train.data.samples import Sample, SampleStats
from fusion_train.errors import DataError
from fusion_train.models.packed_attention import Layout
from fusion_train.models.token_streams import MODALITIES, FeatureShapes
from fusion_train.prompts.limits import PromptLimits
from fusion_train.prompts.prompt import PromptFormat, Task, encode_answer, encode_prompt

ROW = ("token_ids", "position_ids", "kept", "targets", "owners")


@dataclass
class Batch:
    """Everything a forward pass needs; `EmotionLlama.forward(**batch.tensors())`."""

    buffer: BatchBuffer
    """token_ids, position_ids (1, L); kept, targets, owners (S,) as in `Packed`; present (G, M); features (G, K, D)."""
    layout: Layout
    """Which tokens of the row see which."""
    clip_ids: list[str]
    """Of every sample."""
    num_supervised: int
    """Tokens that the loss counts."""
    sample_stats: list[SampleStats]
    """One a sample, in the order of `ModelOutput.sample_losses`."""

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
        named = {name: self.buffer[name] for name in (*ROW, "present")}
        return named | {"features": self.features, "layout": self.layout, "num_samples": len(self.sample_stats)}

    def to(self, device: torch.device) -> Batch:
        """Copy to a device at once, without waiting where the memory is pinned."""
        return replace(self, buffer=self.buffer.to(device))


class FeatureReader:
    """The features in use, read by clip id with a mask for absent ones."""

    def __init__(self, features: Mapping[str, Feature], stand_ins: Mapping[str, Tensor] | None = None) -> None:
        """Args:
        features: modality -> feature, in the order audio, image, video.
        stand_ins: modality -> (K, D) that the model sees of an absent one; None: an absent one is not seen.
        """
        self._features = dict(features)
        self._stand_ins = stand_ins

    @classmethod
    def open(cls, store: str, names: Mapping[str, str], expected: Mapping[str, str] | None = None) -> FeatureReader:
        """Open the features `names` (modality -> name in the store).

        Raises:
            StoreNotFoundError: no such store or feature.
            FingerprintError: a feature is not the one whose fingerprint `expected` (modality -> fingerprint) states.
        """
        opened = featurecache.open_store(store)
        features = {modality: opened[name] for modality, name in names.items()}
        for modality, fingerprint in (expected or {}).items():
            if modality in features and features[modality].fingerprint != fingerprint:
                raise FingerprintError(
                    f"{store}/{names[modality]}",
                    expected=f"fingerprint {fingerprint[:12]}…, which this run was trained on",
                    got=f"{features[modality].fingerprint[:12]}…",
                    next_step="Name the store it was trained from with --store, or train anew.",
                )
        return cls(features)

    def showing(self, stand_ins: Mapping[str, Tensor] | None) -> FeatureReader:
        """The same features, with something to see in place of what is absent."""
        return FeatureReader(self._features, stand_ins)

    @property
    def features(self) -> dict[str, Feature]:
        """Modality -> feature, in the order audio, image, video."""
        return self._features

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self._features)

    @property
    def shapes(self) -> FeatureShapes:
        return FeatureShapes(
            **dict.fromkeys(("audio", "image", "video"))
            | {name: feature.shape for name, feature in self._features.items()}
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        return {modality: feature.fingerprint for modality, feature in self._features.items()}

    @property
    def specs(self) -> dict[str, featurecache.Spec]:
        return {modality: feature.spec for modality, feature in self._features.items()}

    def record(self, modality: str, clip_id: str) -> ClipRecord | None:
        """What the store's commit record says of a clip, or None where it holds none."""
        return self._features[modality].record(clip_id)

    def usable(self, clips: ClipList, on_failed: str) -> ClipList:
        """Return the clips that can be read.

        Raises:
            MissingFeatureError: clips that were never extracted; or that failed, unless `on_failed` is "skip".
        """
        missing: dict[str, str] = {}
        failed: dict[str, str] = {}
        ids = clips.ids
        for modality, feature in self._features.items():
            statuses = feature.statuses(ids)
            for clip_id in (ids[number] for number in np.flatnonzero(statuses < 0)):
                missing.setdefault(clip_id, f"{clip_id}: not extracted for {feature.name} ({modality})")
            for clip_id in (ids[number] for number in np.flatnonzero(statuses == Status.FAILED)):
                record = feature.record(clip_id)
                assert record is not None
                failed[clip_id] = f"{clip_id}: {feature.name} failed: {record.reason}"
        if missing:
            raise MissingFeatureError(
                "store",
                clip_ids=list(missing),
                expected=f"features of {len(clips)} clips",
                got=f"{len(missing)} not extracted",
                next_step="Run fcache extract with the same clip list.",
                problems=list(missing.values()),
            )
        if failed and on_failed == "refuse":
            raise MissingFeatureError(
                "store",
                clip_ids=list(failed),
                expected=f"features of {len(clips)} clips",
                got=f"{len(failed)} failed",
                next_step="Run fcache retry, or leave them out with --set data.failed_clips=skip.",
                problems=list(failed.values()),
            )
        if len(failed) == len(clips):
            raise DataError("clips", expected="at least one clip with features", got="none")
        return ClipList(clip for clip in clips if clip.id not in failed) if failed else clips

    def presence(self, clip_id: str) -> dict[str, bool]:
        """Modality -> whether the clip has it."""
        return {modality: clip_id in feature for modality, feature in self._features.items()}

    @property
    def stand_ins(self) -> Mapping[str, Tensor] | None:
        """Modality -> (K, D) float32 that the model sees of an absent one; None: an absent one is not seen."""
        return self._stand_ins

    def seen(self, shown: Sequence[bool]) -> list[bool]:
        """Which modalities the model sees of a clip of which it is shown these."""
        return list(shown) if self._stand_ins is None else [True] * len(shown)

    def read_seen(
        self, clip_ids: Sequence[str], shown: Sequence[Sequence[bool]], out: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Features (B, K, D) a modality and what the model sees of them (B, M); stand-ins lie where one is absent."""
        present = torch.tensor(shown, dtype=torch.bool)
        features = self.read(clip_ids, present, out)
        if self._stand_ins is not None:
            for m, (modality, tensor) in enumerate(features.items()):
                tensor[~present[:, m]] = self._stand_ins[modality].to(tensor.dtype)
        return features, torch.tensor([self.seen(row) for row in shown], dtype=torch.bool)

    def layout(self, count: int) -> Spec:
        """Modality -> shape and dtype of what `read` gives of so many clips."""
        return {
            name: ((count, *feature.shape), _torch_dtype(feature.dtype)[1]) for name, feature in self._features.items()
        }

    def read(
        self, clip_ids: Sequence[str], present: Tensor, out: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Read (B, K, D) a modality, into `out` where given; rows where `present` (B, M) is False must not be used."""
        tensors = (
            BatchBuffer(self.layout(len(clip_ids))) if out is None else {name: out[name] for name in self._features}
        )
        for m, (modality, feature) in enumerate(self._features.items()):
            array = tensors[modality].view(_torch_dtype(feature.dtype)[0]).numpy().view(feature.dtype)
            rows = present[:, m].nonzero().flatten().tolist()
            if len(rows) == len(clip_ids):
                feature.read(clip_ids, out=array)
            elif rows:
                array[rows] = feature.read([clip_ids[row] for row in rows])
        return dict(tensors)


def _torch_dtype(dtype: np.dtype) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the buffer that NumPy shares, dtype it is viewed as): NumPy has no bfloat16 of its own."""
    if dtype.name == "bfloat16":
        return torch.int16, torch.bfloat16
    same = getattr(torch, dtype.name)
    return same, same


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
        """Args as in `Config`.

        share_prefix: whether questions on one clip share what their prompts begin with.
        recall: token ids of what the training clips nearest by the modalities shown say to a task, see `retrieval`.
        limits: how long prompts may be, and what becomes of longer texts.
        """
        self._reader, self._tokenizer, self.form = reader, tokenizer, prompt
        self._forms: Mapping[str, PromptFormat] = {}
        self.recalls, self.limits = recall is not None, limits or PromptLimits()
        self.recall = recall or (lambda clip, task, shown: ())
        self._soft_counts, self._share_prefix = dict(soft_counts), share_prefix

    def asking(self, prompts: Mapping[str, PromptFormat]) -> Collator:
        """The same collator with other prompts for the clips of some datasets."""
        other = copy.copy(self)
        other._forms = dict(prompts)
        return other

    def wordings(self, task: Task, dataset: str | None) -> int:
        """How many instructions a task of one dataset is asked with."""
        return len(self.form_of(dataset).wordings(task, dataset))

    def form_of(self, dataset: str | None) -> PromptFormat:
        """How prompts about the clips of a dataset are put together."""
        return self._forms.get(dataset or "", self.form)

    def present(self, clip: Clip, hidden: Sequence[str] = ()) -> list[bool]:
        """Which modalities of a clip the model is shown, in the reader's order."""
        return [here and name not in hidden for name, here in self._reader.presence(clip.id).items()]

    def prompt_ids(self, sample: Sample, shown: Sequence[bool], answer_tokens: int | None = None) -> list[int]:
        """Token ids of the question, with a place for every soft token that `shown` gives.

        Args:
            answer_tokens: of the answer that follows; None leaves room for one that is generated.

        Raises:
            DataError: the prompt is too long, and is not cut.
        """
        limit = self.limits.answering if answer_tokens is None else self.limits.beside(answer_tokens)
        recalled = self.recall(sample.clip, sample.task, shown)
        return self.limits.fit(
            lambda text: self._encoded(sample, text, shown, recalled), sample.clip.text or "", limit, sample.clip.id
        )

    def prompt_tokens(self, sample: Sample, shown: Sequence[bool]) -> int:
        """Tokens of the question before anything is cut."""
        recalled = self.recall(sample.clip, sample.task, shown)
        return len(self._encoded(sample, sample.clip.text, shown, recalled))

    def frame_tokens(self, sample: Sample) -> int:
        """Tokens of the question with every modality shown and nothing recalled."""
        return len(self._encoded(sample, sample.clip.text, [True] * len(self._reader.modalities), ()))

    def _encoded(self, sample: Sample, text: str | None, shown: Sequence[bool], recalled: Sequence[int]) -> list[int]:
        prompt = self.form_of(sample.clip.dataset)
        task = prompt.worded(sample.task, sample.clip.dataset, sample.draw)
        before, said, asked = prompt.pieces(text, task, sample.labels, sample.question, sample.clip.person)
        seen = self._reader.seen(shown)
        here = dict(zip(self._reader.modalities, seen, strict=True)) | {"fusion": any(seen)}
        num_soft = sum(count for stream, count in self._soft_counts.items() if here[stream])
        rest = (asked, sample.clip.id, (said, recalled)) if recalled else (said + asked, sample.clip.id)
        return encode_prompt(self._tokenizer, before, num_soft, *rest, limit=None)

    def stats(self, sample: Sample, num_tokens: int, num_supervised: int) -> SampleStats:
        """What to say of a sample of so many tokens."""
        here = self._reader.presence(sample.clip.id)
        missing = tuple(name for name, there in here.items() if not there)
        hidden = tuple(name for name, there in here.items() if there and name in sample.hidden)
        return SampleStats(sample.clip.dataset or "", sample.task.name, num_tokens, num_supervised, missing, hidden)

    def answer_ids(self, sample: Sample) -> list[int]:
        """Token ids of the answer, its end included."""
        prompt = self.form_of(sample.clip.dataset)
        return encode_answer(self._tokenizer, prompt.answer(sample.answer, sample.task))

    def encode(self, sample: Sample) -> Encoded:
        """Tokenise a sample."""
        shown, answer = self.present(sample.clip, sample.hidden), self.answer_ids(sample)
        return Encoded(self.prompt_ids(sample, shown, len(answer)), answer, (sample.clip.id, *shown))

    def __call__(self, samples: Sequence[Sample], encoded: Sequence[Encoded] | None = None) -> Batch:
        """Tokenise (where that is not done), pack into one row, read the features of every clip once."""
        encoded = encoded or [self.encode(sample) for sample in samples]
        packed = pack(encoded, share=self._share_prefix)
        groups = [samples[number] for number in packed.first_of_group]
        shown = [self.present(sample.clip, sample.hidden) for sample in groups]
        row = {
            "token_ids": packed.token_ids,
            "position_ids": packed.layout.position_ids(),
            "kept": packed.kept,
            "targets": packed.targets,
            "owners": packed.owners,
            "present": torch.tensor([self._reader.seen(here) for here in shown], dtype=torch.bool),
        }
        buffer = BatchBuffer.of(row, self._reader.layout(len(groups)))
        self._reader.read_seen([sample.clip.id for sample in groups], shown, buffer)
        asked = [
            self.stats(sample, tokens, len(one.answer))
            for sample, tokens, one in zip(samples, packed.own_tokens, encoded, strict=True)
        ]
        clip_ids = [sample.clip.id for sample in samples]
        return Batch(buffer, packed.layout, clip_ids, len(packed.targets), asked)
