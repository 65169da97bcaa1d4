"""An export of a run that sees absent modalities, as released checkpoints want it, sees them alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from exporting import SILENT, Trained, train_run
from safetensors.torch import load_file, save_file

from fusion_train.data.samples import Sample
from fusion_train.documents import write_document
from fusion_train.errors import ParityError
from fusion_train.export.export_run import ExportSources, export_run, verify_export
from fusion_train.export.runtimes import make_graphs
from fusion_train.models.answering import label_log_probabilities
from fusion_train.models.token_streams import SOFT_TOKEN
from fusion_train.predict.opening import open_model
from fusion_train.prompts.prompt import encode_answer, find_task
from fusion_train.remote.adapter import TRAINED_WEIGHTS
from fusion_train.remote.integrity import file_hashes
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM
from fusion_train.remote.processing_emotion_llama import EmotionLlamaProcessor
from fusion_train.run_context import load_context


@pytest.fixture(scope="module")
def seeing(tmp_path_factory, whisper_folder, eva_folder, llama) -> Trained:
    """A run with `features.absent: visible`, exported to `exported`."""
    folder = tmp_path_factory.mktemp("visible") / "material"
    trained = train_run(folder, whisper_folder, eva_folder, llama, "features.absent=visible")
    export_run(trained.run, folder / "exported", trained.weights, ExportSources(), lambda _: None)
    return trained


@pytest.fixture(scope="module")
def model(seeing) -> EmotionLlamaForCausalLM:
    return EmotionLlamaForCausalLM.from_pretrained(seeing.folder / "exported").eval()


@pytest.fixture(scope="module")
def processor(seeing) -> EmotionLlamaProcessor:
    return EmotionLlamaProcessor.from_pretrained(seeing.folder / "exported", trust_remote_code=True)


def assert_covered(exported: Path) -> None:
    """Every modality was absent from a question, and the answers are those of the run."""
    certificate = json.loads((exported / "certificate.json").read_text())
    assert certificate["passed"]
    rows = certificate["clips"]
    assert {name for row in rows for name in row["stand_ins"]} == {"audio", "image", "video"}
    for row in rows:
        assert set(row["absent"]) == set(row["stand_ins"])
        assert all(row["stand_ins"].values())
        assert all(row[what] for what in ("prompt_equal", "present_equal", "text_equal"))
        assert row["reload_logits"] == row["raw_logits"] == 0
    assert "The model sees a constant in place of each." in (exported / "CERTIFICATE.md").read_text()


def test_the_certificate_covers_each_absent_modality_to_the_bit(seeing):
    assert_covered(seeing.folder / "exported")


def test_a_raw_clip_without_sound_has_all_places_and_answers_as_the_run_does(seeing, model, processor):
    inputs = processor(video=seeing.video(SILENT), text="Number 2!", task="emotion", dataset="toy")
    assert inputs["present"].tolist() == [[False, True, True]]
    assert (inputs["input_ids"] == SOFT_TOKEN).sum() == sum(model.emotion_llama.soft_counts.values())
    context = load_context(seeing.run)
    context.model.eval()
    ids = [encode_answer(context.tokenizer, label) for label in processor.labels("emotion", "toy")]
    features, seen = context.reader.read_visible([SILENT], inputs["present"].tolist())
    wanted = label_log_probabilities(context.model, inputs["input_ids"].tolist(), features, seen, ids).softmax(1)
    torch.testing.assert_close(model.label_probabilities(ids, **inputs), wanted, atol=1e-5, rtol=1e-4)


def test_words_alone_are_asked_with_every_stand_in(seeing, model, processor):
    inputs = processor(text="I see.", task="emotion", dataset="toy")
    context = load_context(seeing.run)
    clip = context.clips.by_id("v0")
    everything = tuple(context.reader.modalities)
    sample = Sample(clip, find_task("emotion"), processor.labels("emotion", "toy"), "sad", hidden=everything)
    shown = context.collator.present(clip, sample.hidden)
    assert (inputs["input_ids"] == SOFT_TOKEN).sum() == context.collator.prompt_ids(sample, shown).count(SOFT_TOKEN) > 0
    features, present = model.seen(model.encode(inputs["present"]), inputs["present"])
    stored, seen = context.reader.read_visible(["v0"], [shown])
    assert torch.equal(present, seen)
    assert all(torch.equal(features[name], stored[name]) for name in everything)
    assert features["image"].any()
    assert not features["audio"].any()


def test_leaving_a_modality_out_keeps_its_places_and_changes_the_answer(seeing, model, processor):
    inputs = processor(video=seeing.video("v0"), task="emotion", dataset="toy")
    prompt = {name: inputs.pop(name) for name in ("input_ids", "attention_mask", "present")}
    features = model.encode(prompt["present"], **inputs)
    fewer = model.leave_out("image", **prompt)
    assert torch.equal(fewer["input_ids"], prompt["input_ids"])
    labels = processor.label_ids(processor.labels("emotion"))
    whole = model.label_probabilities(labels, **prompt, features=features)
    assert not torch.equal(model.label_probabilities(labels, **fewer, features=features), whole)


@pytest.mark.slow
def test_other_stand_ins_than_the_run_s_are_caught(seeing):
    copy = shutil.copytree(seeing.folder / "exported", seeing.folder / "tampered")
    tensors = load_file(copy / "model.safetensors")
    tensors["stand_ins.image"] += 0.5
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    certificate = json.loads((copy / "certificate.json").read_text())
    write_document(copy / "certificate.json", certificate | {"files": file_hashes(copy)})
    with pytest.raises(ParityError) as caught:
        verify_export(copy, say=lambda _: None)
    assert any("constants for absent modalities differ" in problem for problem in caught.value.problems)


@pytest.mark.slow
def test_the_adapter_form_carries_the_stand_ins(seeing):
    out = seeing.folder / "adapter"
    export_run(seeing.run, out, seeing.weights, ExportSources(adapter=True), lambda _: None)
    assert_covered(out)
    held = [name for name in load_file(out / TRAINED_WEIGHTS) if name.startswith("stand_ins.")]
    assert sorted(held) == ["stand_ins.audio", "stand_ins.image", "stand_ins.video"]


@pytest.mark.filterwarnings("ignore")  # torch's own exporter warns of itself
def test_the_graph_of_soft_tokens_holds_the_stand_ins(seeing):
    opened = open_model(seeing.folder / "exported", "cpu")
    graph, (present, *features) = make_graphs(opened)["soft_tokens"]
    present[:, 0] = False
    program = torch.export.export(graph, (present, *features), strict=False)
    by_name = dict(zip(opened.model.config.specs, features, strict=True))
    wanted = opened.model.emotion_llama.soft_tokens(
        by_name | {"audio": torch.zeros_like(features[0])}, torch.ones_like(present)
    )[0]
    torch.testing.assert_close(program.module()(present, *features), wanted)
