"""What training costs: arithmetic, memory by kind, hours; from sizes alone, before anything is loaded.

FLOPs. N = parameters of the language model's matrices, head included (6.607 B for LLaMA2-7B). LoRA on a frozen base
costs 4N a token (forward 2N, gradient of the activations 2N) and 6N with activation checkpointing: 15.9 TFLOP for a
sample of 600 tokens. That is the rule; `SampleFlops` counts what is really computed, with the head at supervised
positions alone, and attention and the trained parts besides.

Memory. Activations are counted as autograd keeps them for transformers' Llama family with flash or SDPA kernels; a
test holds the count against the tensors that a forward pass really saves. All sizes in bytes, all counts in tokens.
Knows no configuration, no file and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from fusion_train.errors import refuse_unknown

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
BASE_BYTES = {**DTYPE_BYTES, "fp8": 2.0, "int8": 1.0, "nf4": 0.516}
"""Bytes a parameter of the frozen matrices; nf4 is 4 bits and doubly quantised scales of 64 values each;
fp8 keeps a copy for the forward and one for the backward product."""
TRAINED_BYTES = 4  # trained parts, their gradients and AdamW's two moments are float32
MASK_BYTES = 1  # of a dropout mask on CUDA
RESERVED_BYTES = 1 << 30  # CUDA context, library workspaces and what the allocator cannot use
DEFAULT_UTILISATION = 0.45
"""Assumed share of a card's published dense peak that training reaches, where no measurement is given."""


@dataclass(frozen=True)
class Gpu:
    """A card by its published figures."""

    name: str
    memory_gib: int
    bf16_tflops: float
    """Dense matrix peak of bf16, or of fp16 where the card has no bf16."""
    fp8_tflops: float | None = None

    def peak_flops(self, *, fp8: bool = False) -> float:
        """Dense matrix peak a second."""
        return (self.fp8_tflops if fp8 and self.fp8_tflops else self.bf16_tflops) * 1e12


GPUS = {
    gpu.name.lower().replace(" ", "-"): gpu
    for gpu in (
        Gpu("B200", 180, 2250, 4500),
        Gpu("H200", 141, 989, 1979),
        Gpu("H100", 80, 989, 1979),
        Gpu("A100 80GB", 80, 312),
        Gpu("A100 40GB", 40, 312),
        Gpu("RTX 6000 Ada", 48, 364, 728),
        Gpu("L40S", 48, 362, 733),
        Gpu("A6000", 48, 155),
        Gpu("RTX 5090", 32, 210, 419),
        Gpu("V100", 32, 125),
        Gpu("RTX 4090", 24, 165, 330),
        Gpu("RTX 3090", 24, 71),
        Gpu("L4", 24, 121, 242),
        Gpu("A10", 24, 125),
        Gpu("T4", 16, 65),
    )
}


def find_gpu(name: str) -> Gpu:
    """Return a card by name, such as "h200".

    Raises:
        ConfigError: no such card; the near name is suggested.
    """
    key = name.lower().replace(" ", "-")
    refuse_unknown("GPU", key, GPUS)
    return GPUS[key]


@dataclass(frozen=True)
class LlmShape:
    """Sizes of a causal language model that decide its costs."""

    width: int
    layers: int
    intermediate: int
    query_width: int
    """Heads × width of a head."""
    key_width: int
    """Key-value heads × width of a head."""
    heads: int
    vocabulary: int
    layer_parameters: int
    """Matrices of all layers."""
    head_parameters: int
    other_parameters: int
    """Input embeddings (none where they are tied to the head), norms, biases."""

    @property
    def matrix_parameters(self) -> int:
        """N of the rule 4N a token."""
        return self.layer_parameters + self.head_parameters


@dataclass(frozen=True)
class LoraShape:
    """Sizes of the adapters: parameters, and the summed input widths and number of the layers that have one."""

    parameters: int = 0
    input_width: int = 0
    modules: int = 0
    r: int = 0


@dataclass(frozen=True)
class SampleFlops:
    """Arithmetic of one sample, forward and backward."""

    layers: float
    """Frozen matrices of the layers."""
    head: float
    """The LM head, at supervised positions."""
    attention: float
    """Scores and weighted sums, causal."""
    trained: float
    """LoRA, projectors and fusion: 6 a parameter and token."""
    recomputed: float
    """The layers' second forward with activation checkpointing."""

    @property
    def model(self) -> float:
        """What must be computed; the numerator of utilisation."""
        return self.layers + self.head + self.attention + self.trained

    @property
    def total(self) -> float:
        """What is computed."""
        return self.model + self.recomputed


def rule_flops(llm: LlmShape, tokens: float, *, checkpointing: bool = False) -> float:
    """4N a token, 6N with activation checkpointing."""
    return (6 if checkpointing else 4) * llm.matrix_parameters * tokens


def sample_flops(
    llm: LlmShape,
    lora: LoraShape,
    *,
    tokens: float,
    supervised: float,
    adapter: float = 0.0,
    checkpointing: bool = False,
) -> SampleFlops:
    """Count one sample.

    Args:
        tokens: length of the sample, soft tokens included.
        supervised: answer tokens, which alone pass the head.
        adapter: parameters of fusion and projectors, each times the soft tokens that it gives.
    """
    scores = 2 * tokens**2 * llm.query_width * llm.layers  # two products of L² / 2 · width multiply-adds
    return SampleFlops(
        layers=4 * llm.layer_parameters * tokens,
        head=4 * llm.head_parameters * supervised,
        attention=3.5 * scores,  # forward 2 products, backward 5
        trained=6 * (lora.parameters * tokens + adapter),
        recomputed=(2 * llm.layer_parameters * tokens + scores) if checkpointing else 0.0,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step, by kind."""

    base: int
    """Frozen weights."""
    trained: int
    """LoRA, fusion and projectors, float32."""
    gradients: int
    optimizer: int
    """AdamW's two moments."""
    ema: int
    activations: int
    logits: int
    """Logits, their float32 copy and its gradient at the supervised positions."""
    features: int
    """Cached tokens of a micro-batch and their copies in the trained parts' dtype."""
    workspace: int
    """A quantised matrix restored for its product."""
    reserved: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def by_kind(self) -> dict[str, int]:
        """Kind -> bytes, the largest first."""
        kinds = {field.name: getattr(self, field.name) for field in fields(self)}
        return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def activation_bytes(
    llm: LlmShape, lora: LoraShape, tokens: int, *, compute: str, checkpointing: bool, dropout: bool = True
) -> int:
    """What autograd keeps of the language model's layers for `tokens` tokens of a micro-batch.

    A layer keeps, a token: the input of both norms in float32; query, key, value and output of the attention and its
    log-sum; gate, activation and product of the feed-forward; a copy of the input of every adapted matrix with its
    dropout. With checkpointing each layer keeps its input alone and one layer at a time is computed again.
    """
    size = DTYPE_BYTES[compute]
    norms = 2 * 4 * llm.width
    attention = size * (2 * llm.query_width + 2 * llm.key_width) + 4 * llm.heads
    feed_forward = 3 * size * llm.intermediate
    layer = norms + attention + feed_forward
    adapters = lora.input_width * (size + (MASK_BYTES + size if dropout else 0)) + lora.modules * lora.r * size
    if checkpointing:
        return tokens * (llm.layers * size * llm.width + layer + adapters // max(llm.layers, 1))
    return tokens * (llm.layers * layer + adapters + 4 * llm.width)


def memory(
    llm: LlmShape,
    lora: LoraShape,
    *,
    trained: int,
    tokens: int,
    supervised: int,
    learning: int | None = None,
    feature_values: int = 0,
    base: str = "bfloat16",
    compute: str = "bfloat16",
    checkpointing: bool = False,
    ema: bool = False,
    reserved: int = RESERVED_BYTES,
) -> Memory:
    """Count the memory of one device.

    Args:
        trained: parameters of the trained parts; `learning` those that are not frozen, default all.
        tokens, supervised: of one micro-batch, padding included.
        feature_values: numbers of the cached tokens of one micro-batch.
        base: dtype of the frozen matrices, a key of `BASE_BYTES`; what is quantised are the layers alone.
        compute: dtype of the activations.
    """
    plain = BASE_BYTES[base] if base in DTYPE_BYTES else DTYPE_BYTES["bfloat16"]
    learning = trained if learning is None else learning
    quantised = base not in DTYPE_BYTES
    return Memory(
        base=round(llm.layer_parameters * BASE_BYTES[base] + (llm.head_parameters + llm.other_parameters) * plain),
        trained=TRAINED_BYTES * trained,
        gradients=TRAINED_BYTES * learning,
        optimizer=2 * TRAINED_BYTES * learning,
        ema=TRAINED_BYTES * learning if ema else 0,
        activations=activation_bytes(llm, lora, tokens, compute=compute, checkpointing=checkpointing),
        logits=supervised * llm.vocabulary * (DTYPE_BYTES[compute] + 8),
        features=feature_values * (2 + 4 + DTYPE_BYTES[compute]),
        workspace=llm.width * llm.intermediate * DTYPE_BYTES[compute] if quantised else 0,
        reserved=reserved,
    )


def hours(flops: float, gpu: Gpu, utilisation: float = DEFAULT_UTILISATION, *, fp8: bool = False) -> float:
    """Hours that one card takes for `flops`."""
    return flops / (gpu.peak_flops(fp8=fp8) * utilisation) / 3600


def advice(needed: Memory, *, checkpointing: bool, base: str, smaller: str | None) -> str:
    """Name the largest consumer that can shrink, and the setting that shrinks it.

    Args:
        smaller: a setting with fewer tokens a row; None where rows are of one sample already.
    """
    knobs: Mapping[str, str] = {
        "activations": smaller or "optim.activation_checkpointing=true",
        "base": "model.quantised=nf4",
        "logits": "a smaller data.max_answer_tokens",
        "optimizer": "a smaller model.lora.r",
    }
    fixed = {"reserved", "workspace", "features", "gradients", "trained", "ema"}
    if checkpointing and smaller is None:
        fixed.add("activations")
    if base == "nf4":
        fixed.add("base")
    kind, size = next((item for item in needed.by_kind().items() if item[0] not in fixed), ("optimizer", 0))
    return f"Of {needed.total / 2**30:.1f} GiB by the memory model, {size / 2**30:.1f} are {kind}: set {knobs[kind]}."
