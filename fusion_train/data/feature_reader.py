"""Read the features of clips from the store into one block of memory per batch.

    buffer = BatchBuffer({"audio": ((8, 64, 1280), torch.float16), …})   pinned memory where there is a GPU
    feature.read(ids, out=buffer["audio"].numpy())                       the store writes into the block
    on_device = buffer.to(device)                                        views of one copy

Shapes: B clips, M modalities in use, K tokens per feature, D width. Knows no tokenizer and no question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

import featurecache
from featurecache.clips.clip_list import ClipList
from featurecache.errors import FingerprintError, MissingFeatureError
from featurecache.store.protocols import ClipRecord, Feature, Status
from fusion_train.errors import DataError
from fusion_train.models.token_streams import MODALITIES, FeatureShapes

ALIGNMENT = 256
"""Bytes; every tensor of a block begins at a multiple of it."""
BufferSpec = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> shape and dtype of a tensor."""


class BatchBuffer(dict[str, Tensor]):
    """Name -> tensor; all tensors are views of one block of memory."""

    def __init__(self, spec: BufferSpec, block: Tensor | None = None) -> None:
        """Args:
        block: the bytes of all tensors; None allocates zeros, in pinned memory where there is a GPU.
        """
        super().__init__()
        self._spec = dict(spec)
        offsets, num_bytes = {}, 0
        for name, (shape, dtype) in self._spec.items():
            offsets[name] = num_bytes
            num_bytes += -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if block is None:
            block = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        self.block = block
        for name, (shape, dtype) in self._spec.items():
            size = prod(shape) * dtype.itemsize
            self[name] = block[offsets[name] : offsets[name] + size].view(dtype).view(shape)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], more: BufferSpec) -> BatchBuffer:
        """Return a buffer with copies of `tensors` and with zeros for the tensors that `more` describes."""
        buffer = cls({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} | dict(more))
        for name, tensor in tensors.items():
            buffer[name].copy_(tensor)
        return buffer

    def to(self, device: torch.device) -> BatchBuffer:
        """Copy to a device, without waiting if the memory is pinned; a buffer that is there is returned itself."""
        if self.block.device == device:
            return self
        return BatchBuffer(self._spec, self.block.to(device, non_blocking=True))


class FeatureReader:
    """The features in use, read by clip id, with a mask of the modalities that a clip has."""

    def __init__(self, features: Mapping[str, Feature], absent_constants: Mapping[str, Tensor] | None = None) -> None:
        """Args:
        features: modality -> feature, in the order audio, image, video, text.
        absent_constants: modality -> (K, D) float32 that the model sees in place of an absent modality; None: the
            model does not see absent modalities.
        """
        self._features = dict(features)
        self._absent_constants = absent_constants

    @classmethod
    def open(cls, store: str, names: Mapping[str, str], expected: Mapping[str, str] | None = None) -> FeatureReader:
        """Open the features `names` (modality -> name in the store).

        Args:
            expected: modality -> fingerprint that the feature must have.

        Raises:
            StoreNotFoundError: no such store or feature.
            FingerprintError: a feature has another fingerprint than the expected one.
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

    def with_absent_constants(self, absent_constants: Mapping[str, Tensor] | None) -> FeatureReader:
        """Return a reader of the same features that shows these constants in place of absent modalities."""
        return FeatureReader(self._features, absent_constants)

    @property
    def features(self) -> dict[str, Feature]:
        """Modality -> feature, in the order audio, image, video, text."""
        return self._features

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self._features)

    @property
    def absent_constants(self) -> Mapping[str, Tensor] | None:
        """Modality -> (K, D) float32 in place of an absent modality; None: the model does not see absent modalities."""
        return self._absent_constants

    @property
    def shapes(self) -> FeatureShapes:
        return FeatureShapes(
            **dict.fromkeys(MODALITIES) | {name: feature.shape for name, feature in self._features.items()}
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        return {modality: feature.fingerprint for modality, feature in self._features.items()}

    @property
    def specs(self) -> dict[str, featurecache.Spec]:
        return {modality: feature.spec for modality, feature in self._features.items()}

    def record(self, modality: str, clip_id: str) -> ClipRecord | None:
        """Return the store's record of a clip, or None if the store has none."""
        return self._features[modality].record(clip_id)

    def usable(self, clips: ClipList, on_failed: str) -> ClipList:
        """Return the clips that can be read.

        Raises:
            MissingFeatureError: clips that were never extracted; or that failed, unless `on_failed` is "skip".
            DataError: all clips failed.
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
        """Return modality -> whether the clip has it."""
        return {modality: clip_id in feature for modality, feature in self._features.items()}

    def shown(self, clip_id: str, hidden: Sequence[str] = ()) -> list[bool]:
        """Return (M,) which modalities the clip has and are not `hidden`."""
        return [has and modality not in hidden for modality, has in self.presence(clip_id).items()]

    def visible(self, shown: Sequence[bool]) -> list[bool]:
        """Return (M,) which modalities have soft tokens: those `shown`, or all where constants stand for the others."""
        return list(shown) if self._absent_constants is None else [True] * len(shown)

    def read_visible(
        self, clip_ids: Sequence[str], shown: Sequence[Sequence[bool]], out: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return modality -> (B, K, D), constants in place of absent modalities, and the mask (B, M) of `visible`."""
        present = torch.tensor(shown, dtype=torch.bool)
        features = self.read(clip_ids, present, out)
        if self._absent_constants is not None:
            for m, (modality, tensor) in enumerate(features.items()):
                tensor[~present[:, m]] = self._absent_constants[modality].to(tensor.dtype)
        return features, torch.tensor([self.visible(row) for row in shown], dtype=torch.bool)

    def buffer_spec(self, num_clips: int) -> BufferSpec:
        """Return the shapes and dtypes of what `read` returns for so many clips."""
        return {
            name: ((num_clips, *feature.shape), _torch_dtypes(feature.dtype)[1])
            for name, feature in self._features.items()
        }

    def read(
        self, clip_ids: Sequence[str], present: Tensor, out: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Read modality -> (B, K, D), into `out` if it is given; rows where `present` (B, M) is False are undefined."""
        tensors = (
            BatchBuffer(self.buffer_spec(len(clip_ids)))
            if out is None
            else {name: out[name] for name in self._features}
        )
        for m, (modality, feature) in enumerate(self._features.items()):
            array = tensors[modality].view(_torch_dtypes(feature.dtype)[0]).numpy().view(feature.dtype)
            rows = present[:, m].nonzero().flatten().tolist()
            if len(rows) == len(clip_ids):
                feature.read(clip_ids, out=array)
            elif rows:
                array[rows] = feature.read([clip_ids[row] for row in rows])
        return dict(tensors)


def _torch_dtypes(dtype: np.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype that torch shares with NumPy, and the dtype that it is viewed as: NumPy has no bfloat16."""
    if dtype.name == "bfloat16":
        return torch.int16, torch.bfloat16
    same = getattr(torch, dtype.name)
    return same, same
