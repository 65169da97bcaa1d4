"""Write the parts of an exported model for other runtimes, each measured against the module it was taken from.

    DIR/
        <modality>.pt2, soft_tokens.pt2      torch.export: preprocessed input -> (B, K, D); features -> (B, N, H)
        <modality>.onnx, soft_tokens.onnx    the same for ONNX runtimes language_model/                      the
        language model and its tokenizer, for servers that take prompt embeddings equality.json
        per graph: largest difference, relative to the largest value

Graphs compute in float32, for a batch of the size they are traced with. soft_tokens returns the rows of all modalities.
The caller leaves out the rows of absent modalities, as in the mask of `EmotionLlama.soft_tokens`, unless the model sees
absent modalities.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featurecache.encoders import ExportableEncoder
from featurecache.encoders.network import FrozenNetwork
from featurecache.extras import require
from featurecache.files.publish import (
    make_folder,
    make_temporary_folder,
    publish_folder,
    require_writable,
    writing,
)
from featurecache.views import AudioView, FramesView, View
from fusion_train.errors import ExportError
from fusion_train.export.export_run import refuse_occupied
from fusion_train.predict.opening import OpenedModel
from fusion_train.remote.encoding import rebuild_encoder
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM

LARGEST_DIFFERENCE = 1e-5
"""Bound relative to the largest output; float32 kernels of another runtime sum in another order."""


class _TracedNetwork(FrozenNetwork):
    """Network for tracing: without inference mode and autocast."""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        yield


class EncoderGraph(nn.Module):
    """Preprocessed inputs (B, …) -> pooled tokens (B, K, D), before the rounding of a store."""

    def __init__(self, encoder: ExportableEncoder, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._encoder = encoder

    def forward(self, inputs: Tensor) -> Tensor:
        encoder: Any = self._encoder  # traced with tensors, where the protocol has arrays
        return encoder.pool(encoder.forward(inputs))


class SoftTokensGraph(nn.Module):
    """Features (B, K, D) of every modality in use, in order, and `present` (B, M) -> soft tokens (B, N, H)."""

    def __init__(self, model: EmotionLlamaForCausalLM) -> None:
        super().__init__()
        network = model.emotion_llama
        self.fusion, self.projectors = network.fusion, network.projectors
        self.stand_ins = model.stand_ins
        self._soft_tokens, self._used, self._seen = network.soft_tokens, network.shapes.used, model.seen

    def forward(self, present: Tensor, *features: Tensor) -> Tensor:
        return self._soft_tokens(*self._seen(dict(zip(self._used, features, strict=True)), present))[0]


def write_runtimes(opened: OpenedModel, out: Path, *, onnx: bool) -> dict[str, float]:
    """Write every part; return graph file -> largest relative difference.

    Raises:
        ExportError: an encoder with another compute dtype than float32, `onnx` without its packages, or a folder `out`
            that is not empty.
        WriteError: the disk is full or refuses; `out` is not created.
    """
    refuse_occupied(out)
    require_writable(out, folder=True)
    graphs = make_graphs(opened)
    make_folder(out.parent)
    temporary = make_temporary_folder(out.parent, f".{out.name}-")
    try:
        with writing(out):
            differences = _write_parts(opened, graphs, temporary, onnx=onnx)
        if not publish_folder(temporary, out):
            refuse_occupied(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return differences


def _write_parts(
    opened: OpenedModel, graphs: Mapping[str, tuple[nn.Module, tuple[Tensor, ...]]], out: Path, *, onnx: bool
) -> dict[str, float]:
    """Write every graph, the language model and equality.json; return the measured differences."""
    differences: dict[str, float] = {}
    for name, (module, inputs) in graphs.items():
        with torch.no_grad():
            expected = module(*inputs)
            program = torch.export.export(module, inputs, strict=False)
        torch.export.save(program, out / f"{name}.pt2")
        with torch.no_grad():
            differences[f"{name}.pt2"] = difference(torch.export.load(out / f"{name}.pt2").module()(*inputs), expected)
        if onnx:
            differences[f"{name}.onnx"] = difference(_through_onnx(program, inputs, out / f"{name}.onnx"), expected)
    llm: Any = opened.model.emotion_llama.llm
    llm.save_pretrained(out / "language_model", max_shard_size="5GB")
    opened.processor.tokenizer.save_pretrained(out / "language_model")
    (out / "equality.json").write_text(json.dumps(differences, indent=2) + "\n", encoding="utf-8")
    return differences


def make_graphs(opened: OpenedModel) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Return name -> module and the inputs to trace it with: random media of the right shape, one clip."""
    model = opened.model
    if not opened.answers_in_text:
        raise ExportError(opened.name, expected="an exported model with a language model", got="a probe")
    random = np.random.default_rng(0)
    graphs: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {}
    features = []
    for modality, spec in model.config.specs.items():
        entry = model.config.encoders[modality]
        if spec.compute_dtype != "float32":
            raise ExportError(
                f"{modality} encoder",
                expected="compute dtype float32",
                got=spec.compute_dtype,
                next_step="Graphs of encoders in half precision are not written; extract with --compute-dtype float32.",
            )
        network = _TracedNetwork(model.networks[entry["network"]], torch.device("cpu"), spec.compute_dtype)
        encoder = rebuild_encoder(spec, model.config.networks[entry["network"]], network)
        if encoder.needs_valid:
            raise ExportError(
                f"{modality} encoder",
                expected="pooling over a fixed number of tokens",
                got="pooling over the clip's own duration",
            )
        example = encoder.preprocess(_random_view(encoder.view, random))
        graphs[modality] = (EncoderGraph(encoder, network.module).eval(), (torch.from_numpy(example)[None],))
        features.append(torch.from_numpy(random.standard_normal((1, *spec.shape), dtype=np.float32)))
    present = torch.ones(1, len(features), dtype=torch.bool)
    graphs["soft_tokens"] = (SoftTokensGraph(model).eval(), (present, *features))
    return graphs


def _random_view(view: View, random: np.random.Generator) -> np.ndarray:
    if isinstance(view, AudioView):
        return random.uniform(-0.5, 0.5, view.sampling_rate).astype(np.float32)
    assert isinstance(view, FramesView)  # an encoder of words pools over the clip's own tokens, which is refused above
    return random.integers(0, 256, (view.count, 90, 120, 3), dtype=np.uint8)


def difference(output: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float((output - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _through_onnx(program: Any, inputs: tuple[Tensor, ...], path: Path) -> Tensor:
    require("onnx", "onnx", "onnxscript", "onnxruntime", subject="--onnx")
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the converter
        torch.onnx.export(program, inputs, path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [graph_input.name for graph_input in session.get_inputs()]
    return torch.from_numpy(session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})[0])
