"""Load a causal language model and its tokenizer from transformers, strictly, and build the model that is trained.

While weights load, one line on standard error says so: a spinner on a terminal, a plain line elsewhere. Progress bars
and notices of the libraries are switched off; incomplete weights raise an error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from featurecache.console import note
from featurecache.encoders.checkpoint import quiet_transformers
from featurecache.encoders.hub import hub_answers, no_answer
from featurecache.encoders.network import align
from featurecache.outside_text import one_line
from featurecache.terminal import OUTPUT, Screen
from fusion_train.config import Config
from fusion_train.errors import ConfigError, ModelError
from fusion_train.llm.family_check import abilities_of
from fusion_train.llm.reach import unavailable
from fusion_train.models.answering import plain_generation
from fusion_train.models.emotion_llama import EmotionLlama, fusion_token_count, llm_width
from fusion_train.models.fusions import build_fusion
from fusion_train.models.lora import add_lora
from fusion_train.models.packed_attention import use_packed_attention
from fusion_train.models.parts import freeze, freeze_parts
from fusion_train.models.token_streams import PATCHES_PER_TOKEN, FeatureShapes
from fusion_train.processes import this_process
from fusion_train.prompts.prompt import PromptFormat
from fusion_train.seeding import derive


@contextmanager
def loading_weights(kind: str, place: str | Path) -> Iterator[None]:
    """Report on standard error that the block loads weights; only the main process does.

    Args:
        kind: what is loaded, such as "language model".
        place: a folder or hub id.
    """
    name = f"{kind} {Path(place).resolve().name if Path(place).exists() else place}"
    with quiet_transformers():
        if not this_process().is_main_process:
            yield
        elif OUTPUT.quiet or not sys.stderr.isatty():
            note(f"loading {name}")
            yield
        else:
            began = time.monotonic()
            with Screen(stderr=True).status(one_line(f"loading {name}")):
                yield
            note(f"{name}: loaded in {time.monotonic() - began:.1f} s")


_LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
KNOWN_SIZES = dict.fromkeys(("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf"), _LLAMA_2_7B)
"""Published sizes of gated models: planning with them needs no account and no network."""


def llm_config(name: str) -> Any:
    """Return the transformers configuration of a hub id or local folder, without reading weights.

    Raises:
        ModelError: there is no such model.
    """
    if name in KNOWN_SIZES and not Path(name).exists():
        return LlamaConfig(**KNOWN_SIZES[name])
    try:
        return AutoConfig.from_pretrained(name, **_reading(name))
    except (OSError, ValueError) as error:
        raise _unavailable(name, error) from error


def positions_of(config: Any) -> int | None:
    """Return how many positions a model with learned position embeddings has; None for computed positions."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    rotary = getattr(text, "rope_parameters", None) or getattr(text, "rope_theta", None)
    return positions if isinstance(positions, int) and positions > 0 and not rotary else None


def skeleton(config: Any) -> Any:
    """Return a causal language model of these sizes; inside `torch.device("meta")` it takes no memory."""
    return AutoModelForCausalLM.from_config(config)


def load_tokenizer(name: str) -> Any:
    """Open a tokenizer by hub id or local folder.

    Raises:
        ModelError: there is no such tokenizer, or it has no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **_reading(name))
    except (OSError, ValueError) as error:
        raise _unavailable(name, error) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(name, expected="a tokenizer with an end-of-sequence token", got="none")
    return tokenizer


def refuse_foreign_tokens(tokenizer: Any, llm: Any, prompt: PromptFormat, name: str) -> None:
    """Check that `llm` has an embedding for every token that prompts may hold.

    Control tokens without an embedding that the format does not write (Gemma 3 has one, for pictures) are allowed:
    external texts are encoded without control tokens.

    Raises:
        ModelError: the tokenizer has other tokens than the model.
    """
    count = llm.get_input_embeddings().num_embeddings
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= count}
    format_text = prompt.template + (prompt.picture_template or "") + prompt.said + prompt.recalled
    control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    ends = {tokenizer.bos_token, tokenizer.eos_token}
    used = [
        token
        for token in sorted(beyond, key=beyond.__getitem__)
        if token not in control or token in ends or token in format_text
    ]
    if used:
        raise ModelError(
            f'model.llm "{name}"',
            expected=f"a tokenizer of at most {count:,} tokens, as many as the embedding has",
            got=f"{len(used)} beyond them, such as {used[0]!r} ({beyond[used[0]]})",
            next_step="Save the model's own tokenizer beside it, or the model after "
            f"model.resize_token_embeddings({max(beyond.values()) + 1}).",
        )


def load_llm(name: str, dtype: str) -> Any:
    """Load the frozen base.

    Raises:
        ModelError: there is no such model, or its weights are incomplete.
    """
    loaded: Any  # the stubs of transformers do not know that the information makes it a pair
    try:
        with loading_weights("language model", name):
            loaded = AutoModelForCausalLM.from_pretrained(
                name, dtype=getattr(torch, dtype), output_loading_info=True, **_reading(name)
            )
    except (OSError, ValueError) as error:
        raise _unavailable(name, error) from error
    llm, info = loaded
    problems = [
        f"{kind.replace('_', ' ')}: {item}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for item in sorted(map(str, info[kind]))
    ]
    if problems:
        raise ModelError(
            name,
            expected="weights for every parameter, and no others",
            got=f"{len(problems)} that differ",
            next_step="transformers would fill missing ones with random numbers; get a complete checkpoint.",
            problems=problems,
        )
    return align(llm)


def build_model(config: Config, llm: Any, shapes: FeatureShapes) -> EmotionLlama:
    """Freeze `llm` and add LoRA, fusion and projectors; their initial weights depend only on the seed.

    Raises:
        ConfigError: a model with these settings, or of these features, is not possible.
        ModelError: language models of this family cannot be trained, or cannot answer.
    """
    settings = config.model
    _refuse_patches_left_over(config, shapes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "initial weights"))
        width = llm_width(llm)
        llm.generation_config = plain_generation(getattr(llm, "generation_config", None))
        use_packed_attention(llm)
        abilities = abilities_of(llm)
        if settings.lora.r:
            llm = add_lora(llm, **settings.lora.model_dump())
        else:
            freeze(llm)
        count = settings.fusion.num_tokens or fusion_token_count(shapes)
        options = settings.fusion.model_dump(exclude={"name"}) | {"num_tokens": count}
        fusion = build_fusion(settings.fusion.name, shapes.fusion_dims(), **options)
        if hasattr(fusion, "with_loss"):
            raise ConfigError(
                "model.fusion.name",
                expected="a fusion without losses of its own, since these compare the clips of a batch",
                got=f'"{settings.fusion.name}"',
                next_step="Train it as a probe: --stage probe.",
            )
        model = EmotionLlama(
            llm,
            fusion,
            shapes,
            fusion_width=settings.fusion.out_dim,
            llm_width=width,
            fusion_tokens=count,
            abilities=abilities,
        )
    freeze_parts(model, settings.frozen)
    return model


def _refuse_patches_left_over(config: Config, shapes: FeatureShapes) -> None:
    tokens = shapes.image[0] if shapes.image else 1
    if (tokens - 1) % PATCHES_PER_TOKEN:
        raise ConfigError(
            f"features.image={config.features.image}",
            expected=f"a CLS token and patches in groups of {PATCHES_PER_TOKEN} (197, 577, 1025 tokens), or CLS alone",
            got=f"{tokens} tokens per picture",
            next_step="Extract it under another name with --option NAME.pool=all, or pool=cls.",
        )


def _unavailable(name: str, error: Exception) -> ModelError:
    local = Path(name).exists()
    reached = local or hub_answers()
    return unavailable(name, " ".join(str(error).split())[:300] if reached else no_answer())


def _reading(name: str) -> dict[str, bool]:
    """Return arguments of `from_pretrained`: a hub that does not answer is not asked again for each file."""
    return {"local_files_only": True} if not Path(name).exists() and not hub_answers() else {}
