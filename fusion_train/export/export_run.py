"""Export a run, in this order: attach the encoders, ask the trained model, merge, write, ask the folder, certify.

    run + store + clips + encoder weights -> DIR with weights, code, processor, certificate, model card

The folder appears complete or not at all. If a measurement exceeds its bound, the folder appears all the same, with the
figures in its certificate, and ParityError lists the bounds that do not hold.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from featurecache.clips.clip_list import load_clips
from featurecache.encoders import Encoder, exportable_class
from featurecache.encoders.checkpoint import quiet_transformers
from featurecache.encoders.network import resolve_device
from featurecache.errors import suggest
from featurecache.files.lease import beside, sole_writer
from featurecache.files.publish import (
    make_folder,
    make_temporary_folder,
    publish_folder,
    remove_temporary_folders,
    require_writable,
    writing,
)
from featurecache.spec import Spec
from featurecache.views import View
from fusion_train import checkpoint
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.errors import ExportError, ParityError
from fusion_train.export.card import trained_parts, write_card
from fusion_train.export.certificate import ParityCheck, judge, judge_probe, write_certificate
from fusion_train.export.encoders import attach_encoders
from fusion_train.export.folder import write_folder
from fusion_train.export.parity import (
    ForeignPackages,
    ReferenceAnswer,
    answer_logits,
    ask_exported,
    choose_questions,
    compare,
    foreign_packages,
    num_clips,
    reference_answers,
    refuse_other_media,
)
from fusion_train.export.probe_parity import compare_probe, probe_references
from fusion_train.export.provenance import trained_tasks, weights_chosen
from fusion_train.export.weights import merge_lora
from fusion_train.prompts.prompt import find_task
from fusion_train.remote.configuration_emotion_llama import read_spec
from fusion_train.remote.encoding import rebuild_encoder
from fusion_train.remote.exportability import refuse_foreign_media, refuse_speakers
from fusion_train.remote.integrity import PAGE_NAME, file_hashes, read_certificate, refuse_changed_files
from fusion_train.remote.vendor import CACHE, encoder_package, vendored_code
from fusion_train.run import Run, absolute, relative
from fusion_train.run_context import RunContext, load_context

NUM_CHECKED = 32
"""Clips of the certificate, if the split has as many."""


@dataclass(frozen=True)
class ExportSources:
    """Options of an export: where the material of a run is now, which checkpoint, and which clips are checked."""

    store: str | None = None
    """None: the path that the run recorded; likewise `clips`."""
    clips: str | None = None
    which: str = "best"
    """Checkpoint: best, last or a step."""
    split: str | None = None
    """Split of the clips that are checked; None: the run's evaluation split, else its training split."""
    num_clips: int = NUM_CHECKED
    dtype: str | None = None
    """Dtype of the exported language model; None: the dtype of its base."""
    device: str = "auto"
    adapter: bool = False
    """Export only the trained parts, with references to base and encoders; else one model with merged adapters."""
    check_list: str | None = None
    """Clip list whose clips are all checked; None: `num_clips` of `split`."""
    required: tuple[str, ...] = ()
    """Encoders of other packages whose package the folder names; the code of the others is copied."""
    media_root: str | None = None
    """Folder that the media paths of the clip list are relative to; None: the folder of the list."""


def export_run(
    run: Run, out: Path, weights: Mapping[str, str], sources: ExportSources, say: Callable[[str], None] = print
) -> list[ParityCheck]:
    """Write the exported folder `out`; return the checks of its certificate.

    Args:
        weights: encoder name or modality -> checkpoint, if it differs from the provenance of the features.

    Raises:
        CheckpointError, StoreError, DataError: the run or what it read cannot be opened.
        FingerprintError: the encoders or the media are not those that made the features.
        ExportError: `out` is not empty, or the run cannot be exported.
        ParityError: a bound does not hold; `out` exists, with its certificate.
        WriteError: another process is writing `out`.
    """
    refuse_occupied(out)
    require_writable(out, folder=True)
    with sole_writer(beside(out), out):
        return _export_run(run, out, weights, sources, say)


def _export_run(
    run: Run, out: Path, weights: Mapping[str, str], sources: ExportSources, say: Callable[[str], None]
) -> list[ParityCheck]:
    refuse_numbers(run)
    refuse_unexportable(run, sources)
    context, step = open_run(run, sources)
    refuse_unfit_adapter(context, sources)
    refuse_speakers(context.config.features.normalise)
    attached = attach_encoders(context.reader.specs, weights, uncopied=sources.required)
    say(f"{run.folder}: step {step}; encoders agree with the features: " + ", ".join(attached.entries))
    tasks = trained_tasks(run, context)
    split, references = ask_trained(context, attached.views, sources, tasks)
    parts = trained_parts(context)
    if not sources.adapter and context.tokenizer is not None:
        merge_and_ask(context, references, sources.dtype)
    about = describe(run, context, sources, step, split) | required_packages(attached.entries)
    make_folder(out.parent)
    remove_temporary_folders(out.parent, f".{out.name}-")
    temporary = make_temporary_folder(out.parent, f".{out.name}-")
    try:
        say(f"writing {out}")
        with writing(out), quiet_transformers():
            write_folder(temporary, context, attached, tasks, sources.required)
            write_card(temporary, run, context, tasks, parts, about | {"num_clips": num_clips(references)})
        about |= {"files": file_hashes(temporary), "where": locate(run, context, weights, sources, out)}
        specs, places = context.reader.specs, referred(context, weights) if sources.adapter else {}
        packages = foreign_packages(attached.entries)
        del context, attached
        figures, rows = measure(temporary, references, specs, about, places, packages, say)
        write_certificate(temporary, about, figures, rows)
        if not publish_folder(temporary, out):
            refuse_occupied(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    raise_where_failed(out, figures)
    return figures


def verify_export(
    out: Path,
    sources: ExportSources | None = None,
    run: Run | None = None,
    say: Callable[[str], None] = print,
    weights: Mapping[str, str] | None = None,
) -> list[ParityCheck]:
    """Measure an exported folder again, in the way its certificate records; write nothing.

    Args:
        sources, run: where the material is now, if not where the certificate records it.
        weights: encoder name -> checkpoint for the adapter-only form, if not where the certificate records it.

    Raises:
        ExportError: no exported folder, or files that differ from the certified ones.
        ParityError: a bound does not hold.
    """
    certificate = read_certificate(out)
    refuse_changed_files(out, certificate)
    sources = sources or ExportSources()
    where = certificate["where"]
    recorded = {}
    if run is None:
        names = ("run", "store", "clips", "check", "media_root")
        recorded = {name: absolute(where[name], out) for name in names if name in where}
        run = Run(recorded.get("run", out / "the run that the certificate does not name"))
    encoder_places = {name: absolute(place, out) for name, place in where.get("weights", {}).items()}
    encoder_places |= dict(weights or {})
    if not run.exists:
        raise ExportError(
            str(out),
            expected=f"the run it was made from at {run.folder}",
            got="none there",
            next_step="Name it with --run, and with --store and --clips if they moved too.",
        )
    sources = replace(
        sources,
        store=sources.store or recorded.get("store"),
        clips=sources.clips or recorded.get("clips"),
        check_list=sources.check_list or recorded.get("check"),
        media_root=sources.media_root or recorded.get("media_root"),
        which=str(certificate["run"]["step"]),
        split=sources.split or certificate["split"],
        num_clips=certificate["asked"],
        dtype=certificate["dtype"],
        adapter=certificate.get("form") == "adapter",
    )
    context, step = open_run(run, sources)
    views = {modality: rebuild(out, modality).view for modality in context.reader.modalities}
    split, references = ask_trained(context, views, sources, trained_tasks(run, context))
    if not sources.adapter and context.tokenizer is not None:
        merge_and_ask(context, references, sources.dtype)
    specs, about = context.reader.specs, describe(run, context, sources, step, split)
    places = referred(context, encoder_places) if sources.adapter else {}
    del context
    packages = foreign_packages(json.loads((out / "config.json").read_text(encoding="utf-8"))["encoders"])
    figures, _ = measure(out, references, specs, about, places, packages, say)
    raise_where_failed(out, figures)
    return figures


def refuse_unexportable(run: Run, sources: ExportSources) -> None:
    """Check what the encoders and the fusion variant of a run allow, before the run is loaded.

    Raises:
        EncoderError: an encoder that is not installed or cannot be exported.
        ExportError: code that cannot be copied, or an unknown name in `sources.required`.
    """
    config, store = run.config(), sources.store or absolute(run.record().store, run.folder)
    specs = FeatureReader.open(store, config.features.used).specs
    names = [spec.encoder for spec in specs.values()]
    foreign = [name for name in names if not encoder_package(name).is_ours]
    for name in sources.required:
        if name not in foreign:
            raise ExportError(
                f"--require {name}",
                expected="an encoder of another package that the run reads: " + (", ".join(foreign) or "it reads none"),
                got="another",
                next_step=suggest(name, foreign).strip() or None,
            )
    for modality, spec in specs.items():
        refuse_foreign_media(spec, modality)
        exportable_class(spec.encoder)
    vendored_code(config.model.fusion.name, names, sources.required)


def open_run(run: Run, sources: ExportSources) -> tuple[RunContext, int]:
    """Load a run with the weights of a checkpoint onto the device; also return the step of the checkpoint."""
    context = load_context(
        run,
        store=sources.store,
        clips=sources.clips,
        media_root=sources.media_root,
        which=sources.which,
        quantised=False,
    )
    context.model.eval().to(resolve_device(sources.device))
    return context, checkpoint.read_state(checkpoint.choose(run.checkpoints, sources.which)).step


def ask_trained(
    context: RunContext, views: Mapping[str, View], sources: ExportSources, tasks: Sequence[str]
) -> tuple[str, list[Any]]:
    """Choose the clips and ask the trained model; return the name of their split and the reference answers.

    These are `ReferenceAnswer`s, or `ProbeReference`s for a run without a language model.
    """
    if sources.check_list is not None:
        clips = load_clips(sources.check_list, sources.media_root)
        split, count = "(a list of its own)", len(clips)
    else:
        split = sources.split or context.config.data.eval_split or context.config.data.train_split
        clips, count = context.clips.in_split(split), sources.num_clips
    samples = choose_questions(context, clips, count, tasks)
    refuse_other_media(context, samples, views)
    answers_of = probe_references if context.tokenizer is None else reference_answers
    return split, answers_of(context, samples)


def merge_and_ask(context: RunContext, references: Sequence[ReferenceAnswer], dtype: str | None) -> None:
    """Merge the adapters in place and compute the logits of the reference answers again."""
    context.model.llm = merge_lora(context.model.llm, None if dtype is None else getattr(torch, dtype))
    for reference in references:
        reference.merged = answer_logits(context, reference)


def measure(
    folder: Path,
    references: Sequence[Any],
    specs: Mapping[str, Spec],
    about: Mapping[str, Any],
    places: Mapping[str, Any],
    packages: ForeignPackages,
    say: Callable[[str], None],
) -> tuple[list[ParityCheck], list[dict[str, Any]]]:
    """Ask the exported folder and compare its answers; return the checks, and the measurements of every question.

    The caller has released the trained model, so that both models are not in memory at once.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    say(
        f"asking the exported model {len(references)} questions on {num_clips(references)} raw clips, "
        f"in a fresh process on {about['device']}"
    )
    answers = ask_exported(folder, references, about["device"], places, packages)
    probe = about["form"] == "probe"
    rows = [(compare_probe if probe else compare)(*pair) for pair in zip(references, answers, strict=True)]
    if probe:
        return judge_probe(rows, specs, device=about["device"]), rows
    merged = about["form"] == "merged"
    return judge(rows, specs, llm_dtype=about["dtype"], device=about["device"], merged=merged), rows


def describe(run: Run, context: RunContext, sources: ExportSources, step: int, split: str) -> dict[str, Any]:
    """Return the fields of a certificate that describe its origin; they contain no path."""
    probe = context.tokenizer is None
    return {
        "run": {
            "name": run.name,
            "step": step,
            "config_hash": context.config.hash,
            "finished": run.finished,
            "weights": weights_chosen(run, sources.which),
        },
        "fingerprints": context.reader.fingerprints,
        "form": "probe" if probe else "adapter" if sources.adapter else "merged",
        "dtype": "float32" if probe else sources.dtype or context.config.model.llm_dtype,
        "device": context.device.type,
        "split": split,
        "asked": sources.num_clips,
        "versions": {name: version(name) for name in ("torch", "transformers", "av", "featurecache")},
    }


def required_packages(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the field `packages` of a certificate: those that the folder imports, as name==version; else nothing.

    An encoder's package imports `featurecache`, which is then not copied either.
    """
    packages = sorted({entry["package"] for entry in entries.values() if entry.get("required")})
    return {"packages": [f"{CACHE}=={version(CACHE)}", *packages]} if packages else {}


def refuse_numbers(run: Run) -> None:
    """Raise ExportError for a probe with numbers: an exported folder answers with labels and their probabilities."""
    numbers = [name for name in run.config().data.tasks if find_task(name).answer == "number"]
    if numbers:
        raise ExportError(
            "data.tasks",
            expected="tasks with labels, which an exported folder answers",
            got=", ".join(numbers),
            next_step="Export a probe that is trained on labels only.",
        )


def refuse_unfit_adapter(context: RunContext, sources: ExportSources) -> None:
    """Raise ExportError if the run or the dtype does not fit the adapter-only form."""
    probe = context.tokenizer is None
    if probe and (sources.adapter or sources.dtype not in (None, "float32")):
        raise ExportError(
            "--adapter" if sources.adapter else f"--dtype {sources.dtype}",
            expected="a run with a language model",
            got="a probe, which is small and computes in float32",
            next_step="Leave it out.",
        )
    if sources.adapter and not context.config.model.lora.r:
        raise ExportError("--adapter", expected="a run with LoRA", got="model.lora.r: 0", next_step="Export it merged.")
    if sources.adapter and sources.dtype not in (None, context.config.model.llm_dtype):
        raise ExportError(
            f"--dtype {sources.dtype}",
            expected=f"{context.config.model.llm_dtype}, in which the base computed",
            got="another, for adapters that are not merged",
            next_step="Leave --dtype out, or export with --merge.",
        )


def referred(context: RunContext, weights: Mapping[str, str]) -> dict[str, Any]:
    """Return `base` and `encoder_weights` for the loader of an adapter-only folder: where they are now."""
    base = context.config.model.llm
    assert base is not None  # `refuse_unfit_adapter` refuses a probe
    return {"base": _resolved(base), "encoder_weights": {name: _resolved(place) for name, place in weights.items()}}


def _resolved(place: str) -> str:
    return str(Path(place).resolve()) if Path(place).exists() else place  # a hub id stays


def locate(
    run: Run, context: RunContext, weights: Mapping[str, str], sources: ExportSources, out: Path
) -> dict[str, Any]:
    """Return where the material is, relative to the exported folder, for the key `where` of the certificate."""
    record = run.record()
    store = sources.store or absolute(record.store, run.folder)
    clips = sources.clips or absolute(record.clips, run.folder)
    where: dict[str, Any] = {
        "run": relative(str(run.folder), out),
        "store": relative(store, out),
        "clips": relative(clips, out),
    }
    if sources.check_list is not None:
        where["check"] = relative(sources.check_list, out)
    if sources.media_root is not None:
        where["media_root"] = relative(sources.media_root, out)
    if sources.adapter:
        local = {name: place for name, place in weights.items() if Path(place).exists()}
        where["weights"] = {name: relative(place, out) for name, place in local.items()}
    return where


def rebuild(out: Path, modality: str) -> Encoder:
    """Return an exported encoder without its network, to know its view of a clip."""
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    entry = config["encoders"][modality]
    return rebuild_encoder(read_spec(entry["spec"]), config["networks"][entry["network"]])


def refuse_occupied(out: Path) -> None:
    """Raise ExportError if `out` is a file or a folder that is not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(
            str(out),
            expected="no folder, or an empty one",
            got="a folder that holds something" if out.is_dir() else "a file",
            next_step="Choose another with --out; an export is never written over.",
        )


def raise_where_failed(out: Path, figures: Sequence[ParityCheck]) -> None:
    """Raise ParityError if a bound does not hold; it lists all such bounds."""
    failed = [
        f"{figure.name}: {figure.measured:.2e}, bound {figure.bound:.2e}" for figure in figures if not figure.passed
    ]
    if failed:
        raise ParityError(
            str(out),
            expected="every bound to hold",
            got=f"{len(failed)} that do not",
            next_step=f"Do not use it. {PAGE_NAME} gives the figures of every clip.",
            problems=failed,
        )
