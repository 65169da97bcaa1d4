"""The configuration of a run: typed sections, validated once; unknown keys are errors.

`presets` resolves a configuration from its layers. The resolved configuration is written into the run. Paths are kept
as the user gave them; the files of a run never contain an absolute path.
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
from fusion_train.prompts.prompt import MAX_ANSWER_TOKENS, TASKS, PromptFormat, is_task
from fusion_train.yaml_settings import merge

OnAbsent = Literal["refuse", "leave_out"]
"""What to do if a setting names something that the data do not have: refuse, or leave it out with a notice."""


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class FusionConfig(Section):
    """The pre-fusion module, which joins the tokens of the modalities."""

    name: str = "conv-attention"
    """none, attention, conv, q-former, conv-attention, softmax-attention, late, lmf, tfn, misa, mmim, or one of an
    installed package."""
    hidden: tuple[int, ...] = (512, 128)
    """Widths of the MLP of each modality; the last one is the width of the fusion."""
    out_dim: int = 256
    """Width of the fused tokens."""
    num_tokens: int | None = Field(None, ge=1)
    """Tokens per modality that the fusion reads, and that it returns; null: as audio and video were cached, else 64."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout inside the fusion, in training."""


class LoraSettings(Section):
    """Low-rank adapters in the frozen language model."""

    r: int = Field(64, ge=0)
    """Rank; 0 trains only fusion and projectors."""
    alpha: float = 16.0
    """Scale of the adapters: alpha / r."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout of the adapters, in training."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers of the decoder that get an adapter."""


class ModelConfig(Section):
    """The network: the language model and the parts that are trained."""

    llm: str | None = "meta-llama/Llama-2-7b-chat-hf"
    """Hub id or local folder of a causal language model of transformers; null: none, for a probe with a linear head."""
    llm_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """Dtype of the frozen base; trained parts are always float32."""
    quantised: Literal["fp8", "int8", "nf4"] | None = None
    """Store the frozen matrices of the layers in 8 or 4 bits: fp8 multiplies in FP8 on Hopper and Ada; int8 and nf4
    need bitsandbytes. Embeddings, head and trained parts are not quantised."""
    fusion: FusionConfig = FusionConfig()
    number_loss: Literal["ccc", "mse"] = "ccc"
    """Loss of a probe for labels that are numbers: 1 − CCC over the clips of a micro-batch, or the squared error in
    units of the variance of the training clips."""
    lora: LoraSettings = LoraSettings()
    frozen: tuple[Literal["fusion", "projectors", "lora"], ...] = ()
    """Trained parts that are not updated in this stage."""


class FeaturesConfig(Section):
    """Name of the feature in the store for each modality; null leaves the modality out."""

    audio: str | None = "whisper"
    """Feature of the sound."""
    image: str | None = "eva-global"
    """Feature of the single frame."""
    video: str | None = "eva-temporal"
    """Feature of the frames over time."""
    text: str | None = None
    """Feature of the words, such as one of hf-text; the fusion reads it. A language model has the words in its prompt
    besides."""
    absent: Literal["hidden", "visible"] = "hidden"
    """hidden: an absent modality has no place in the prompt. visible: the model sees zeros through its projector and
    the fusion, as in the released code; for a picture, the tokens of an all-zero image."""
    normalise: Literal["training", "speaker"] | None = None
    """For a probe, subtract a mean from every value of a token and divide by a standard deviation. training: those of
    the training clips, kept with the weights. speaker: those of the clips of the same speaker and split, so a held-out
    speaker is normalised by their own clips, without labels; such a probe cannot be exported. null: neither."""
    zero_image: str | None = None
    """safetensors file with the tokens of an all-zero image, for `absent: visible`; in the working directory or beside
    the clip list. `fusion-train zero-image` writes it."""

    @property
    def used(self) -> dict[str, str]:
        """Modality -> name of its feature, for the modalities in use."""
        return {modality: getattr(self, modality) for modality in MODALITIES if getattr(self, modality)}


class DataConfig(Section):
    """Clips and questions: which are trained on, which are scored."""

    train_split: str = "train"
    """Split of the clips that are trained on."""
    eval_split: str | None = "val"
    """Split for validation during training; null: no validation."""
    tasks: tuple[str, ...] = ("emotion",)
    """One task is drawn per sample, uniformly among the tasks of its dataset; without an answer, the label task. A
    probe also takes labels that are numbers, by their names in the clip list: `valence_score`."""
    task_weights: dict[str, dict[str, Annotated[int, Field(ge=1)]]] = {}
    """Dataset -> task -> relative frequency of the task; tasks that are not listed have 1."""
    fallback: dict[str, str] = {}
    """Dataset -> label task that replaces a task with an empty or too long answer. Datasets that are not listed use the
    label task that the answer argues for, else the first of `tasks` that the clip has."""
    max_answer_tokens: int = Field(MAX_ANSWER_TOKENS, ge=1)
    """A longer answer is replaced by that of the label task."""
    max_answer_words: int | None = Field(None, ge=1)
    """As `max_answer_tokens`, in words; null: no limit."""
    """The same limit in words; null: no limit."""
    too_long: TooLong = "refuse"
    """What to do about clips whose prompt has more tokens than the model takes, or whose answers are all too long and
    that have no label instead: refuse, leave_out with a notice, or cut the text. Checked before the first step."""
    mixture: dict[str, float] | None = None
    """Dataset -> weight of a draw; null: every clip once per epoch, in a new random order each epoch."""
    mixture_absent: OnAbsent = "refuse"
    """What to do about datasets of the mixture that the clip list does not have: refuse, or leave_out with a notice."""
    eval_clips: int | None = Field(None, ge=1)
    """Number of clips of `eval_split` for validation during training, always the same ones; null: all."""
    balanced: bool = False
    """Draw the labels of each dataset equally often, by the first of `tasks` that has labels; a clip of a rare label is
    drawn several times in the epoch of a frequent one."""
    failed_clips: Literal["refuse", "skip"] = "refuse"
    """What to do about clips whose extraction failed."""
    exclude: tuple[str, ...] = ()
    """Clip lists of clips to leave out, such as those of `fcache duplicates` and `leaks`; paths relative to the clip
    list."""
    corrections: tuple[str, ...] = ()
    """Files of corrected labels, such as those of `fcache audit`; paths relative to the clip list."""
    questions_per_clip: int = Field(1, ge=1)
    """Questions drawn one after another for each clip, different tasks first; in one pack they share their prefix."""
    share_prefix: bool = True
    """Compute the common prefix of the questions on one clip in a pack only once; loss and gradients do not change."""
    hide_modality_p: float = Field(0.0, ge=0, le=1)
    """Probability that a sample shows only some of its modalities, so that the model learns to do without them."""

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if not is_task(task):
                known = f"{', '.join(TASKS)}, and NAME_score for a label that is a number"
                raise ValueError(f'no task "{task}"; there are {known}.{suggest(task, TASKS)}')
        if not tasks:
            raise ValueError("at least one task is needed")
        return tasks

    @model_validator(mode="after")
    def _tasks_of_datasets(self) -> DataConfig:
        for dataset, weights in self.task_weights.items():
            for task in weights:
                if not is_task(task):
                    raise ValueError(f'task_weights.{dataset}: no task "{task}".{suggest(task, TASKS)}')
        for dataset, task in self.fallback.items():
            if task not in TASKS or TASKS[task].answer not in ("label", "labels"):
                known = [name for name, label_task in TASKS.items() if label_task.answer in ("label", "labels")]
                raise ValueError(f'fallback.{dataset}: "{task}" is none of {", ".join(known)}.{suggest(task, known)}')
        return self


class PromptConfig(Section):
    """The fields of `prompts.PromptFormat`, which documents them."""

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
        """Return a copy of the settings, overridden by `changes` key by key.

        Raises:
            ValidationError: unknown keys or wrong values.
        """
        values = self.model_dump()
        for change in changes:
            merge(values, change)
        return PromptConfig.model_validate(values)

    def format(self) -> PromptFormat:
        """Return the prompt format of these settings."""
        return PromptFormat(**self.model_dump())


class EvaluationConfig(Section):
    """How `fusion-train eval` asks held-out clips, where it differs from training."""

    answer: Literal["choose", "generate"] | None = None
    """How one label is answered if the benchmark does not define it; null: chosen among the labels."""
    prompt: dict[str, Any] = {}
    """Settings that override `prompt`."""
    datasets: dict[str, dict[str, Any]] = {}
    """Dataset -> settings that override `prompt` and these."""

    @model_validator(mode="after")
    def _prompts(self) -> EvaluationConfig:
        for changes in (self.prompt, *self.datasets.values()):
            PromptConfig().changed(changes)
        return self


class PartFactors(Section):
    """Factors of the learning rate by part."""

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
    """Samples (questions) per step, over all devices and accumulated micro-batches."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Samples per forward pass on one device, packed into one row; auto: as many as fit the budget of a row. null: auto
    on a GPU, 1 on a CPU. The samples of a step and their losses stay the same; a run records what was chosen."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Token budget of a row; null: what fits the GPU by the memory model, 4096 on a CPU."""
    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations a second time to save memory; auto: if the memory model requires it."""
    compile: bool | None = None
    """Compute norms, rotary positions and gated activations of the language model in one kernel each in training, by
    torch.compile; null: on a GPU. Rows of all layouts share the kernels. Needs a compiler, and on a GPU triton."""
    loss_per: Literal["sample", "token"] = "token"
    """Mean of the loss over samples (as published: every answer has the same weight) or over supervised tokens."""
    shard_base: bool = False
    """Shard the frozen layers over the processes (FSDP2); each process has the whole trained parts."""
    deterministic: bool = False
    """Use deterministic kernels on a GPU, so that a resumed run equals an uninterrupted run there too."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate that the warm-up rises to."""
    warmup_lr: float = Field(1e-6, ge=0)
    """Learning rate of step 0."""
    min_lr: float = Field(1e-6, ge=0)
    """Learning rate where the cosine ends."""
    warmup_steps: int = Field(1_000, ge=0)
    """Steps of the linear warm-up."""
    cosine_from: Literal["warmup", "start"] = "warmup"
    """Where the cosine begins: at the end of the warm-up, or at step 0 under the warm-up, as in the released code."""
    lr_factors: PartFactors = PartFactors()
    """Factors of the scheduled learning rate by part."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of a moving average of the trained parts, such as 0.999; validation, export and later stages use the
    average. null: no average."""
    weight_decay: float = Field(0.05, ge=0)
    """Not applied to biases and norms."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments of AdamW."""
    max_grad_norm: float | None = None
    """Clip the norm of the gradient; null: no clipping, as published."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Autocast dtype of the forward pass; fp32: no autocast."""


class CheckpointConfig(Section):
    """When the state of training is saved, and how long a checkpoint is kept."""

    every: int = Field(1_000, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """Number of newest checkpoints that are kept; the best checkpoint is kept too."""
    keep_every: int | None = Field(None, ge=1)
    """Also keep every checkpoint whose step is a multiple of this."""


class LogConfig(Section):
    """Metrics of training, scorings of held-out clips, and early stopping."""

    every: int = Field(10, ge=1)
    """Steps between two lines of metrics."""
    """Steps between two lines of `metrics.jsonl`."""
    eval_every: int = Field(5_000, ge=1)
    """Steps between validations."""
    patience: int | None = Field(None, ge=1)
    """Stop early after this many validations in a row without a better score; null: never."""
    peak_tflops: float | None = Field(None, gt=0)
    """Matrix peak of one device, the reference of utilisation; null: measured at the start."""
    tensorboard: bool = True
    """Write event files for TensorBoard into the folder of the run."""
    tracker: Literal["wandb", "trackio"] | None = None
    """Also send the metrics to W&B or trackio."""
    project: str = "fusion-train"
    """Name of the tracker's project."""


class RetrievalConfig(Section):
    """Labels of the nearest training clips in the prompt; see `data.retrieval`."""

    k: int = Field(0, ge=0)
    """Number of nearest clips; 0: no retrieval. The features in use must be indexed with `fcache index`."""
    reasons: bool = False
    """Also show the beginning of their `reason`."""


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
        """Return the configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def differences(self, other: Config) -> list[str]:
        """Return one line per differing key: `dotted.key: own value != other value`."""
        return list(_differing(self.model_dump(mode="json"), other.model_dump(mode="json")))


def validate(values: Mapping[str, Any], subject: str) -> Config:
    """Validate a nested mapping of settings.

    Args:
        subject: where the settings come from, for the error message.

    Raises:
        ConfigError: unknown keys (with similar known ones) and wrong values; all are listed.
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


def _differing(own: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the differences key by key; a mapping that only one side has is one difference."""
    for key in sorted({*own, *other}):
        left, right = own.get(key), other.get(key)
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
