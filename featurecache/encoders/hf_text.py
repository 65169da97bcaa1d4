"""`hf-text:ID`: tokens of a clip's words by BERT, RoBERTa, MacBERT or another network of transformers' AutoModel.

Shapes: words (bytes,) uint8 in UTF-8 -> L token ids of the checkpoint's tokenizer, at most `length` -> hidden states
(L, D) after `layer` blocks -> (T, D), T = `length`, filled with zeros -> (K, D). Every clip runs alone and at its own
length, without padding: its tokens are those that transformers gives for its words, whatever else is in the batch.

Averages run over the clip's own tokens. A clip without words is absent. A language model that is trained on such a
feature keeps the words in its prompt besides. This module knows no clip list.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from featurecache.encoders import ExportableEncoder
from featurecache.encoders.checkpoint import Checkpoint, quiet_transformers, read_options
from featurecache.encoders.huggingface import load_pretrained
from featurecache.encoders.network import (
    FrozenNetwork,
    LoadedNetwork,
    block_count,
    choose_batch_size,
    copy_without,
    load_once,
    required,
    resolve_compute_dtype,
    resolve_device,
)
from featurecache.encoders.pooling import average_over_valid, single_vector
from featurecache.errors import EncoderError, MediaError
from featurecache.files.hashing import file_sha256
from featurecache.spec import Spec
from featurecache.views import TextView

KNOWN_OPTIONS = {
    "tokens": 64,
    "pool": ("tokens", "mean", "cls"),
    "special": ("kept", "dropped"),
    "length": 512,
    "layer": None,
    "batch": None,
}
DEFAULT_BATCH = 16  # on a GPU; 1 elsewhere. It bounds how many clips wait for the device, and changes no token
UNKNOWN_LENGTH = 10**6
"""A tokenizer that states a longer limit states none (transformers writes 10**30)."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)
"""Files that decide the token ids of words; a checkpoint has some of them."""
FROM_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "ibert", "data2vec-text"}
)
"""Families whose position embeddings start after the number of the padding token."""
WITHOUT_EFFECT = frozenset(
    {"_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "id2label"}
    | {"label2id", "finetuning_task", "problem_type", "output_hidden_states", "output_attentions", "return_dict"}
)
"""Keys of config.json that change no hidden state."""
POOLER = "pooler."
"""The head that BERT's next-sentence task reads; no token passes through it."""


class HfTextEncoder(ExportableEncoder):
    """A text network of transformers, or the encoder of one that has a decoder too."""

    name = "hf-text"
    default_weights = "FacebookAI/xlm-roberta-base"
    view = TextView()
    needs_valid = True

    def __init__(
        self,
        document: Mapping[str, Any],
        tokenizer: str,
        tokenizer_hashes: Mapping[str, str],
        loaded: LoadedNetwork,
        options: Mapping[str, Any],
    ) -> None:
        """Build the encoder.

        Args:
            document: the checkpoint's config.json.
            tokenizer: JSON of the tokenizer, with its normaliser and its special tokens.
            tokenizer_hashes: sha256 of the checkpoint's `TOKENIZER_FILES`.
            options: as of `open`, with the resolved `length`.
        """
        self.network = loaded.network
        self._document, self._tokenizer_json, self._tokenizer_hashes = dict(document), tokenizer, tokenizer_hashes
        self._loaded, self._options = loaded, options
        self._tokenizer = _tokenizer_of_json(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(options["length"])
        config = loaded.config
        self.num_blocks = self.output_layer = block_count(self.name, options["layer"], config.num_hidden_layers)
        self.shape = (options["tokens"] if options["pool"] == "tokens" else 1, config.hidden_size)
        self.batch_size = choose_batch_size(self.network, options["batch"], DEFAULT_BATCH)

    @classmethod
    def open(cls, weights: str | None, device: str, compute_dtype: str, options: Mapping[str, Any]) -> HfTextEncoder:
        """Load every weight of the network, or fail.

        Options: `tokens` (64, averages over the clip's own tokens, in order), `pool` (tokens; mean: one vector, the
        average of all tokens; cls: one vector, the first token), `special` (kept or dropped: whether averages take
        [CLS], [SEP] and the like too), `length` (512, or fewer if the network takes fewer; tokens beyond are cut),
        `layer` (all blocks), `batch`.

        Raises:
            WeightsError: the checkpoint is missing, incomplete, or no network of words.
            EncoderError: unknown option, device or dtype, or more tokens than the network takes.
        """
        settings = _read_options(options)
        checkpoint = Checkpoint(weights or cls.default_weights, cls.name)
        document, config = _read_config(checkpoint)
        torch_device = resolve_device(device)
        dtype = resolve_compute_dtype(compute_dtype, torch_device)
        tokenizer, hashes, stated_length = _load_tokenizer(checkpoint)
        settings["length"] = _length(options, _longest(config, stated_length))
        loaded = load_once(
            ("hf-text", checkpoint.weights, str(torch_device), dtype),
            lambda: _load(checkpoint, config, torch_device, dtype),
        )
        return cls(document, tokenizer, hashes, loaded, settings)

    @classmethod
    def plan_shape(cls, weights: str | None, options: Mapping[str, Any]) -> tuple[int, int]:
        """Return (K, D) from the checkpoint's config only."""
        settings = _read_options(options)
        config = _read_config(Checkpoint(weights or cls.default_weights, cls.name))[1]
        return settings["tokens"] if settings["pool"] == "tokens" else 1, config.hidden_size

    @classmethod
    def plan_layers(cls, weights: str | None, options: Mapping[str, Any]) -> int:
        """Return the number of blocks, from the checkpoint's config only."""
        return int(_read_config(Checkpoint(weights or cls.default_weights, cls.name))[1].num_hidden_layers)

    @classmethod
    def from_spec(cls, spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None) -> HfTextEncoder:
        """Build the encoder of a spec around a loaded network, or around none for preprocessing."""
        document = settings["config"]
        loaded = LoadedNetwork(network, _config_of(document), dict(spec.weights), dict(spec.provenance))
        hashes = spec.preprocessing["tokenizer"]
        options = {**dict.fromkeys(KNOWN_OPTIONS), **cls.options_of(spec)}
        return cls(document, settings["tokenizer"], hashes, loaded, options)

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values from which `from_spec` and `empty_network` build the encoder without its checkpoint."""
        return {"config": self._document, "tokenizer": self._tokenizer_json}

    @classmethod
    def empty_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        """Return the network without its weights."""
        config = _config_of(settings["config"])
        network_class = _network_class(config)
        return _encoder_of(network_class._from_config(config, **_without_pooler(network_class)))

    @classmethod
    def options_of(cls, spec: Spec) -> dict[str, Any]:
        """Return the options with which `open` gives an encoder of this spec."""
        options = {
            "pool": spec.pooling["pool"],
            "special": spec.pooling["special"],
            "length": spec.preprocessing["length"],
            "layer": spec.tap["blocks"],
            "batch": spec.architecture["batch"],
        }
        return options | ({"tokens": spec.shape[0]} if spec.pooling["pool"] == "tokens" else {})

    def spec(self, stored_dtype: str) -> Spec:
        """Return everything that decides the stored bytes."""
        network = required(self.network)
        module: Any = network.module
        return Spec(
            encoder=self.name,
            implementation=1,
            weights=self._loaded.weights,
            architecture={
                "config": {key: value for key, value in self._document.items() if key not in WITHOUT_EFFECT},
                "attention": module.config._attn_implementation,
                "batch": self.batch_size,
            },
            tap={"module": type(module).__name__, "blocks": self.num_blocks},
            preprocessing={
                "text": "the clip's words as they are listed",
                "tokenizer": dict(self._tokenizer_hashes),
                "length": self._options["length"],
                "padding": "none",
            },
            pooling={
                "rule": "adaptive average over the clip's own tokens",
                "pool": self._options["pool"],
                "special": self._options["special"],
                "tokens": self.shape[0],
            },
            compute_dtype=network.compute_dtype,
            stored_dtype=stored_dtype,
            shape=self.shape,
            provenance=self._loaded.provenance,
        )

    def preprocess(self, view: np.ndarray) -> np.ndarray:
        """Turn words (bytes,) uint8 into (2, length) int32: ids plus one, then zeros; whether each is averaged.

        Raises:
            MediaError: the words give no token.
        """
        encoding = self._tokenizer.encode(bytes(view).decode("utf-8"))
        averaged = np.ones(len(encoding.ids), np.int32)
        if self._options["special"] == "dropped":
            averaged -= np.array(encoding.special_tokens_mask, np.int32)
        if not averaged.any():
            raise MediaError("words", expected="at least one token of this tokenizer", got="none")
        rows = np.zeros((2, self._options["length"]), np.int32)
        rows[0, : len(averaged)] = np.array(encoding.ids, np.int32) + 1
        rows[1, : len(averaged)] = averaged
        return rows

    def num_valid(self, view: np.ndarray) -> int:
        """Return how many of the T tokens the words (bytes,) uint8 fill."""
        return int(self.preprocess(view)[1].sum())

    def without_network(self) -> HfTextEncoder:
        """Return a copy for preprocessing only."""
        return copy_without(self, "network", "_loaded")

    def forward(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Encode (B, 2, length) to (B, T, D): the tokens that are averaged, then zeros."""
        return self.forward_layers(batch, [self.num_blocks])[self.num_blocks]

    def forward_layers(self, batch: np.ndarray | torch.Tensor, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """Encode as `forward`, once; return layer -> (B, T, D)."""
        network = required(self.network)
        rows = batch if isinstance(batch, np.ndarray) else batch.cpu().numpy()
        shape = (len(rows), rows.shape[2], self.shape[1])
        with network.running():
            out = {layer: torch.zeros(shape, device=network.device) for layer in layers}
            for b, (numbers, averaged) in enumerate(rows):
                length = int(np.count_nonzero(numbers))
                if length:
                    ids = network.tensor(numbers[None, :length].astype(np.int64) - 1)
                    kept = network.tensor(averaged[:length].astype(bool))
                    for layer, states in self._states(ids, layers).items():
                        hidden = states[0][kept].float()  # [l, d]
                        out[layer][b, : len(hidden)] = hidden
        return out

    def _states(self, ids: torch.Tensor, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """Return layer -> hidden states (1, L, D) of ids (1, L)."""
        last = self._loaded.config.num_hidden_layers
        module = required(self.network).module
        inner = {"output_hidden_states": True} if any(layer < last for layer in layers) else {}
        output = module(input_ids=ids, attention_mask=torch.ones_like(ids), **inner)
        return {layer: output.last_hidden_state if layer == last else output.hidden_states[layer] for layer in layers}

    def pool(self, tokens: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
        """Average the first `valid[b]` tokens of each clip b of (B, T, D) to (B, K, D) float32, or take the first.

        Raises:
            EncoderError: no `valid`.
        """
        with torch.inference_mode():
            if self._options["pool"] == "cls":
                return tokens[:, :1].float()
            if valid is None:
                raise EncoderError(f"{self.name}: pool", expected="the number of tokens of each clip")
            return average_over_valid(tokens, valid, self.shape[0])


def _read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    settings = read_options(HfTextEncoder.name, options, KNOWN_OPTIONS)
    if settings["pool"] != "tokens":
        single_vector(HfTextEncoder.name, settings["pool"], options, ("tokens",))
    if settings["pool"] == "cls" and settings["special"] == "dropped":
        raise EncoderError("hf-text.special", expected="kept, with pool=cls", got="'dropped'")
    return settings


def _read_config(checkpoint: Checkpoint) -> tuple[dict[str, Any], Any]:
    """Return the checkpoint's config.json, and as a config of transformers.

    Raises:
        WeightsError: transformers has no network of this kind, or it does not read words.
    """
    document = checkpoint.json("config.json")
    expected = "a network of AutoModel that reads words, such as BERT, RoBERTa or T5"
    try:
        config = _config_of(document)
        network_class = _network_class(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise checkpoint.error(expected=expected, got=f"model_type {document.get('model_type')!r}") from error
    reads_words = getattr(network_class, "main_input_name", None) == "input_ids"
    if not reads_words or getattr(config, "hidden_size", None) is None:
        raise checkpoint.error(expected=expected, got=f"model_type {document.get('model_type')!r}")
    return document, config


def _config_of(document: Mapping[str, Any]) -> Any:
    values = {key: value for key, value in document.items() if key not in ("model_type", "torch_dtype", "dtype")}
    return transformers.AutoConfig.for_model(document["model_type"], **values)


def _network_class(config: Any) -> Any:
    found = vars(transformers.AutoModel)["_model_mapping"][type(config)]
    return found[0] if isinstance(found, tuple) else found


def _without_pooler(network_class: Any) -> dict[str, bool]:
    has_pooler = "add_pooling_layer" in inspect.signature(network_class.__init__).parameters
    return {"add_pooling_layer": False} if has_pooler else {}


def _encoder_of(network: Any) -> torch.nn.Module:
    """Return the network, or its encoder if it has a decoder too (T5, BART)."""
    return network.get_encoder() if network.config.is_encoder_decoder else network


def _load(checkpoint: Checkpoint, config: Any, device: torch.device, compute_dtype: str) -> LoadedNetwork:
    network_class = _network_class(config)

    def is_read(whole: Any, key: str) -> bool:
        inner = key.removeprefix(f"{whole.base_model_prefix}.")
        parts = tuple(f"{name}." for name, _ in whole.named_children())
        return inner.startswith(parts) and not inner.startswith(POOLER) and not inner.endswith("position_ids")

    whole, hashes = load_pretrained(
        checkpoint,
        network_class,
        config,
        _without_pooler(network_class),
        is_needed=lambda key: not key.startswith(POOLER),
        is_read=is_read,
    )
    frozen = FrozenNetwork(_encoder_of(whole), device, compute_dtype)
    return LoadedNetwork(frozen, config, hashes, checkpoint.provenance)


def _load_tokenizer(checkpoint: Checkpoint) -> tuple[str, dict[str, str], int | None]:
    """Return the tokenizer's JSON, the sha256 of its files, and the largest number of tokens that it states.

    Raises:
        WeightsError: no tokenizer, or one that transformers cannot express as JSON.
    """
    files = {name: path for name in TOKENIZER_FILES if (path := checkpoint.file(name)) is not None}
    if not files:
        raise checkpoint.error(expected="a tokenizer: tokenizer.json, vocab.txt, spiece.model, …", got="none")
    if TOKENIZER_FILES[0] in files:
        checkpoint.json(TOKENIZER_FILES[0])  # tokenizers raises a bare Exception for a file that is no JSON
    try:
        with quiet_transformers():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(next(iter(files.values())).parent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        raise checkpoint.error(expected="a tokenizer that transformers can load", got=first_line) from error
    if not tokenizer.is_fast:
        raise checkpoint.error(expected="a tokenizer that can be saved as tokenizer.json", got=type(tokenizer).__name__)
    stated = tokenizer.model_max_length
    text = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()), ensure_ascii=False)
    hashes = {name: file_sha256(path) for name, path in files.items()}
    return text, hashes, stated if stated < UNKNOWN_LENGTH else None


def _tokenizer_of_json(text: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def _longest(config: Any, stated: int | None) -> int | None:
    """Return the largest number of tokens that the network takes; None if nothing limits it."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return stated
    if config.model_type in FROM_PADDING:
        positions -= config.pad_token_id + 1
    return positions if stated is None else min(positions, stated)


def _length(options: Mapping[str, Any], longest: int | None) -> int:
    """Return the largest number of tokens of a clip.

    Raises:
        EncoderError: the option asks for more than the network takes.
    """
    default: Any = KNOWN_OPTIONS["length"]
    length: int = options.get("length", default if longest is None else min(default, longest))
    if longest is not None and length > longest:
        raise EncoderError("hf-text.length", expected=f"at most {longest}, which the network takes", got=str(length))
    return length
