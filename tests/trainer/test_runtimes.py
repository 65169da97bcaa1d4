"""Parts of an exported model in other runtimes compute what they compute here."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_train.errors import ExportError
from fusion_train.export.runtimes import LARGEST_DIFFERENCE, EncoderGraph, make_graphs, write_runtimes
from fusion_train.predict.opening import OpenedModel, open_model
from fusion_train.remote.encoding import INPUTS, as_stored

GRAPHS = ("audio", "image", "video", "soft_tokens")


@pytest.fixture(scope="module")
def opened(exported) -> OpenedModel:
    return open_model(exported, "cpu")


@pytest.fixture(scope="module")
def written(opened, tmp_path_factory):
    out = tmp_path_factory.mktemp("runtimes")
    return out, write_runtimes(opened, out, onnx=False)


# torch's own exporter warns of itself.
@pytest.mark.filterwarnings("ignore")
def test_exported_graphs_equal_the_modules(written):
    out, found = written
    assert set(found) == {f"{name}.pt2" for name in GRAPHS}
    assert all(value <= LARGEST_DIFFERENCE for value in found.values())
    assert json.loads((out / "equality.json").read_text()) == found


def test_a_graph_rounded_as_a_store_does_gives_the_models_own_features(opened, trained):
    inputs = opened.processor(video=trained.video("v0"))
    raw = {name: inputs[name] for name in INPUTS.values() if name in inputs}
    features = opened.model.encode(inputs["present"], **raw)
    graphs = make_graphs(opened)
    module, _ = graphs["image"]
    assert isinstance(module, EncoderGraph)
    with torch.no_grad():
        tokens = module(inputs["image_frames"])
    assert torch.equal(as_stored(tokens, opened.model.config.specs["image"].stored_dtype), features["image"])


@pytest.mark.filterwarnings("ignore")
def test_the_language_model_alone_answers_from_prompt_embeddings(written, opened, trained):
    """What a server with prompt embeddings does, with transformers in its place."""
    out, _ = written
    llm = AutoModelForCausalLM.from_pretrained(out / "language_model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "language_model")
    inputs = opened.processor(video=trained.video("v0"), task="reason")
    with torch.inference_mode():
        embeddings = opened.model.embed(**{k: v for k, v in inputs.items() if k != "attention_mask"})
    end = tokenizer.eos_token_id
    ids = llm.generate(
        inputs_embeds=embeddings,
        attention_mask=inputs["attention_mask"],
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )
    assert torch.equal(ids, opened.model.generate(**inputs, max_new_tokens=8))


def test_encoders_in_half_precision_are_refused(opened, monkeypatch):
    spec = opened.model.config.specs["audio"]
    changed = {**opened.model.config.specs, "audio": type(spec)(**{**spec.__dict__, "compute_dtype": "float16"})}
    monkeypatch.setattr(type(opened.model.config), "specs", changed)
    with pytest.raises(ExportError, match="float32"):
        make_graphs(opened)


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")
def test_onnx_graphs_equal_the_modules(opened, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    found = write_runtimes(opened, tmp_path, onnx=True)
    assert {name for name in found if name.endswith(".onnx")} == {f"{name}.onnx" for name in GRAPHS}
    assert all(value <= LARGEST_DIFFERENCE for value in found.values())
