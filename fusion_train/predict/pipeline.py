"""Clips -> answers, read top to bottom: decode on threads, encode on one, answer on the caller's.

The three overlap: while the language model answers one batch, the next is encoded and those after it are decoded, so
the rate is that of the slowest. A bad clip becomes an answer with an error in its place; nothing else stops for it.
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
from fusion_train.remote.processing_emotion_llama import ClipInputs

BATCHES_AHEAD = 2
DECODE_LIMIT_S = 120.0


@dataclass(frozen=True)
class PredictionLimits:
    """What is refused of a clip, and how much is done at once."""

    batch_size: int = 8
    workers: int = 0
    """Decoding threads; 0 takes one a core, at most 8, and half as many where the networks run on the cores too."""
    clip_s: float = 600.0
    """Longest clip, in seconds of its own."""
    decode_s: float = DECODE_LIMIT_S
    """Longest time that decoding a clip may take."""


@dataclass(frozen=True)
class ClipAnswer:
    """What the model says of one clip, or why it says nothing."""

    clip: Clip
    text: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    """Label -> probability, for a closed set."""
    shown: tuple[str, ...] = ()
    """Modalities that the model was shown."""
    evidence: Evidence | None = None
    error: FeatureCacheError | None = None


@dataclass(frozen=True)
class _Batch:
    clips: list[tuple[Clip, ClipInputs]]
    labels: tuple[str, ...]


_Encoded = tuple[_Batch, dict[str, Tensor], dict[str, Tensor]]
"""A batch, its prompt, its features."""


def predict(
    opened: OpenedModel,
    clips: ClipList,
    question: PredictionRequest,
    *,
    limits: PredictionLimits | None = None,
    timings: Timings | None = None,
    look: bool = False,
) -> Iterator[ClipAnswer]:
    """Answer `question` about every clip; clips that share a set of labels come together.

    Args:
        timings: filled in as it goes.
        look: also gather what the model looked at; costs one more pass of the language model a modality.
    """
    limits, timings = limits or PredictionLimits(), timings or Timings()
    timings.load_s = opened.load_s
    began = time.perf_counter()
    cores = usable_cores()
    workers = limits.workers or min(8, cores if opened.device.type == "cuda" else max(1, cores // 2))
    alone = len(clips) <= limits.batch_size  # one batch: nothing to overlap, and a new thread starts cold
    with (
        _guard(workers) as guard,
        ThreadPoolExecutor(workers, "decode") as decoding,
        ThreadPoolExecutor(1, "encode") as encoding,
    ):
        prepared = _decoded(opened, clips, question, limits, timings, decoding, workers, guard)
        waiting: deque[Callable[[], _Encoded]] = deque()

        def answered() -> Sequence[ClipAnswer]:
            return _counted(_answer(opened, question, *waiting.popleft()(), timings, look), timings, began)

        try:
            for item in _batched(prepared, limits.batch_size if opened.model.config.answers_in_batches else 1):
                if isinstance(item, ClipAnswer):
                    yield item
                    continue
                work = partial(_encode, opened, item, timings)
                waiting.append(work if alone else encoding.submit(work).result)
                while len(waiting) > BATCHES_AHEAD:
                    yield from answered()
            while waiting:
                yield from answered()
        finally:
            decoding.shutdown(cancel_futures=True)
            encoding.shutdown(cancel_futures=True)
            timings.wall_s = time.perf_counter() - began


def _counted(answers: Sequence[ClipAnswer], timings: Timings, began: float) -> Sequence[ClipAnswer]:
    if timings.first_answer_s is None:
        timings.first_answer_s = time.perf_counter() - began
    timings.num_clips += len(answers)
    return answers


def _decoded(
    opened: OpenedModel,
    clips: ClipList,
    question: PredictionRequest,
    limits: PredictionLimits,
    timings: Timings,
    pool: ThreadPoolExecutor,
    workers: int,
    guard: CrashGuard,
) -> Iterator[tuple[tuple[str, ...], Clip, ClipInputs | FeatureCacheError]]:
    """Prepare clips on threads, in order, those with one set of labels after another; few are held at once.

    A single clip is prepared here: a new thread starts with cold memory and threads of torch of its own.
    """
    by_labels: dict[tuple[str, ...], list[Clip]] = {}
    for clip in clips:
        by_labels.setdefault(question.labels(opened.processor, clip), []).append(clip)
    jobs = ((labels, clip) for labels, group in by_labels.items() for clip in group)
    ahead: deque[tuple[tuple[str, ...], Clip, Callable[[], ClipInputs | FeatureCacheError]]] = deque()
    for labels, clip in jobs:
        work = partial(_prepare, opened, clip, labels, question, limits, timings, guard)
        ahead.append((labels, clip, work if len(clips) == 1 else pool.submit(work).result))
        if len(ahead) >= limits.batch_size + workers:
            yield _waited(ahead.popleft())
    while ahead:
        yield _waited(ahead.popleft())


def _waited(
    job: tuple[tuple[str, ...], Clip, Callable[[], ClipInputs | FeatureCacheError]],
) -> tuple[tuple[str, ...], Clip, ClipInputs | FeatureCacheError]:
    labels, clip, prepared = job
    return labels, clip, prepared()


def _prepare(
    opened: OpenedModel,
    clip: Clip,
    labels: tuple[str, ...],
    question: PredictionRequest,
    limits: PredictionLimits,
    timings: Timings,
    guard: CrashGuard,
) -> ClipInputs | FeatureCacheError:
    with timings.spent("decode"):
        try:
            with guard.decoding(media_key(clip)) as apart:
                problem = None if apart is None else apart.header_problem(clip)
                if problem is not None:
                    raise problem
                refuse_long(clip, limits.clip_s, limits.decode_s)
                how = (question.task.full_name, question.words, labels, limits.decode_s)
                prepared = opened.processor.prepare(
                    clip, *how, decode=decode_each if apart is None else apart.decode_each
                )
            refuse_nothing_shown(clip, prepared, question)
            return prepared
        except FeatureCacheError as error:
            return error


@contextlib.contextmanager
def _guard(workers: int) -> Iterator[CrashGuard]:
    """Watch over decoding, with notes in the user's cache, or a folder that is thrown away where that cannot be."""
    with contextlib.ExitStack() as stack:
        try:
            guard = CrashGuard([cache_folder() / "decoding" / "predict"], workers)
        except WriteError:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="decoding-"))
            guard = CrashGuard([Path(folder)], workers)
        stack.callback(guard.close)
        yield guard
        guard.forget_apart()


def media_key(clip: Clip) -> str:
    """Name the media of a clip whatever its id is, which another folder may use too."""
    paths = [os.path.realpath(path) for path in (clip.video, clip.audio, clip.image) if path is not None]
    return hashlib.sha256("\n".join(paths).encode("utf-8", "surrogateescape")).hexdigest()


def refuse_long(clip: Clip, limit_s: float, read_s: float) -> None:
    """Raise MediaError for a clip whose files state more than `limit_s`, in headers that take `read_s` at most."""
    stated_s = stated_duration_s(clip, read_s)
    if stated_s is not None and stated_s > limit_s:
        raise MediaError(
            f'clip "{clip.id}"',
            expected=f"at most {duration(limit_s)} of sound and pictures",
            got=duration(stated_s),
            next_step="Cut it, name a part with start_s and end_s in a clip list, or raise --max-seconds.",
        )


def refuse_nothing_shown(clip: Clip, prepared: ClipInputs, question: PredictionRequest) -> None:
    """Raise MediaError for a clip with media of which the task shows none; a clip of words alone is answered."""
    if not prepared.inputs and any((clip.video, clip.audio, clip.image)):
        wanted = " or ".join(question.task.modalities)
        raise MediaError(
            f'clip "{clip.id}"',
            expected=f"{wanted}, which the task {question.task.name} is about",
            got="none of it in its files",
        )


def _batched(
    prepared: Iterable[tuple[tuple[str, ...], Clip, ClipInputs | FeatureCacheError]], batch_size: int
) -> Iterator[_Batch | ClipAnswer]:
    """Batches of clips with one set of labels; failed clips as answers, where they stand."""
    batch: list[tuple[Clip, ClipInputs]] = []
    current: tuple[str, ...] = ()
    for labels, clip, result in prepared:
        if batch and (labels != current or len(batch) == batch_size):
            yield _Batch(batch, current)
            batch = []
        current = labels
        if isinstance(result, FeatureCacheError):
            yield ClipAnswer(clip, error=result)
        else:
            batch.append((clip, result))
    if batch:
        yield _Batch(batch, current)


@torch.inference_mode()
def _encode(opened: OpenedModel, batch: _Batch, timings: Timings) -> _Encoded:
    """Inputs of a batch -> its prompt and its features, on the device."""
    with timings.spent("encode"):
        inputs = opened.processor.collate([prepared for _, prepared in batch.clips]).to(opened.device)
        prompt = {name: inputs.pop(name) for name in ("input_ids", "attention_mask", "present")}
        features = opened.model.encode(prompt["present"], **inputs)
        if opened.device.type == "cuda":
            torch.cuda.synchronize(opened.device)
    return batch, prompt, features


def _answer(
    opened: OpenedModel,
    question: PredictionRequest,
    batch: _Batch,
    prompt: dict[str, Tensor],
    features: dict[str, Tensor],
    timings: Timings,
    look: bool,
) -> list[ClipAnswer]:
    model, processor, labels = opened.model, opened.processor, batch.labels
    closed = question.closed(labels)
    probabilities: list[list[float]] = [[] for _ in batch.clips]
    watch = NotFinite(processor.tokenizer.eos_token_id)
    with timing_answers(model.emotion_llama.llm, timings):
        if closed:
            ids = processor.label_ids(labels)
            probabilities = model.label_probabilities(ids, **prompt, features=features).tolist()
            texts = [labels[max(range(len(labels)), key=row.__getitem__)] for row in probabilities]
            wrong = [not all(map(math.isfinite, row)) for row in probabilities]
        else:
            tokens = model.generate(
                **prompt,
                features=features,
                max_new_tokens=question.max_new_tokens,
                logits_processor=LogitsProcessorList([watch]),
            )
            texts, wrong = processor.answers(tokens), watch.rows
    found: Sequence[Evidence | None] = [None] * len(batch.clips)
    if look:
        found = gather_evidence(
            opened, [prepared for _, prepared in batch.clips], prompt, features, labels if closed else ()
        )
    return [
        ClipAnswer(clip, error=_not_finite(clip))
        if bad
        else ClipAnswer(
            clip, text, dict(zip(labels, row, strict=True)) if closed else {}, tuple(prepared.inputs), evidence
        )
        for (clip, prepared), text, row, evidence, bad in zip(
            batch.clips, texts, probabilities, found, wrong, strict=True
        )
    ]


def _not_finite(clip: Clip) -> DivergedError:
    return DivergedError(
        f'clip "{clip.id}"',
        expected="finite scores",
        got="NaN or infinity",
        next_step="Export the run with a wider --dtype (bfloat16 or float32).",
    )
