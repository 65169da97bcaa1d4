"""Build what training, evaluation and export of a run hold in memory: clips, features, tokenizer and model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from featurecache.clips.clip_list import ClipList, load_clips
from featurecache.clips.corrections import adjust
from featurecache.encoders.perturbation import unperturbed
from featurecache.errors import FingerprintError, suggest
from featurecache.spec import Spec
from fusion_train import checkpoint
from fusion_train.config import Config
from fusion_train.data.absent import absent_constants
from fusion_train.data.answers import LabelSets
from fusion_train.data.batches import Collator
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.data.probe_batches import build_probe
from fusion_train.data.retrieval import RecalledTokens, open_retrieval
from fusion_train.data.samples import label_sets, with_numbers
from fusion_train.errors import ConfigError, DataError
from fusion_train.llm.loading import build_model, load_llm, load_tokenizer, positions_of, refuse_foreign_tokens
from fusion_train.llm.quantised_base import quantise_base
from fusion_train.models.parts import trained_parameters
from fusion_train.processes import this_process
from fusion_train.prompts.limits import PromptLimits
from fusion_train.prompts.prompt import find_task
from fusion_train.run import Run, absolute


class LazyClipList(ClipList):
    """A clip list that is read at first use: a resumed run does not need it before the first validation."""

    def __init__(self, read: Callable[[], ClipList]) -> None:
        self._read = read

    def __getattr__(self, name: str) -> Any:  # Python calls it only for attributes that are not set yet
        if name not in ("_clips", "_by_id"):
            raise AttributeError(name)
        clip_list = self._read()
        self._clips, self._by_id = clip_list._clips, clip_list._by_id
        return getattr(self, name)


@dataclass
class RunContext:
    """The objects of a run in memory."""

    config: Config
    clips: ClipList
    """Read at first use."""
    clips_file: str
    reader: FeatureReader
    label_sets: LabelSets
    tokenizer: Any
    """None without a language model."""
    model: Any
    """An `EmotionLlama`, or a `Probe` without a language model."""
    collator: Any
    """Makes the batches of `model`: a `Collator` or a `ProbeCollator`."""

    weights: str | None = None
    """sha256 of the trained weights, if they come from a checkpoint."""

    @property
    def device(self) -> torch.device:
        return next(iter(trained_parameters(self.model).values())).device


def build_context(
    config: Config,
    store: str,
    clips: str,
    *,
    fingerprints: Mapping[str, str] | None = None,
    sets: LabelSets | None = None,
    load: Callable[[str, str], nn.Module] = load_llm,
    quantised: bool = True,
    media_root: str | None = None,
) -> RunContext:
    """Open clips and features, load the language model, and build the trained parts with their initial weights.

    Args:
        fingerprints: modality -> fingerprint that the features must have; None accepts any.
        sets: closed label sets of the run; None reads them from the training split.
        load: loads the language model of a name and dtype.
        quantised: False ignores `model.quantised`.
        media_root: folder that the media paths of the clip list are relative to; None: the folder of the list.

    Raises:
        ClipListError, StoreError, ConfigError, ModelError: see the functions called.
    """
    data = config.data
    clip_list: ClipList = LazyClipList(
        lambda: adjust(load_clips(clips, media_root), Path(clips).parent, data.corrections, data.exclude)
    )
    reader = FeatureReader.open(store, config.features.used, fingerprints)
    if not reader.modalities:
        raise ConfigError("features", expected="a feature for at least one of audio, image, video, text", got="none")
    reader = reader.with_absent_constants(absent_constants(config.features, reader, Path(clips).parent))
    if sets is None:
        train_clips = clip_list.in_split(config.data.train_split)
        sets = with_numbers(label_sets(train_clips), train_clips, data.tasks)
    if config.model.llm is None:
        probe, probe_collator = build_probe(config, reader, sets, clip_list)
        return RunContext(config, clip_list, clips, reader, sets, None, probe, probe_collator)
    if config.features.normalise is not None:
        raise ConfigError(
            "features.normalise",
            expected="null, since a language model reads features as they are stored",
            got=config.features.normalise,
            next_step="Leave it out, or train a probe: --stage probe.",
        )
    refuse_numbers(data.tasks)
    tokenizer = load_tokenizer(config.model.llm)
    llm = load(config.model.llm, config.model.llm_dtype)
    refuse_foreign_tokens(tokenizer, llm, config.prompt.format(), config.model.llm)
    model = build_model(config, llm, reader.shapes)
    recall = {}
    if config.retrieval.k:
        pool = clip_list.in_split(data.train_split)
        retrieval = open_retrieval(store, config.features.used, pool, **config.retrieval.model_dump())
        recall["recall"] = RecalledTokens(retrieval, tokenizer, config.prompt.format())
    if config.model.quantised and quantised:
        adapted: Any = model.llm
        quantise_base(adapted, config.model.quantised, this_process().device, adapted.dtype)
    limits = PromptLimits(positions=positions_of(model.llm.config), too_long=data.too_long)
    collator = Collator(
        reader,
        tokenizer,
        config.prompt.format(),
        model.soft_counts,
        share_prefix=data.share_prefix and model.abilities.packing,
        limits=limits,
        **recall,
    )
    return RunContext(config, clip_list, clips, reader, sets, tokenizer, model, collator)


def refuse_numbers(tasks: Sequence[str]) -> None:
    """Raise ConfigError if a run with a language model, which answers in words, is asked for numbers."""
    numbers = [name for name in tasks if find_task(name).answer == "number"]
    if numbers:
        raise ConfigError(
            "data.tasks",
            expected="tasks that a language model answers in words",
            got=", ".join(numbers),
            next_step="Numbers are learnt by a probe: --stage probe.",
        )


def load_context(
    run: Run,
    *,
    store: str | None = None,
    clips: str | None = None,
    which: str = "best",
    disturbed: Mapping[str, str] | None = None,
    quantised: bool = True,
    media_root: str | None = None,
) -> RunContext:
    """Load a finished or interrupted run with the weights of one of its checkpoints, on the GPU if there is one.

    Args:
        store, clips: where they are now, if not where the run recorded them.
        which: checkpoint: `best`, `last` or a step.
        disturbed: modality -> perturbed feature that is read instead of the one of training.
        quantised, media_root: as in `build_context`.
    """
    record, config = run.record(), run.config()
    folder = checkpoint.choose(run.checkpoints, which)
    state = checkpoint.read_state(folder)
    replaced = dict(disturbed or {})
    unknown = [modality for modality in replaced if modality not in config.features.used]
    if unknown:
        known = ", ".join(config.features.used)
        raise DataError("--feature", expected="a modality that the run reads: " + known, got=", ".join(unknown))
    config = config.model_copy(update={"features": config.features.model_copy(update=replaced)})
    context = build_context(
        config,
        store or absolute(record.store, run.folder),
        clips or absolute(record.clips, run.folder),
        fingerprints={name: value for name, value in record.fingerprints.items() if name not in replaced},
        sets=record.label_sets,
        quantised=quantised,
        media_root=media_root,
    )
    for modality, feature in replaced.items():
        _refuse_other_encoder(feature, context.reader.specs[modality], record.fingerprints[modality])
    weights = checkpoint.best_weights(folder)
    checkpoint.load_model(folder, context.model, name=weights)
    context.model.to(this_process().device)
    return replace(context, weights=state.sha256[weights])


def ablate_streams(context: RunContext, streams: Mapping[str, Literal["zero", "omit"]]) -> None:
    """Remove streams (fusion, image, video, audio) from a trained model: the module ablation.

    Args:
        streams: stream -> whether its soft tokens are zeroed or omitted.

    Raises:
        DataError: a stream that the model does not have.
    """
    if not streams:
        return
    known_streams = getattr(context.model, "soft_counts", {})  # a probe has none
    unknown = [stream for stream in streams if stream not in known_streams]
    if unknown:
        known = ", ".join(known_streams) or "none, since it has no language model"
        raise DataError(
            "--without",
            expected="a stream of the model: " + known,
            got=", ".join(unknown),
            next_step=suggest(unknown[0], known_streams).strip() or None,
        )
    context.model.ablated = dict(streams)
    context.collator = Collator(
        context.reader,
        context.tokenizer,
        context.config.prompt.format(),
        context.model.soft_counts,
        limits=context.collator.limits,
    )


def _refuse_other_encoder(feature: str, spec: Spec, trained_on: str) -> None:
    """Raise FingerprintError if a feature differs from that of training in more than a perturbation."""
    if unperturbed(spec).fingerprint != trained_on:
        raise FingerprintError(
            feature,
            expected=f"the feature {trained_on[:12]}… that this run was trained on, perturbed",
            got=f"{unperturbed(spec).fingerprint[:12]}…, another one",
            next_step="Extract it by the same encoder with --option NAME.perturb=….",
        )
