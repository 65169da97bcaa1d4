"""Answer a question about clips in three overlapping stages: decode on threads, encode on one thread, answer here.

While the language model answers one batch, the next batch is encoded and clips of later batches are decoded, so the
slowest stage decides the rate. A clip that fails becomes an answer with an error; the other clips go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.errors import FeatureCacheError, MediaError, WriteError
from featurecache.files.hashing import cache_folder
from featurecache.machine import usable_cores
from featurecache.media.crash_guard import CrashGuard
from featurecache.media.decode import decode_each
from featurecache.media.durations import stated_duration_s
from featurecache.terminal import duration
from fusion_train.errors import DivergedError
from fusion_train.models.answering import NotFinite
from fusion_train.predict.evidence import Evidence, gather_evidence
from fusion_train.predict.opening import OpenedModel
from fusion_train.predict.request import PredictionRequest
from fusion_train.predict.timing import Timings, timing_answers
from fusion_train.remote.clip_processor import ClipInputs

BATCHES_AHEAD = 2
"""Encoded batches that wait for the language model."""
DECODE_LIMIT_S = 120.0


@dataclass(frozen=True)
class PredictionLimits:
    """Limits on a clip, and on the work in progress."""

    batch_size: int = 8
    workers: int = 0
    """Decoding threads; 0 takes one per core, at most 8, and half as many if the networks run on the CPU too."""
    clip_s: float = 600.0
    """Longest duration of a clip."""
    decode_s: float = DECODE_LIMIT_S
    """Longest time for decoding a clip."""


@dataclass(frozen=True)
class ClipAnswer:
    """The answer about one clip, or the error in its place."""

    clip: Clip
    text: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    """Label -> probability; empty for an open question."""
    shown: tuple[str, ...] = ()
    """Modalities of the clip that the model was shown."""
    evidence: Evidence | None = None
    error: FeatureCacheError | None = None


@dataclass(frozen=True)
class Prediction:
    """What all stages of one prediction share."""

    opened: OpenedModel
    request: PredictionRequest
    limits: PredictionLimits
    timings: Timings
    guard: CrashGuard
    """Decodes clips that may crash a native library in a process of their own."""


@dataclass(frozen=True)
class _LabelledClip:
    """A clip, the closed set of labels in its prompt, and its inputs or the error of its decoding."""

    labels: tuple[str, ...]
    clip: Clip
    result: ClipInputs | FeatureCacheError


@dataclass(frozen=True)
class _Batch:
    clips: list[tuple[Clip, ClipInputs]]
    labels: tuple[str, ...]


_Encoded = tuple[_Batch, dict[str, Tensor], dict[str, Tensor]]
"""A batch, its prompt, its features."""


def predict(
    opened: OpenedModel,
    clips: ClipList,
    request: PredictionRequest,
    *,
    limits: PredictionLimits | None = None,
    timings: Timings | None = None,
    look: bool = False,
) -> Iterator[ClipAnswer]:
    """Answer the question of `request` about every clip; clips with the same set of labels come one after another.

    Args:
        timings: filled in during the prediction.
        look: also gather evidence; costs one more pass of the language model per modality.
    """
    limits, timings = limits or PredictionLimits(), timings or Timings()
    timings.load_s = opened.load_s
    began = time.perf_counter()
    cores = usable_cores()
    workers = limits.workers or min(8, cores if opened.device.type == "cuda" else max(1, cores // 2))
    single_batch = len(clips) <= limits.batch_size  # nothing can overlap, and a new thread starts with cold caches
    with (
        crash_guard(workers) as guard,
        ThreadPoolExecutor(workers, "decode") as decoding,
        ThreadPoolExecutor(1, "encode") as encoding,
    ):
        prediction = Prediction(opened, request, limits, timings, guard)
        prepared = _prepare_ahead(prediction, clips, decoding, workers)
        waiting: deque[Callable[[], _Encoded]] = deque()

        def answer_next() -> Sequence[ClipAnswer]:
            answers = _answer(prediction, *waiting.popleft()(), look=look)
            if timings.first_answer_s is None:
                timings.first_answer_s = time.perf_counter() - began
            timings.num_clips += len(answers)
            return answers

        try:
            for item in _batched(prepared, limits.batch_size if opened.model.config.answers_in_batches else 1):
                if isinstance(item, ClipAnswer):
                    yield item
                    continue
                encode_batch = partial(_encode, prediction, item)
                waiting.append(encode_batch if single_batch else encoding.submit(encode_batch).result)
                while len(waiting) > BATCHES_AHEAD:
                    yield from answer_next()
            while waiting:
                yield from answer_next()
        finally:
            decoding.shutdown(cancel_futures=True)
            encoding.shutdown(cancel_futures=True)
            timings.wall_s = time.perf_counter() - began


def _prepare_ahead(
    prediction: Prediction, clips: ClipList, pool: ThreadPoolExecutor, workers: int
) -> Iterator[_LabelledClip]:
    """Prepare clips on threads, grouped by their set of labels; only as many as one batch and all threads need.

    A single clip is prepared on this thread: a new thread starts with cold caches and its own torch threads.
    """
    by_labels: dict[tuple[str, ...], list[Clip]] = {}
    for clip in clips:
        by_labels.setdefault(prediction.request.labels(prediction.opened.processor, clip), []).append(clip)
    ahead: deque[Callable[[], _LabelledClip]] = deque()
    for labels, group in by_labels.items():
        for clip in group:
            prepare_clip = partial(prepare, prediction, clip, labels)
            ahead.append(prepare_clip if len(clips) == 1 else pool.submit(prepare_clip).result)
            if len(ahead) >= prediction.limits.batch_size + workers:
                yield ahead.popleft()()
    while ahead:
        yield ahead.popleft()()


def prepare(prediction: Prediction, clip: Clip, labels: tuple[str, ...]) -> _LabelledClip:
    """Decode and preprocess one clip; an error of the clip is part of the result."""
    request, limits = prediction.request, prediction.limits
    with prediction.timings.spent("decode"):
        try:
            with prediction.guard.decoding(media_key(clip)) as isolated:
                # `isolated` decodes in another process; it is None for media that never crashed this one.
                problem = None if isolated is None else isolated.header_problem(clip)
                if problem is not None:
                    raise problem
                refuse_long(clip, limits.clip_s, limits.decode_s)
                inputs = prediction.opened.processor.prepare(
                    clip,
                    request.task.full_name,
                    request.words,
                    labels,
                    limits.decode_s,
                    decode=decode_each if isolated is None else isolated.decode_each,
                )
            refuse_nothing_shown(clip, inputs, request)
            return _LabelledClip(labels, clip, inputs)
        except FeatureCacheError as error:
            return _LabelledClip(labels, clip, error)


@contextlib.contextmanager
def crash_guard(workers: int) -> Iterator[CrashGuard]:
    """Open a crash guard with notes in the user's cache folder, or in a temporary folder if the cache is not
    writable."""
    with contextlib.ExitStack() as stack:
        try:
            guard = CrashGuard([cache_folder() / "decoding" / "predict"], workers)
        except WriteError:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="decoding-"))
            guard = CrashGuard([Path(folder)], workers)
        stack.callback(guard.close)
        yield guard
        guard.forget_decoded_suspects()


def media_key(clip: Clip) -> str:
    """Return a key of the media files of a clip; ids are not unique, since another folder may use the same id."""
    paths = [os.path.realpath(path) for path in (clip.video, clip.audio, clip.image) if path is not None]
    return hashlib.sha256("\n".join(paths).encode("utf-8", "surrogateescape")).hexdigest()


def refuse_long(clip: Clip, limit_s: float, read_s: float) -> None:
    """Raise MediaError if the headers of a clip state more than `limit_s`; reading them may take `read_s`."""
    stated_s = stated_duration_s(clip, read_s)
    if stated_s is not None and stated_s > limit_s:
        raise MediaError(
            f'clip "{clip.id}"',
            expected=f"at most {duration(limit_s)} of sound and pictures",
            got=duration(stated_s),
            next_step="Cut it, name a part with start_s and end_s in a clip list, or raise --max-seconds.",
        )


def refuse_nothing_shown(clip: Clip, inputs: ClipInputs, request: PredictionRequest) -> None:
    """Raise MediaError if a clip has media but none that the task shows; a clip with only text is answered."""
    if not inputs.inputs and any((clip.video, clip.audio, clip.image)):
        wanted = " or ".join(request.task.modalities)
        raise MediaError(
            f'clip "{clip.id}"',
            expected=f"{wanted}, which the task {request.task.name} is about",
            got="none of it in its files",
        )


def _batched(prepared: Iterable[_LabelledClip], batch_size: int) -> Iterator[_Batch | ClipAnswer]:
    """Yield batches of clips with the same set of labels; a failed clip is yielded as its answer, in its place."""
    batch: list[tuple[Clip, ClipInputs]] = []
    labels: tuple[str, ...] = ()
    for item in prepared:
        if batch and (item.labels != labels or len(batch) == batch_size):
            yield _Batch(batch, labels)
            batch = []
        labels = item.labels
        if isinstance(item.result, FeatureCacheError):
            yield ClipAnswer(item.clip, error=item.result)
        else:
            batch.append((item.clip, item.result))
    if batch:
        yield _Batch(batch, labels)


@torch.inference_mode()
def _encode(prediction: Prediction, batch: _Batch) -> _Encoded:
    """Encode the inputs of a batch; return the batch, its prompt and its features, on the device."""
    opened = prediction.opened
    with prediction.timings.spent("encode"):
        inputs = opened.processor.collate([clip_inputs for _, clip_inputs in batch.clips]).to(opened.device)
        prompt = {name: inputs.pop(name) for name in opened.processor.prompt_names}
        features = opened.model.encode(prompt["present"], **inputs)
        if opened.device.type == "cuda":
            torch.cuda.synchronize(opened.device)
    return batch, prompt, features


def _answer(
    prediction: Prediction, batch: _Batch, prompt: dict[str, Tensor], features: dict[str, Tensor], *, look: bool
) -> list[ClipAnswer]:
    opened, request, labels = prediction.opened, prediction.request, batch.labels
    model, processor = opened.model, opened.processor
    closed = request.closed(labels)
    probabilities: list[list[float]] = [[] for _ in batch.clips]
    timing = (
        timing_answers(model.emotion_llama.llm, prediction.timings)
        if opened.answers_in_text
        else prediction.timings.spent("prefix")
    )
    with timing:
        if closed:
            label_inputs = prompt | processor.label_inputs(labels)
            probabilities = model.label_probabilities(**label_inputs, features=features).tolist()
            texts = [labels[max(range(len(labels)), key=row.__getitem__)] for row in probabilities]
            not_finite = [not all(map(math.isfinite, row)) for row in probabilities]
        else:
            watch = NotFinite(processor.tokenizer.eos_token_id)
            tokens = model.generate(
                **prompt,
                features=features,
                max_new_tokens=request.max_new_tokens,
                logits_processor=LogitsProcessorList([watch]),
            )
            texts, not_finite = processor.answers(tokens), watch.rows
    evidence: Sequence[Evidence | None] = [None] * len(batch.clips)
    if look:
        all_inputs = [clip_inputs for _, clip_inputs in batch.clips]
        evidence = gather_evidence(opened, all_inputs, prompt, features, labels if closed else ())
    answers = []
    for row, (clip, clip_inputs) in enumerate(batch.clips):
        if not_finite[row]:
            answers.append(ClipAnswer(clip, error=_not_finite_error(clip)))
        else:
            by_label = dict(zip(labels, probabilities[row], strict=True)) if closed else {}
            answers.append(ClipAnswer(clip, texts[row], by_label, tuple(clip_inputs.inputs), evidence[row]))
    return answers


def _not_finite_error(clip: Clip) -> DivergedError:
    return DivergedError(
        f'clip "{clip.id}"',
        expected="finite scores",
        got="NaN or infinity",
        next_step="Export the run with a wider --dtype (bfloat16 or float32).",
    )
