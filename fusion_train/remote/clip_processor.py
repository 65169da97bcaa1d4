"""What processors of exported models share: decoding and preprocessing of clips, tasks and labels of training.

Shapes: B clips, M modalities in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from featurecache.clips.clip_list import Clip
from featurecache.clips.crop import parse_crop
from featurecache.errors import MediaError
from featurecache.media.decode import Absent, Decoded
from featurecache.views import View
from fusion_train.errors import DataError
from fusion_train.prompts.prompt import Task, find_task
from fusion_train.remote.configuration_emotion_llama import read_spec
from fusion_train.remote.encoding import INPUTS, rebuild_encoder

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
    classes: list[int] = field(default_factory=list)
    """Class numbers of the labels of the question, for a probe."""


class ClipProcessor(ProcessorMixin):
    """Decodes and preprocesses media as the encoders of a model need it."""

    encoders: dict[str, Any]
    networks: dict[str, Any]
    label_sets: dict[str, Any]
    tasks: list[str]

    def _set_clips(
        self,
        encoders: Mapping[str, Any] | None,
        networks: Mapping[str, Any] | None,
        label_sets: Mapping[str, Any] | None,
        tasks: Sequence[str],
    ) -> None:
        """Store the settings of the model and build its encoders, without their networks."""
        self.encoders, self.networks = dict(encoders or {}), dict(networks or {})
        self.label_sets, self.tasks = dict(label_sets or {}), list(tasks)
        self._preprocess: dict[str, Any] = {
            modality: rebuild_encoder(read_spec(entry["spec"]), self.networks[entry["network"]])
            for modality, entry in self.encoders.items()
        }

    def decoded(self, clip: Clip, task: Task, limit_s: float | None, decode: Decode) -> ClipInputs:
        """Decode and preprocess what a task shows of one clip; the prompt is empty.

        Raises:
            MediaError: a file that cannot be decoded, or takes longer than `limit_s`.
        """
        encoders = {name: encoder for name, encoder in self._preprocess.items() if name in task.modalities}
        results = decode(clip, [encoder.view for encoder in encoders.values()], limit_s)
        views: dict[str, np.ndarray] = {}
        for name, result in zip(encoders, results, strict=True):
            if isinstance(result, MediaError):
                raise result
            if not isinstance(result, Absent):
                views[name] = result
        inputs = {name: encoders[name].preprocess(view) for name, view in views.items()}
        valid = {name: encoders[name].num_valid(view) for name, view in views.items() if encoders[name].needs_valid}
        return ClipInputs(clip.id, [], views, inputs, valid)

    def stacked(self, clips: Sequence[ClipInputs]) -> dict[str, torch.Tensor]:
        """Stack `present` (B, M), the inputs of each modality, and `valid` (B, M) if a pooling needs it."""
        present = [[modality in clip.inputs for modality in self.encoders] for clip in clips]
        data = {"present": torch.tensor(present, dtype=torch.bool)}
        for modality in self.encoders:
            inputs = _stack([clip.inputs.get(modality) for clip in clips])
            if inputs is not None:
                data[INPUTS[modality]] = inputs
        if any(encoder.needs_valid for encoder in self._preprocess.values()):
            data["valid"] = torch.tensor([[clip.valid.get(name, 0) for name in self.encoders] for clip in clips])
        return data

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


def clips_of(values: Mapping[str, Any]) -> list[Clip]:
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
