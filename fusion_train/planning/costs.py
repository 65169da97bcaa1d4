"""The cost model of training: arithmetic, memory by kind, and hours, computed from sizes before anything is loaded.

FLOPs. N = parameters of the language model's matrices, head included (6.607 B for LLaMA2-7B). LoRA on a frozen base
costs 4N per token (forward 2N, gradient of the activations 2N), and 6N with activation checkpointing: 15.9 TFLOP for a
sample of 600 tokens. This is the usual rule. `SampleFlops` counts the real arithmetic: the head only at supervised
positions, and attention and the trained parts in addition.

Memory. Activations are counted as autograd keeps them for the Llama family of transformers with flash or SDPA kernels;
a test compares the count with the tensors that a forward pass saves. Sizes are in bytes, counts in tokens.
This module knows no configuration, no file and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusion_train.errors import refuse_unknown

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
BASE_BYTES = {**DTYPE_BYTES, "fp8": 2.0, "int8": 1.0, "nf4": 0.516}
"""Bytes per parameter of the frozen matrices. nf4 has 4 bits, and doubly quantised scales for 64 values each; fp8
keeps one copy for the forward and one for the backward product."""
TRAINED_BYTES = 4  # trained parts, their gradients and AdamW's two moments are float32
MASK_BYTES = 1  # per value of a dropout mask on CUDA
RESERVED_BYTES = 1 << 30  # CUDA context, library workspaces, and memory lost to fragmentation
DEFAULT_UTILISATION = 0.45
"""Share of a card's published dense peak that training is assumed to reach without a measurement."""


@dataclass(frozen=True)
class Gpu:
    """A GPU with its published figures."""

    name: str
    memory_gib: int
    bf16_tflops: float
    """Dense matrix peak of bf16, or of fp16 for a card without bf16."""
    fp8_tflops: float | None = None

    def peak_flops(self, *, fp8: bool = False) -> float:
        """Return the dense matrix peak in FLOP per second."""
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
    """Return a GPU by name, such as "h200".

    Raises:
        ConfigError: an unknown name; a similar name is suggested.
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
        """N of the rule 4N per token."""
        return self.layer_parameters + self.head_parameters


@dataclass(frozen=True)
class LoraShape:
    """Sizes of the LoRA adapters: parameters, number of adapted matrices, and the sum of their input widths."""

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
    """LM head, at supervised positions."""
    attention: float
    """Scores and weighted sums, causal."""
    trained: float
    """LoRA, projectors and fusion: 6 per parameter and token."""
    recomputed: float
    """Second forward pass of the layers with activation checkpointing."""

    @property
    def model(self) -> float:
        """FLOPs without recomputation; the numerator of utilisation."""
        return self.layers + self.head + self.attention + self.trained

    @property
    def total(self) -> float:
        """FLOPs with recomputation."""
        return self.model + self.recomputed


def rule_flops(llm: LlmShape, tokens: float, *, checkpointing: bool = False) -> float:
    """Return the FLOPs by the rule: 4N per token, 6N with activation checkpointing."""
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
    """Count the arithmetic of one sample.

    Args:
        tokens: length of the sample, soft tokens included.
        supervised: number of answer tokens; only these pass the head.
        adapter: parameters of fusion and projectors, each multiplied with the number of its soft tokens.
    """
    scores = 2 * tokens**2 * llm.query_width * llm.layers  # two products of L² / 2 · width multiply-adds
    return SampleFlops(
        layers=4 * llm.layer_parameters * tokens,
        head=4 * llm.head_parameters * supervised,
        attention=3.5 * scores,  # forward 2 products, backward 5
        trained=6 * (lora.parameters * tokens + adapter),
        recomputed=(2 * llm.layer_parameters * tokens + scores) if checkpointing else 0.0,
    )


class MemoryKinds:
    """Memory of one device in bytes by kind, the fields of a derived dataclass."""

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.by_kind().values())

    def by_kind(self) -> dict[str, int]:
        """Return kind -> bytes, the largest first."""
        kinds: dict[str, int] = dict(vars(self))
        return dict(sorted(kinds.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Memory(MemoryKinds):
    """Memory of one device at the peak of a step, in bytes by kind."""

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
    """Cached tokens of a micro-batch, and their copies in the dtype of the trained parts."""
    workspace: int
    """Gradients of one layer's activations, and one quantised matrix, restored for its product."""
    reserved: int


@dataclass(frozen=True)
class ScoringMemory(MemoryKinds):
    """Memory of one device while held-out clips are answered during training, in bytes by kind."""

    base: int
    trained: int
    """LoRA, fusion and projectors, float32."""
    optimizer: int
    """AdamW's moments and the moving average, which training keeps meanwhile."""
    activations: int
    """Of one layer, over the tokens of one pass; nothing is kept for a backward pass."""
    cache: int
    """Keys and values of all layers, for answers that are generated."""
    logits: int
    """Logits at the scored places of a pass, and their float32 copy."""
    features: int
    reserved: int


def activation_bytes(
    llm: LlmShape,
    lora: LoraShape,
    tokens: int,
    *,
    compute: str,
    checkpointing: bool,
    dropout: bool = True,
    fused: bool = False,
) -> int:
    """Return the bytes that autograd keeps of the language model's layers for a micro-batch of `tokens` tokens.

    A layer keeps, per token: the input of both norms in float32 and its scale; query, key, value, output and log-sum of
    the attention; gate, activation and product of the feed-forward; a copy of the input of every adapted matrix with
    its dropout. A prefix that questions share is kept once (`models.prefix_attention`). With checkpointing a layer
    keeps only its input, and one layer at a time is computed again. Fused layers (`models.fused_layers`) keep the input
    of norms in the dtype of the activations, and no activation of the feed-forward.
    """
    size = DTYPE_BYTES[compute]
    norm = (size if fused else 4) * llm.width + 4
    attention = size * (2 * llm.query_width + 2 * llm.key_width) + 4 * llm.heads
    feed_forward = (2 if fused else 3) * size * llm.intermediate
    layer = 2 * norm + attention + feed_forward
    adapters = lora.input_width * (size + (MASK_BYTES if dropout else 0)) + lora.modules * lora.r * size
    rotary = 2 * size * (llm.query_width // max(llm.heads, 1))
    if checkpointing:
        return tokens * (llm.layers * size * llm.width + layer + adapters // max(llm.layers, 1) + rotary)
    return tokens * (llm.layers * layer + adapters + norm + rotary)


def backward_bytes(llm: LlmShape, tokens: int, *, compute: str) -> int:
    """Return the bytes of the gradients that exist at once while the backward pass runs through one layer.

    They are those of gate, activation and product of the feed-forward, and of norm and residual in float32.
    """
    return tokens * (3 * DTYPE_BYTES[compute] * llm.intermediate + 3 * 4 * llm.width)


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
    fused: bool = False,
    ema: bool = False,
    reserved: int = RESERVED_BYTES,
) -> Memory:
    """Count the memory of one device.

    Args:
        trained: parameters of the trained parts.
        learning: those of them that are not frozen in this stage; None: all.
        tokens, supervised: tokens and supervised tokens of one micro-batch, padding included.
        feature_values: number of values in the cached tokens of one micro-batch.
        base: dtype of the frozen matrices, a key of `BASE_BYTES`; only the layers are quantised.
        compute: dtype of the activations.
        fused: whether the layers are those of `models.fused_layers`.
    """
    learning = trained if learning is None else learning
    quantised = base not in DTYPE_BYTES
    return Memory(
        base=_base_bytes(llm, base),
        trained=TRAINED_BYTES * trained,
        gradients=TRAINED_BYTES * learning,
        optimizer=2 * TRAINED_BYTES * learning,
        ema=TRAINED_BYTES * learning if ema else 0,
        activations=activation_bytes(llm, lora, tokens, compute=compute, checkpointing=checkpointing, fused=fused),
        logits=supervised * llm.vocabulary * (DTYPE_BYTES[compute] + 8),
        features=feature_values * (2 + 4 + DTYPE_BYTES[compute]),
        workspace=backward_bytes(llm, tokens, compute=compute)
        + (llm.width * llm.intermediate * DTYPE_BYTES[compute] if quantised else 0),
        reserved=reserved,
    )


def scoring_memory(
    llm: LlmShape,
    *,
    trained: int,
    learning: int,
    row_tokens: int,
    cached_tokens: int,
    scored: int,
    feature_values: int,
    base: str,
    fused: bool = False,
    ema: bool = False,
    reserved: int = RESERVED_BYTES,
) -> ScoringMemory:
    """Count the memory of answering held-out clips during training.

    Args:
        trained, learning, feature_values, base: as in `memory`.
        row_tokens: tokens of one pass over the layers.
        cached_tokens: tokens whose keys and values are kept, of all clips that are answered at once.
        scored: places of a pass whose logits are computed.
    """
    size = DTYPE_BYTES.get(base, DTYPE_BYTES["bfloat16"])
    layer = 2 * 4 * llm.width + size * (2 * llm.width + 2 * llm.query_width + 2 * llm.key_width + 3 * llm.intermediate)
    return ScoringMemory(
        base=_base_bytes(llm, base),
        trained=TRAINED_BYTES * trained,
        optimizer=(3 if ema else 2) * TRAINED_BYTES * learning,
        activations=row_tokens * layer,
        cache=cached_tokens * 2 * size * llm.key_width * llm.layers,
        logits=scored * llm.vocabulary * (size + 8),
        features=feature_values * (2 + 4 + size),
        reserved=reserved,
    )


def _base_bytes(llm: LlmShape, base: str) -> int:
    """Return the bytes of the frozen weights; only the layers are quantised."""
    plain_bytes = BASE_BYTES[base] if base in DTYPE_BYTES else DTYPE_BYTES["bfloat16"]
    return round(llm.layer_parameters * BASE_BYTES[base] + (llm.head_parameters + llm.other_parameters) * plain_bytes)


def hours(flops: float, gpu: Gpu, utilisation: float = DEFAULT_UTILISATION, *, fp8: bool = False) -> float:
    """Return the hours that one GPU needs for `flops`."""
    return flops / (gpu.peak_flops(fp8=fp8) * utilisation) / 3600


def advice(needed: Memory, *, checkpointing: bool, base: str, smaller: str | None) -> str:
    """Name the largest kind of memory that can be reduced, and the setting that reduces it.

    Args:
        smaller: a setting with fewer tokens per row; None if a row has one sample already.
    """
    settings: Mapping[str, str] = {
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
    return (
        f"Of {needed.total / 2**30:.1f} GiB by the memory model, {size / 2**30:.1f} are {kind}: set {settings[kind]}."
    )
