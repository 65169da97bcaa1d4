"""Measure an exported folder against the run it was made from, on raw clips.

    A  the trained model: adapters beside the frozen base, features from the store
    B  the same model in memory with merged adapters, features from the store
    C  the exported folder in a fresh process without this package: features from the store, then from the raw media

The difference of A and B is the cost of merging; of B and C on the same features, the cost of writing and loading; of C
on the store's features and C on raw media, the cost of encoding again. Each clip is asked one task, the tasks of the
run in turn. If all questions have a modality, one question is asked again without it. The compared logits are those
that predict A's own greedy answer, token by token.

Shapes: T tokens of the answer, V vocabulary, C labels, M modalities.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from featurecache.clips.clip_list import ClipList
from featurecache.errors import FingerprintError
from featurecache.media.decode import clip_source, media_files
from featurecache.views import View
from fusion_train.data.answers import answers_of, closed_set
from fusion_train.data.samples import Sample
from fusion_train.errors import DataError, DivergedError, ParityError
from fusion_train.models.answering import greedy_text, label_log_probabilities, positions
from fusion_train.prompts.prompt import encode_answer, find_task
from fusion_train.remote.vendor import encoder_package
from fusion_train.run_context import RunContext

MAX_NEW_TOKENS = 64
"""Maximum length of the greedy texts that are compared."""
SCRIPT = Path(__file__).with_name("fresh_process.py")


@dataclass(frozen=True)
class ForeignPackages:
    """Packages, other than this project's, that the encoders of an exported folder come from."""

    copied: tuple[str, ...]
    """Top-level names of modules whose code the folder has; the fresh process does not find them."""
    required: tuple[str, ...]
    """Top-level names of modules that the folder imports from where they are installed."""


def foreign_packages(entries: Mapping[str, Mapping[str, Any]]) -> ForeignPackages:
    """Return the packages of the encoders.

    Args:
        entries: field `encoders` of the configuration.
    """
    roots: dict[bool, set[str]] = {False: set(), True: set()}
    for entry in entries.values():
        if "package" in entry:
            roots[entry["required"]].add(encoder_package(entry["spec"]["encoder"]).root)
    return ForeignPackages(tuple(sorted(roots[False])), tuple(sorted(roots[True])))


@dataclass
class ReferenceAnswer:
    """The answers of A and B to one question."""

    sample: Sample
    prompt_ids: list[int]
    present: list[bool]
    """Which modalities the clip has and the question shows (M,)."""
    seen: list[bool]
    """Which modalities the model sees (M,); absent ones too if the run makes absence visible."""
    features: dict[str, Tensor]
    """Modality -> features (1, K, D) from the store, or the constant for an absent modality."""
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

    def tensors(self) -> dict[str, Tensor]:
        """Return what the fresh process reads."""
        features = {f"features.{modality}": tensor.contiguous() for modality, tensor in self.features.items()}
        return features | {"answer_ids": torch.tensor(self.answer_ids)}


class Reference(Protocol):
    """The trained model's answer to one question: a `ReferenceAnswer`, or a `ProbeReference` of a probe."""

    sample: Sample

    def tensors(self) -> dict[str, Tensor]:
        """Return what the fresh process reads."""
        ...


def choose_questions(context: RunContext, clips: ClipList, count: int, trained: Sequence[str]) -> list[Sample]:
    """Choose one question per clip, evenly over the list, the trained tasks in turn; then add those of `without_each`.

    Raises:
        DataError: no clip has features and an answer to a task that the run was trained on.
    """
    samples: list[Sample] = []
    tasks = [find_task(name) for name in trained]
    for clip in context.reader.usable(clips, "skip"):
        if clip.mute:  # a processor hears every sound track
            continue
        references = [answers[0] for task in tasks if (answers := answers_of(clip, task))]
        if references:
            answer = references[len(samples) % len(references)]
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
    """Return, for each modality that all questions have, one question without it that still shows another modality."""
    shown = [context.collator.present(sample.clip, sample.hidden) for sample in samples]
    again = []
    for m, modality in enumerate(context.reader.modalities):
        suitable = [sample for sample, mask in zip(samples, shown, strict=True) if mask[m] and sum(mask) > 1]
        if suitable and all(mask[m] for mask in shown):
            again.append(replace(suitable[0], hidden=(*suitable[0].hidden, modality)))
    return again


def refuse_other_media(context: RunContext, samples: Sequence[Sample], views: Mapping[str, View]) -> None:
    """Raise an error if media of a clip are missing, or differ from those that its features were made from.

    Raises:
        DataError: missing media.
        FingerprintError: changed media.
    """
    missing, changed = [], []
    for clip in (sample.clip for sample in samples):
        for modality, view in views.items():
            record = context.reader.record(modality, clip.id)
            absent_files = [path for path in media_files(clip, view) if not path.is_file()]
            if absent_files:
                missing.append(f"{clip.id}: {', '.join(path.name for path in absent_files)}")
            elif record is not None and record.source and clip_source(clip, view) != record.source:
                changed.append(f"{clip.id} ({modality})")
    if missing:
        raise DataError(
            "parity",
            expected="the raw media of every clip asked",
            got=f"{len(missing)} missing",
            next_step="Name the clip list beside them with --clips.",
            problems=missing,
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
def reference_answers(context: RunContext, samples: Sequence[Sample]) -> list[ReferenceAnswer]:
    """Ask A: the trained model, on the store's features."""
    context.model.eval()
    device = next(context.model.projectors.parameters()).device
    eos = context.tokenizer.eos_token_id
    references = []
    for sample in samples:
        present = context.collator.present(sample.clip, sample.hidden)
        prompt = context.collator.prompt_ids(sample, present)
        features, seen = context.reader.read_visible([sample.clip.id], [present])
        on_device = {name: tensor.to(device) for name, tensor in features.items()}
        model_inputs = context.model, [prompt], on_device, seen.to(device)
        text = greedy_text(*model_inputs, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=eos)[0]
        if text is None:
            raise DivergedError(f'clip "{sample.clip.id}"', expected="finite scores", got="NaN or infinity")
        probabilities = None
        if sample.task.answer == "label":
            ids = [encode_answer(context.tokenizer, label) for label in sample.labels]
            probabilities = label_log_probabilities(*model_inputs, ids)[0].softmax(0).cpu()
        reference_answer = ReferenceAnswer(
            sample, prompt, present, seen[0].tolist(), features, text, [*text, eos], torch.empty(0), probabilities
        )
        reference_answer.unmerged = answer_logits(context, reference_answer)
        references.append(reference_answer)
    return references


@torch.inference_mode()
def answer_logits(context: RunContext, reference: ReferenceAnswer) -> Tensor:
    """Return logits (T, V) float32 that predict the reference answer, from the store's features."""
    device = next(context.model.projectors.parameters()).device
    ids = torch.tensor([[*reference.prompt_ids, *reference.answer_ids[:-1]]], device=device)
    mask = torch.ones_like(ids)
    features = {name: tensor.to(device) for name, tensor in reference.features.items()}
    embedded = context.model.embed(ids, features, torch.tensor([reference.seen], device=device))
    out = context.model.llm(
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=positions(mask),
        logits_to_keep=len(reference.answer_ids),
    )
    return out.logits[0].float().cpu()


def ask_exported(
    folder: Path,
    references: Sequence[Reference],
    device: str,
    places: Mapping[str, Any],
    packages: ForeignPackages,
) -> list[dict[str, Tensor]]:
    """Ask C: the exported folder, in a fresh process that cannot import this package.

    Args:
        places: `base` and `encoder_weights` of an adapter-only folder, which needs peft too; else empty.
        packages: of its encoders; `required` ones are found, and `featurecache`, which they need.

    Raises:
        ParityError: the process fails, or loads a package that an exported folder must not need.
    """
    with tempfile.TemporaryDirectory(prefix="export-parity-") as name:
        request_folder = Path(name)
        for number, reference in enumerate(references):
            save_file(reference.tensors(), request_folder / f"{number}.in.safetensors")
        request = {
            "model": str(folder.resolve()),
            "places": dict(places),
            "probe": not isinstance(references[0], ReferenceAnswer),
            "hidden": list(packages.copied),
            "found": [_folder_of(root) for root in (*packages.required, *(["featurecache"] * bool(packages.required)))],
            "needs_featurecache": bool(packages.required),
            "device": device,
            "threads": torch.get_num_threads(),
            "max_new_tokens": MAX_NEW_TOKENS,
            "questions": [_question(reference.sample) for reference in references],
        }
        (request_folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        environment = os.environ | {"HF_MODULES_CACHE": str(request_folder / "modules"), "HF_HUB_OFFLINE": "1"}
        process = subprocess.run(
            [sys.executable, "-I", str(SCRIPT), str(request_folder)],
            env=environment,
            cwd=request_folder,
            capture_output=True,
            text=True,
            check=False,
        )
        done = request_folder / "done.json"
        if process.returncode or not done.is_file():
            raise ParityError(
                str(folder),
                expected="the exported model to load and answer in a fresh process",
                got=f"exit code {process.returncode}",
                problems=process.stderr.strip().splitlines()[-12:],
            )
        if loaded := json.loads(done.read_text())["hidden_but_loaded"]:
            raise ParityError(str(folder), expected="no need of this package", got=", ".join(loaded))
        return [load_file(request_folder / f"{number}.out.safetensors") for number in range(len(references))]


def _folder_of(root: str) -> str:
    """Return the folder in which an installed module or package lies, for the path of another process."""
    spec = importlib.util.find_spec(root)
    assert spec is not None  # its encoder was opened
    place = next(iter(spec.submodule_search_locations or ()), None) or spec.origin
    return str(Path(str(place)).resolve().parent)


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
        "withheld": withheld(sample),
    }


def withheld(sample: Sample) -> list[str]:
    """Return the modalities of the task that are hidden in this question."""
    return [name for name in sample.hidden if name in sample.task.modalities]


def num_clips(references: Sequence[Reference]) -> int:
    """Return the number of different clips among the questions."""
    return len({reference.sample.clip.id for reference in references})


def divergence(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """Return KL(reference || other) of every token in nats: logits (T, V) twice -> (T,) float64."""
    p, q = (F.log_softmax(values.double(), dim=-1) for values in (reference_logits, logits))
    return (p.exp() * (p - q)).sum(dim=-1).clamp(min=0)


def feature_differences(
    features: Mapping[str, Tensor], present: Sequence[bool], out: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """Return how far the encoded features of each present modality are from those of the store."""
    differences = {}
    for name in (name for name, has in zip(features, present, strict=True) if has):
        cached, encoded = features[name][0].double(), out[f"features.{name}"][0].double()
        gap = (encoded - cached).abs()
        differences[name] = {
            "equal": bool((gap == 0).all()),
            "rms": float(gap.norm() / cached.norm().clamp(min=1e-30)),
            "max": float(gap.max() / cached.abs().max().clamp(min=1e-30)),
        }
    return differences


def compare(reference: ReferenceAnswer, out: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return all measurements of one question; `certificate.judge` compares them with bounds.

    Args:
        out: tensors that `fresh_process.py` wrote.
    """
    names = list(reference.features)
    absent = [name for name, present in zip(names, reference.present, strict=True) if not present]
    features = feature_differences(reference.features, reference.present, out)
    end = reference.answer_ids[-1]
    text = out["text"].tolist()
    text = text[: text.index(end)] if end in text else text
    merged = reference.merged if reference.merged is not None else reference.unmerged
    return {
        "id": reference.sample.clip.id,
        "task": reference.sample.task.name,
        "absent": absent,
        "withheld": withheld(reference.sample),
        "stand_ins": {
            name: torch.equal(out[f"features.{name}"], reference.features[name])
            for name, seen in zip(names, reference.seen, strict=True)
            if seen and name in absent
        },
        "prompt_equal": out["input_ids"][0].tolist() == reference.prompt_ids,
        "present_equal": out["present"][0].tolist() == reference.present,
        "features": features,
        "merge_kl": float(divergence(reference.unmerged, merged).max()),
        "merge_logits": float((merged - reference.unmerged).abs().max()),
        "reload_logits": float((out["logits.cached"] - merged).abs().max()),
        "raw_kl": float(divergence(out["logits.cached"], out["logits.raw"]).max()),
        "total_kl": float(divergence(reference.unmerged, out["logits.raw"]).max()),
        "raw_logits": float((out["logits.raw"] - out["logits.cached"]).abs().max()),
        "probabilities": None
        if reference.probabilities is None
        else float((out["probabilities"] - reference.probabilities).abs().max()),
        "text_equal": text == reference.text,
        "text_margin": _margin(reference, text),
        "answer_tokens": len(reference.answer_ids),
    }


def _margin(reference: ReferenceAnswer, text: list[int]) -> float:
    """Return by how many nats A prefers its own token at the first difference of the texts; 0 for equal texts."""
    end = reference.answer_ids[-1]
    for position, (own, other) in enumerate(zip([*reference.text, end], [*text, end], strict=False)):
        if own != other:
            return float(reference.unmerged[position, own] - reference.unmerged[position, other])
    return 0.0
