"""Plan a run before anything is loaded: trained parameters, lengths of samples, arithmetic, memory and hours.

The model is built on the meta device, so the training code itself counts the parameters. Lengths of samples are counted
on the clip list if list, store and tokenizer are available, and assumed otherwise; the plan says which.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

from featurecache.clips.clip_list import load_clips
from featurecache.clips.corrections import adjust
from featurecache.errors import StoreError
from fusion_train.config import Config
from fusion_train.data.answers import answer_limits
from fusion_train.data.batches import Collator
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.data.packing import pack
from fusion_train.data.samples import SampleStream, label_sets, near_classes
from fusion_train.data.too_long import fitting_clips
from fusion_train.errors import ModelError
from fusion_train.llm.loading import llm_config, load_tokenizer, positions_of, refuse_foreign_tokens
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.parts import count_by_part, learning_parameters
from fusion_train.models.token_streams import FeatureShapes
from fusion_train.planning import costs
from fusion_train.planning.memory_budget import COMPUTE, SAFETY, smaller_rows, within
from fusion_train.planning.scoring_batch import clips_within, memory_by_clips
from fusion_train.planning.sizes import adapter_work, llm_shape, lora_shape, model_skeleton
from fusion_train.prompts.limits import PromptLimits

ASSUMED_TEXT_TOKENS = 120
ASSUMED_ANSWER_TOKENS = 32
COUNTED_CLIPS = 256
"""Draws on which the lengths are counted."""


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a sample; a shared prefix is divided equally among its questions."""

    soft: float
    text: float
    """Prompt without soft tokens."""
    answer: float
    longest: int
    """Tokens of the longest sample, soft tokens and answer included."""
    source: str
    """`assumed`, or on which clips they were counted."""

    @property
    def total(self) -> float:
        return self.soft + self.text + self.answer


@dataclass(frozen=True)
class TrainingPlan:
    """The predictions that `fusion-train plan` shows."""

    parameters: dict[str, int]
    """Trained parameters by part."""
    frozen: int
    """Parameters of the frozen base."""
    lengths: Lengths
    flops: costs.SampleFlops
    rule_flops: float
    memory: costs.Memory
    scoring: costs.ScoringMemory
    scored_clips: int
    """Held-out clips that are answered at once."""
    micro_batch_size: int
    """Samples of a row; with `auto`, how many samples of mean length fit."""
    steps: int
    samples: int
    gpu: costs.Gpu
    utilisation: float
    hours: float
    advice: str | None
    """What to change if the run does not fit the GPU; None if it fits."""


def make_plan(
    config: Config,
    store: str,
    clips: str,
    *,
    gpu: str,
    utilisation: float,
    say: Callable[[str], None],
    counted: dict[Hashable, Lengths] | None = None,
    asked_split: str | None = None,
    batches: Hashable = None,
) -> TrainingPlan:
    """Predict what training this configuration costs.

    Args:
        utilisation: share of the published peak of the GPU that training reaches.
        counted: lengths by `batches` and soft tokens, shared by several configurations on one clip list; lengths that
            are counted here are added.
        asked_split: further split whose clips must fit the prompt limits.
        batches: key that is equal for configurations with the same batches.

    Raises:
        ConfigError, ModelError: conflicting settings, or an unknown language model or GPU.
    """
    card = costs.find_gpu(gpu)
    if config.optim.compile is None:  # this machine may have no GPU; the one of the plan has what compiling needs
        config = config.model_copy(update={"optim": config.optim.model_copy(update={"compile": True})})
    reader = _reader(config, store, say)
    shapes = reader.shapes if reader else _published_shapes(config)
    model = model_skeleton(config, shapes)
    llm, lora = llm_shape(model.llm), lora_shape(model.llm)
    key = (batches, *model.soft_counts.items())
    lengths = (counted or {}).get(key) or _lengths(config, reader, clips, model, say, asked_split)
    if counted is not None:
        counted[key] = lengths
    budget = within(config, model, int(card.memory_gib * 2**30 * SAFETY))
    flops = costs.sample_flops(
        llm,
        lora,
        tokens=lengths.total,
        supervised=lengths.answer,
        adapter=adapter_work(model),
        checkpointing=budget.checkpointing,
    )
    questions = config.data.questions_per_clip
    if isinstance(budget.micro_batch_size, int):
        micro, tokens = budget.micro_batch_size, budget.micro_batch_size * lengths.longest
    else:  # as many samples as the budget and the batch have
        weight = lengths.total + budget.supervised_weight * lengths.answer + budget.clip_weight / questions
        micro = max(min(int(budget.tokens / weight), config.optim.batch_size), 1)
        tokens = round(micro * lengths.total)
    base = config.model.quantised or config.model.llm_dtype
    parameters = count_by_part(model)
    values = sum(shape[0] * shape[1] for name in shapes.used if (shape := getattr(shapes, name)))
    needed = costs.memory(
        llm,
        lora,
        trained=sum(parameters.values()),
        learning=sum(parameter.numel() for parameter in learning_parameters(model).values()),
        tokens=tokens,
        supervised=micro * round(lengths.answer),
        feature_values=-(-micro // questions) * values,
        base=base,
        compute=COMPUTE[config.optim.precision],
        checkpointing=budget.checkpointing,
        fused=bool(config.optim.compile),
        ema=config.optim.ema_decay is not None,
    )
    scored_clips = clips_within(config, model, int(card.memory_gib * 2**30 * SAFETY))
    samples = config.optim.steps * config.optim.batch_size
    fits = needed.total <= card.memory_gib * 2**30
    return TrainingPlan(
        parameters=parameters,
        frozen=llm.matrix_parameters + llm.other_parameters,
        lengths=lengths,
        flops=flops,
        rule_flops=costs.rule_flops(llm, lengths.total, checkpointing=budget.checkpointing),
        memory=needed,
        scoring=memory_by_clips(config, model)(scored_clips),
        scored_clips=scored_clips,
        micro_batch_size=micro,
        steps=config.optim.steps,
        samples=samples,
        gpu=card,
        utilisation=utilisation,
        hours=costs.hours(flops.total * samples, card, utilisation),
        advice=None
        if fits
        else costs.advice(needed, checkpointing=budget.checkpointing, base=base, smaller=smaller_rows(budget, tokens)),
    )


def _reader(config: Config, store: str, say: Callable[[str], None]) -> FeatureReader | None:
    try:
        return FeatureReader.open(store, config.features.used)
    except StoreError as error:
        say(f"features as published, since there is no store to read their shapes from: {error}")
        return None


def _published_shapes(config: Config) -> FeatureShapes:
    published = FeatureShapes()
    return FeatureShapes(
        **{
            modality: getattr(published, modality) if modality in config.features.used else None
            for modality in published.used
        }
    )


def _lengths(
    config: Config,
    reader: FeatureReader | None,
    clips: str,
    model: EmotionLlama,
    say: Callable[[str], None],
    asked_split: str | None = None,
) -> Lengths:
    """Count the lengths of samples, or assume them if the clip list, the store or the tokenizer is missing."""
    soft_counts = model.soft_counts
    soft = sum(soft_counts.values())
    assumed = Lengths(
        soft, ASSUMED_TEXT_TOKENS, ASSUMED_ANSWER_TOKENS, soft + ASSUMED_TEXT_TOKENS + ASSUMED_ANSWER_TOKENS, "assumed"
    )
    if reader is None or not Path(clips).is_file():
        return assumed
    llm_name = config.model.llm
    assert llm_name is not None  # `model_skeleton` refuses a probe
    try:
        tokenizer = load_tokenizer(llm_name)
    except ModelError as error:
        say(f"lengths assumed, since there is no tokenizer to count with: {error}")
        return assumed
    refuse_foreign_tokens(tokenizer, model.llm, config.prompt.format(), llm_name)
    data = config.data
    listed = adjust(load_clips(clips), Path(clips).parent, data.corrections, data.exclude)
    train_clips = listed.in_split(data.train_split)
    sets = label_sets(train_clips)
    for notice in near_classes(sets):
        say(notice)
    prompts = PromptLimits(positions=positions_of(llm_config(llm_name)), too_long=data.too_long)
    collator = Collator(reader, tokenizer, config.prompt.format(), soft_counts, limits=prompts)
    limits = answer_limits(data, tokenizer)
    usable = {
        split: fitting_clips(
            reader.usable(listed.in_split(split), data.failed_clips),
            data.tasks,
            collator,
            sets,
            limits,
            split=split,
            say=say,
        )
        for split in dict.fromkeys((data.train_split, data.eval_split, asked_split))
        if split in listed.splits
    }
    stream = SampleStream.for_training(
        config, usable[data.train_split], sets, tokenizer=tokenizer, modalities=reader.modalities, say=say
    )
    num_soft = num_text = num_answer = longest = 0
    questions = data.questions_per_clip
    for turn in range(COUNTED_CLIPS):
        encoded = [collator.encode(stream.draw(turn * questions + number)) for number in range(questions)]
        tokens = pack(encoded, share=data.share_prefix).token_ids
        answer_tokens = sum(len(sample.answer) for sample in encoded)
        num_soft += int((tokens < 0).sum())  # soft places have negative ids
        num_answer += answer_tokens
        num_text += int((tokens >= 0).sum()) - answer_tokens
        longest = max(longest, -(-tokens.numel() // questions))
    count = COUNTED_CLIPS * questions
    shared = ", prefixes shared" if questions > 1 and data.share_prefix else ""
    source = f"counted on {count} draws of {Path(clips).name}{shared}"
    return Lengths(num_soft / count, num_text / count, num_answer / count, longest, source)
