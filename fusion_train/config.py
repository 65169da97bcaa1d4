"""The configuration of a run: typed, validated once, every key known.

A run's configuration is laid over itself in this order: the defaults below, `--config`, `configs/stages/STAGE.yaml`,
`stages: {STAGE: …}` of `--config`, `--set a.b=c`. A stage is a file, not a branch in the code. A file may say
`extends: NAME`, another file or shipped preset that it is laid over. The resolved configuration is written into the
run. Paths are kept as given; the run's own files never hold an absolute one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from featurecache.errors import suggest
from featurecache.spec import canonical_json
from fusion_train.errors import ConfigError
from fusion_train.models.token_streams import MODALITIES
from fusion_train.prompts.limits import TooLong
from fusion_train.prompts.prompt import MAX_ANSWER_TOKENS, TASKS, PromptFormat
from fusion_train.yaml_settings import merge

OnAbsent = Literal["refuse", "leave_out"]
"""What to do about something that a setting names and the data lack."""


class Section(BaseModel):
    """Frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class FusionConfig(Section):
    """The pre-fusion module, which joins the tokens of the modalities."""

    name: str = "conv-attention"
    """none, attention, conv, q-former, conv-attention, or a variant of an installed package."""
    hidden: tuple[int, ...] = (512, 128)
    """Widths of the MLP of each modality; the last one is the width of the fusion."""
    out_dim: int = 256
    """Width of the fused tokens."""
    num_tokens: int | None = Field(None, ge=1)
    """Tokens that it reads of every modality and gives; null: those that audio and video were cached with, else 64."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout inside the fusion, in training."""


class LoraSettings(Section):
    """Low-rank adapters in the frozen language model."""

    r: int = Field(64, ge=0)
    """0 trains fusion and projectors alone."""
    alpha: float = 16.0
    """Scale of the adapters: alpha / r."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout of the adapters, in training."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers of the decoder that get an adapter."""


class ModelConfig(Section):
    """The network: the language model and the parts that are trained."""

    llm: str | None = "meta-llama/Llama-2-7b-chat-hf"
    """Hub id or local folder of any causal language model of transformers; null: none, a probe with a linear head."""
    llm_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """Dtype of the frozen base; the trained parts are always float32."""
    quantised: Literal["fp8", "int8", "nf4"] | None = None
    """The frozen matrices of the layers in 8 or 4 bits: fp8 multiplies in FP8 on Hopper and Ada; int8 and nf4 take
    bitsandbytes. Embeddings, head and everything trained stay as they are."""
    fusion: FusionConfig = FusionConfig()
    lora: LoraSettings = LoraSettings()
    frozen: tuple[Literal["fusion", "projectors", "lora"], ...] = ()
    """Parts that keep their weights in this stage."""


class FeaturesConfig(Section):
    """Name of the feature in the store that serves each modality; null leaves the modality out."""

    audio: str | None = "whisper"
    """Feature of the sound."""
    image: str | None = "eva-global"
    """Feature of the single frame."""
    video: str | None = "eva-temporal"
    """Feature of the frames over time."""
    absent: Literal["hidden", "visible"] = "hidden"
    """hidden: an absent modality has no place in the prompt. visible: zeros are put through its projector and the
    fusion, as the released code does; for a picture, the tokens of an all-zero image."""
    zero_image: str | None = None
    """safetensors file with the tokens of an all-zero image, for `absent: visible`; in the working directory or beside
    the clip list. `fusion-train zero-image` makes it."""

    @property
    def used(self) -> dict[str, str]:
        return {modality: getattr(self, modality) for modality in MODALITIES if getattr(self, modality)}


class DataConfig(Section):
    """Clips and questions: which are trained on, which are scored."""

    train_split: str = "train"
    """Split of the clips that are trained on."""
    eval_split: str | None = "val"
    """Scored during training; null for none."""
    tasks: tuple[str, ...] = ("emotion",)
    """One is drawn for each sample, uniformly among those that its dataset has; without an answer, the label task."""
    task_weights: dict[str, dict[str, Annotated[int, Field(ge=1)]]] = {}
    """Dataset -> task -> how many times as often as another task of the dataset it is drawn."""
    fallback: dict[str, str] = {}
    """Dataset -> label task that stands in for an empty or too long answer; otherwise the one that the answer argues
    for, else the first of `tasks` that the clip has."""
    max_answer_tokens: int = Field(MAX_ANSWER_TOKENS, ge=1)
    """A longer answer falls back to the label task."""
    max_answer_words: int | None = Field(None, ge=1)
    """The same limit in words; null: no limit."""
    too_long: TooLong = "refuse"
    """What to do about clips whose prompt has more tokens than the model takes, or whose answers are all too long
    without a label in their place: refuse, leave_out with a notice, or cut the text. Found before the first step."""
    mixture: dict[str, float] | None = None
    """Dataset -> weight of a draw; null: every clip once an epoch, in an order drawn anew each epoch."""
    mixture_absent: OnAbsent = "refuse"
    """What to do about datasets of the mixture that the clip list does not have: refuse, or leave_out with a notice."""
    eval_clips: int | None = Field(None, ge=1)
    """Score during training on this many clips of that split, always the same ones; null: all of them."""
    failed_clips: Literal["refuse", "skip"] = "refuse"
    """What to do about clips whose extraction failed."""
    exclude: tuple[str, ...] = ()
    """Clip lists of clips to leave out, such as `fcache duplicates` and `leaks` write; beside the clip list."""
    corrections: tuple[str, ...] = ()
    """Files of corrected labels, such as `fcache audit` writes; beside the clip list."""
    questions_per_clip: int = Field(1, ge=1)
    """Questions drawn in a row for each clip drawn, different tasks first; in one pack they share their prefix."""
    share_prefix: bool = True
    """Compute what the prompts of a pack's questions on one clip begin with once; same loss, same gradients."""
    hide_modality_p: float = Field(0.0, ge=0, le=1)
    """Probability that a sample is shown only some of its modalities, so that the model copes with their absence."""

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if task not in TASKS:
                raise ValueError(f'no task "{task}"; there are {", ".join(TASKS)}.{suggest(task, TASKS)}')
        if not tasks:
            raise ValueError("at least one task is needed")
        return tasks

    @model_validator(mode="after")
    def _tasks_of_datasets(self) -> DataConfig:
        for dataset, weights in self.task_weights.items():
            for task in weights:
                if task not in TASKS:
                    raise ValueError(f'task_weights.{dataset}: no task "{task}".{suggest(task, TASKS)}')
        for dataset, task in self.fallback.items():
            if task not in TASKS or TASKS[task].answer not in ("label", "labels"):
                known = [name for name, each in TASKS.items() if each.answer in ("label", "labels")]
                raise ValueError(f'fallback.{dataset}: "{task}" is none of {", ".join(known)}.{suggest(task, known)}')
        return self


class PromptConfig(Section):
    """The fields of `prompts.PromptFormat`, which says what each does."""

    template: str = PromptFormat.template
    picture_template: str | None = PromptFormat.picture_template
    said: str = PromptFormat.said
    said_by: str | None = PromptFormat.said_by
    said_without_words: bool = PromptFormat.said_without_words
    clean_text: bool = PromptFormat.clean_text
    verbatim: bool = PromptFormat.verbatim
    label_separator: str = PromptFormat.label_separator
    recalled: str = PromptFormat.recalled
    clean_answers: bool = PromptFormat.clean_answers
    instructions: dict[str, str | tuple[str, ...]] = {}
    asked_as: dict[str, str] = {}

    @field_validator("instructions", "asked_as")
    @classmethod
    def _of_tasks(cls, values: dict[str, Any]) -> dict[str, Any]:
        for key, text in values.items():
            task, colon, label = key.rpartition("/")[2].partition(":")
            if task not in TASKS or (colon and not (label and TASKS[task].argues)):
                raise ValueError(f'"{key}" is no TASK or DATASET/TASK: no task "{task}".{suggest(task, TASKS)}')
            if not text or not all(text):
                raise ValueError(f'"{key}" has an empty text')
        return values

    def changed(self, *changes: Mapping[str, Any]) -> PromptConfig:
        """These settings with others laid over them, key by key.

        Raises:
            ValidationError: unknown keys or wrong values.
        """
        values = self.model_dump()
        for change in changes:
            merge(values, change)
        return PromptConfig.model_validate(values)

    def format(self) -> PromptFormat:
        return PromptFormat(**self.model_dump())


class EvaluationConfig(Section):
    """How held-out clips are asked by `fusion-train eval`, where that differs from training."""

    answer: Literal["choose", "generate"] | None = None
    """How one label is answered where the benchmark does not say it; null: chosen among the labels."""
    prompt: dict[str, Any] = {}
    """Settings laid over `prompt`."""
    datasets: dict[str, dict[str, Any]] = {}
    """Dataset -> settings laid over these."""

    @model_validator(mode="after")
    def _prompts(self) -> EvaluationConfig:
        for changes in (self.prompt, *self.datasets.values()):
            PromptConfig().changed(changes)
        return self


class PartFactors(Section):
    """What a part's learning rate is multiplied with."""

    fusion: float = Field(1.0, gt=0)
    """Factor of the fusion."""
    projectors: float = Field(1.0, gt=0)
    """Factor of the projectors."""
    lora: float = Field(1.0, gt=0)
    """Factor of the LoRA adapters."""
    head: float = Field(1.0, gt=0)
    """Factor of the linear head of the probe."""


class OptimConfig(Section):
    """The optimizer step: its samples, its loss, its learning rates."""

    steps: int = Field(50_000, ge=1)
    """Optimizer steps of the stage."""
    batch_size: int = Field(4, ge=1)
    """Samples (questions) a step, over all devices and accumulated micro-batches."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Samples a forward pass on one device, packed into one row; auto: as many as fit a token budget."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """That budget; null: what the memory model says fits the card, 4096 on a CPU."""
    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations a second time to keep fewer; auto: where the memory model asks for it."""
    compile: bool = False
    """torch.compile of the language model's layers in training, without attention; rows of any layout share a graph."""
    loss_per: Literal["sample", "token"] = "token"
    """Mean over samples (the published set-up: every answer weighs alike) or over supervised tokens."""
    shard_base: bool = False
    """Share the frozen layers out over the processes (FSDP2); the trained parts stay whole on each."""
    deterministic: bool = False
    """Deterministic kernels on a GPU, so that a resumed run equals an uninterrupted one there too."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate that the warm-up rises to."""
    warmup_lr: float = Field(1e-6, ge=0)
    """Learning rate of step 0."""
    min_lr: float = Field(1e-6, ge=0)
    """Learning rate where the cosine ends."""
    warmup_steps: int = Field(1_000, ge=0)
    """Steps of the linear warm-up."""
    cosine_from: Literal["warmup", "start"] = "warmup"
    """Where the cosine begins: at the end of the warm-up, or at step 0 with the warm-up laid over it, as the released
    code does."""
    lr_factors: PartFactors = PartFactors()
    """Learning rates by part, as factors of the schedule's."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keep a moving average of the learning parts, such as 0.999; it is what is scored, exported and started from."""
    weight_decay: float = Field(0.05, ge=0)
    """Not applied to biases and norms."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments of AdamW."""
    max_grad_norm: float | None = None
    """Clip the gradient's norm; the published recipe does not."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Autocast of the forward pass; fp32 computes without."""


class CheckpointConfig(Section):
    """When the state of training is saved, and how long a checkpoint is kept."""

    every: int = Field(1_000, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept; the best one is kept besides."""
    keep_every: int | None = Field(None, ge=1)
    """Keep besides every checkpoint whose step is a multiple of this."""


class LogConfig(Section):
    """Metrics of training, scorings of held-out clips, and early stopping."""

    every: int = Field(10, ge=1)
    """Steps between two lines of `metrics.jsonl`."""
    eval_every: int = Field(5_000, ge=1)
    """Steps between scorings on the held-out split."""
    patience: int | None = Field(None, ge=1)
    """Stop early after this many scorings in a row without a better score; null: never."""
    peak_tflops: float | None = Field(None, gt=0)
    """Matrix peak of one device, of which utilisation is the share; null: measured at the start."""
    tensorboard: bool = True
    """Write event files for TensorBoard into the folder of the run."""
    tracker: Literal["wandb", "trackio"] | None = None
    """Sends the metrics to W&B or trackio besides."""
    project: str = "fusion-train"
    """Name of the tracker's project."""


class RetrievalConfig(Section):
    """Labels of the nearest training clips in the prompt; see `retrieval`."""

    k: int = Field(0, ge=0)
    """How many; 0 for none. The features in use must be indexed: `fcache index`."""
    reasons: bool = False
    """Also the beginning of their `reason`."""


class Config(Section):
    """Everything that decides a run."""

    stage: str = "perception"
    """Name of the stage; each has a file under `configs/stages/`."""
    init_stage: str | None = None
    """Start from the latest finished run of this stage; `--init` names another run."""
    seed: int = 0
    """Seed of every random choice: initial weights, samples, dropout."""
    model: ModelConfig = ModelConfig()
    features: FeaturesConfig = FeaturesConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    retrieval: RetrievalConfig = RetrievalConfig()
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON, first 16 hex digits."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def differences(self, other: Config) -> list[str]:
        """Dotted keys whose values differ, as `key: mine != theirs`."""
        return list(_differing(self.model_dump(mode="json"), other.model_dump(mode="json")))


def validate(values: Mapping[str, Any], subject: str) -> Config:
    """Check a nested mapping of settings.

    Raises:
        ConfigError: every unknown key (with the near one) and every wrong value.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        raise ConfigError(
            subject,
            expected="a valid configuration",
            got=f"{len(problems)} problem{'s' if len(problems) > 1 else ''}",
            problems=problems,
        ) from error


def _differing(mine: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Differences key by key; a mapping that one side does not have is one difference, however many keys it has."""
    for key in sorted({*mine, *theirs}):
        left, right = mine.get(key), theirs.get(key)
        if left and right and isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _differing(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}: {_shown(left)} != {_shown(right)}"


def _shown(value: Any) -> str:
    return "{" + ", ".join(value) + "}" if isinstance(value, Mapping) else repr(value)


def _problem(item: Mapping[str, Any]) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        known = _keys_beside(item["loc"])
        return f"{key}: unknown key.{suggest(str(item['loc'][-1]), known)} Known: {', '.join(known)}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower() + message[1:]}, got {item['input']!r}"


def _keys_beside(location: tuple[Any, ...]) -> list[str]:
    section: Any = Config
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
