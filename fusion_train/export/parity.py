"""Measure an exported folder against the run it was made from, on raw clips.

    A  the trained model: adapters beside the frozen base, features read from the store
    B  the same in memory with its adapters merged, features read from the store
    C  the exported folder in a fresh process without this package: features from the store, then from the raw media

A against B is what merging costs, B against C on the same features what writing and loading cost, C on the store's
features against C on raw media what re-encoding costs. Each clip is asked one task, the tasks of the run in turn; a
modality that no question lacks is withheld from one that is asked again. The logits compared are those that predict
A's own greedy answer, token by token.

Shapes: T tokens of the answer, V vocabulary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from featurecache.clips.clip_list import ClipList
from featurecache.errors import FingerprintError
from featurecache.media.decode import media_files
from featurecache.media.source_hash import clip_source
from featurecache.views import View
from fusion_train.data.answers import answers_of, closed_set
from fusion_train.data.samples import Sample
from fusion_train.errors import DataError, ParityError
from fusion_train.models.answering import greedy_text, label_log_probabilities, positions
from fusion_train.prompts.prompt import encode_answer, find_task
from fusion_train.run_context import RunContext

MAX_NEW_TOKENS = 64
"""Of the greedy texts compared."""
WORKER = Path(__file__).with_name("fresh_process.py")


@dataclass
class ReferenceAnswer:
    """What A and B say to one question."""

    sample: Sample
    prompt_ids: list[int]
    present: list[bool]
    """What the clip has and is shown with (M,)."""
    seen: list[bool]
    """What the model sees of it (M,): stand-ins too, where the run makes absence visible."""
    features: dict[str, Tensor]
    """Modality -> (1, K, D) from the store, or its stand-in."""
    text: list[int]
    """A's greedy token ids, without the end-of-sequence token."""
    answer_ids: list[int]
    """`text` and the end-of-sequence token."""
    unmerged: Tensor
    """A's logits (T, V) float32."""
    probabilities: Tensor | None
    """A's probabilities (C,) of the closed set."""
    merged: Tensor | None = None
    """B's logits (T, V) float32."""


def choose_questions(context: RunContext, clips: ClipList, count: int, trained: Sequence[str]) -> list[Sample]:
    """One question per clip, evenly over the list, the tasks trained on in turn; then those of `without_each`.

    Raises:
        DataError: no clip has features and an answer to a task that the run was trained on.
    """
    samples = []
    tasks = [find_task(name) for name in trained]
    for clip in context.reader.usable(clips, "skip"):
        known = [answers[0] for task in tasks if (answers := answers_of(clip, task))]
        if known:
            answer = known[len(samples) % len(known)]
            hidden = tuple(name for name in context.reader.modalities if name not in answer.task.modalities)
            labels = closed_set(context.label_sets, clip, answer.task)
            samples.append(Sample(clip, answer.task, labels, answer.text, hidden))
    if not samples:
        raise DataError(
            "parity",
            expected="clips with an answer to a task that the run was trained on: " + ", ".join(trained),
            got=f"none of {len(clips)}",
            next_step="Choose others with --split or --clips.",
        )
    if len(samples) > count:
        samples = [samples[n * len(samples) // count] for n in range(count)]
    return samples + without_each(context, samples)


def without_each(context: RunContext, samples: Sequence[Sample]) -> list[Sample]:
    """For each modality that no question lacks: one that shows others too, to be asked again without it."""
    shown = [context.collator.present(sample.clip, sample.hidden) for sample in samples]
    again = []
    for m, modality in enumerate(context.reader.modalities):
        fit = [sample for sample, here in zip(samples, shown, strict=True) if here[m] and sum(here) > 1]
        if fit and all(here[m] for here in shown):
            again.append(replace(fit[0], hidden=(*fit[0].hidden, modality)))
    return again


def refuse_other_media(context: RunContext, samples: Sequence[Sample], views: Mapping[str, View]) -> None:
    """Raise where the media of a clip are gone, or no longer those that its features were made from."""
    gone, changed = [], []
    for clip in (sample.clip for sample in samples):
        for modality, view in views.items():
            record = context.reader.record(modality, clip.id)
            missing = [path for path in media_files(clip, view) if not path.is_file()]
            if missing:
                gone.append(f"{clip.id}: {', '.join(path.name for path in missing)}")
            elif record is not None and record.source and clip_source(clip, view) != record.source:
                changed.append(f"{clip.id} ({modality})")
    if gone:
        raise DataError(
            "parity",
            expected="the raw media of every clip asked",
            got=f"{len(gone)} missing",
            next_step="Name the clip list beside them with --clips.",
            problems=gone,
        )
    if changed:
        raise FingerprintError(
            "parity",
            expected="the media that the features were made from",
            got="others",
            next_step="Run fcache retry and train anew, or restore them.",
            problems=changed,
        )


@torch.inference_mode()
def reference(context: RunContext, samples: Sequence[Sample]) -> list[ReferenceAnswer]:
    """Ask A: the model as trained, on the store's features."""
    context.model.eval()
    found = []
    for sample in samples:
        present = context.collator.present(sample.clip, sample.hidden)
        prompt = context.collator.prompt_ids(sample, present)
        features, mask = context.reader.read_visible([sample.clip.id], [present])
        device = next(context.model.projectors.parameters()).device
        there = {name: tensor.to(device) for name, tensor in features.items()}
        eos = context.tokenizer.eos_token_id
        text = greedy_text(
            context.model, [prompt], there, mask.to(device), max_new_tokens=MAX_NEW_TOKENS, eos_token_id=eos
        )[0]
        probabilities = None
        if sample.task.answer == "label":
            ids = [encode_answer(context.tokenizer, label) for label in sample.labels]
            probabilities = (
                label_log_probabilities(context.model, [prompt], there, mask.to(device), ids)[0].softmax(0).cpu()
            )
        one = ReferenceAnswer(
            sample, prompt, present, mask[0].tolist(), features, text, [*text, eos], torch.empty(0), probabilities
        )
        one.unmerged = answer_logits(context, one)
        found.append(one)
    return found


@torch.inference_mode()
def answer_logits(context: RunContext, one: ReferenceAnswer) -> Tensor:
    """Logits (T, V) float32 that predict the reference answer, from the store's features."""
    device = next(context.model.projectors.parameters()).device
    ids = torch.tensor([[*one.prompt_ids, *one.answer_ids[:-1]]], device=device)
    mask = torch.ones_like(ids)
    features = {name: tensor.to(device) for name, tensor in one.features.items()}
    embedded = context.model.embed(ids, features, torch.tensor([one.seen], device=device))
    out = context.model.llm(
        inputs_embeds=embedded, attention_mask=mask, position_ids=positions(mask), logits_to_keep=len(one.answer_ids)
    )
    return out.logits[0].float().cpu()


def ask_exported(
    folder: Path, references: Sequence[ReferenceAnswer], device: str, places: Mapping[str, Any]
) -> list[dict[str, Tensor]]:
    """Ask C: the exported folder, in a fresh process that cannot see this package.

    Args:
        places: where an adapter-only folder finds base and encoders; such a one needs peft too.

    Raises:
        ParityError: it fails, or loads a package that should not be needed.
    """
    with tempfile.TemporaryDirectory(prefix="export-parity-") as name:
        place = Path(name)
        for number, one in enumerate(references):
            given = {f"features.{modality}": tensor.contiguous() for modality, tensor in one.features.items()}
            save_file(given | {"answer_ids": torch.tensor(one.answer_ids)}, place / f"{number}.in.safetensors")
        request = {
            "model": str(folder.resolve()),
            "places": dict(places),
            "device": device,
            "threads": torch.get_num_threads(),
            "max_new_tokens": MAX_NEW_TOKENS,
            "questions": [_question(one.sample) for one in references],
        }
        (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
        environment = os.environ | {"HF_MODULES_CACHE": str(place / "modules"), "HF_HUB_OFFLINE": "1"}
        ran = subprocess.run(
            [sys.executable, "-I", str(WORKER), str(place)],
            env=environment,
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        done = place / "done.json"
        if ran.returncode or not done.is_file():
            raise ParityError(
                str(folder),
                expected="the exported model to load and answer in a fresh process",
                got=f"exit code {ran.returncode}",
                problems=ran.stderr.strip().splitlines()[-12:],
            )
        if loaded := json.loads(done.read_text())["hidden_but_loaded"]:
            raise ParityError(str(folder), expected="no need of this package", got=", ".join(loaded))
        return [load_file(place / f"{number}.out.safetensors") for number in range(len(references))]


def _question(sample: Sample) -> dict[str, Any]:
    clip = sample.clip
    media = {name: str(path.resolve()) for name in ("video", "audio", "image") if (path := getattr(clip, name))}
    return {
        "media": media,
        "text": clip.text,
        "task": sample.task.full_name,
        "dataset": clip.dataset or "",
        "peak_frame": clip.peak_frame,
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "crop": clip.crop and clip.crop.as_json(),
        "person": clip.person,
        "closed": sample.task.answer == "label",
        "withheld": _withheld(sample),
    }


def _withheld(sample: Sample) -> list[str]:
    """Modalities that are kept from the model though the task shows them."""
    return [name for name in sample.hidden if name in sample.task.modalities]


def num_clips(references: Sequence[ReferenceAnswer]) -> int:
    """How many clips the questions are on."""
    return len({one.sample.clip.id for one in references})


def divergence(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || other) of every token, (T, V) twice -> (T,) nats, float64."""
    p, q = (F.log_softmax(each.double(), dim=-1) for each in (reference_logits, logits))
    return (p.exp() * (p - q)).sum(dim=-1).clamp(min=0)


def compare(one: ReferenceAnswer, out: Mapping[str, Tensor]) -> dict[str, Any]:
    """Everything measured on one clip; nothing is judged here."""
    names = list(one.features)
    absent = [name for name, here in zip(names, one.present, strict=True) if not here]
    features = {}
    for name in (name for name in names if name not in absent):
        mine, theirs = one.features[name][0].double(), out[f"features.{name}"][0].double()
        gap = (theirs - mine).abs()
        features[name] = {
            "equal": bool((gap == 0).all()),
            "rms": float(gap.norm() / mine.norm().clamp(min=1e-30)),
            "max": float(gap.max() / mine.abs().max().clamp(min=1e-30)),
        }
    end = one.answer_ids[-1]
    text = out["text"].tolist()
    text = text[: text.index(end)] if end in text else text
    merged = one.merged if one.merged is not None else one.unmerged
    return {
        "id": one.sample.clip.id,
        "task": one.sample.task.name,
        "absent": absent,
        "withheld": _withheld(one.sample),
        "stand_ins": {
            name: torch.equal(out[f"features.{name}"], one.features[name])
            for name, seen in zip(names, one.seen, strict=True)
            if seen and name in absent
        },
        "prompt_equal": out["input_ids"][0].tolist() == one.prompt_ids,
        "present_equal": out["present"][0].tolist() == one.present,
        "features": features,
        "merge_kl": float(divergence(one.unmerged, merged).max()),
        "merge_logits": float((merged - one.unmerged).abs().max()),
        "reload_logits": float((out["logits.cached"] - merged).abs().max()),
        "raw_kl": float(divergence(out["logits.cached"], out["logits.raw"]).max()),
        "total_kl": float(divergence(one.unmerged, out["logits.raw"]).max()),
        "raw_logits": float((out["logits.raw"] - out["logits.cached"]).abs().max()),
        "probabilities": None
        if one.probabilities is None
        else float((out["probabilities"] - one.probabilities).abs().max()),
        "text_equal": text == one.text,
        "text_margin": _margin(one, text),
        "answer_tokens": len(one.answer_ids),
    }


def _margin(one: ReferenceAnswer, text: list[int]) -> float:
    """By how many nats A prefers its own token where the texts part; 0 where they do not."""
    mine, theirs = [*one.text, one.answer_ids[-1]], [*text, one.answer_ids[-1]]
    for place, (own, other) in enumerate(zip(mine, theirs, strict=False)):
        if own != other:
            return float(one.unmerged[place, own] - one.unmerged[place, other])
    return 0.0
