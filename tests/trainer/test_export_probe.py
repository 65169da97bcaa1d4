"""A run without a language model is exported: labels and probabilities from a raw clip, with a certificate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from exporting import SILENT
from safetensors.torch import load_file, save_file

from featurecache.errors import WeightsError
from fusion_train.cli import main
from fusion_train.documents import write_document
from fusion_train.errors import DataError, ExportError, ParityError
from fusion_train.export.certificate import judge_probe
from fusion_train.export.export_run import ExportSources, export_run, verify_export
from fusion_train.export.parity import choose_questions
from fusion_train.predict.opening import OpenedModel, open_model
from fusion_train.remote.integrity import file_hashes
from fusion_train.remote.processing_emotion_probe import EmotionProbeProcessor
from fusion_train.run_context import load_context


@pytest.fixture(scope="module")
def opened(exported_probe: Path) -> OpenedModel:
    return open_model(exported_probe, "cpu")


def test_a_fresh_process_without_our_packages_classifies_as_the_probe_did(exported_probe):
    certificate = json.loads((exported_probe / "certificate.json").read_text())
    assert certificate["passed"]
    assert (certificate["form"], certificate["dtype"]) == ("probe", "float32")
    for row in certificate["clips"]:
        assert row["classes_equal"]
        assert all(feature["equal"] for feature in row["features"].values())
        assert row["reload_logits"] == row["raw_logits"] == row["probabilities"] == 0
        assert row["text_equal"]
    assert [(row["absent"], row["withheld"]) for row in certificate["clips"] if row["absent"]] == [
        (["audio"], []),
        (["image"], ["image"]),
        (["video"], ["video"]),
    ]
    page = (exported_probe / "CERTIFICATE.md").read_text()
    assert "Label equal on 6 of 6 questions" in page
    assert all(figure["reason"] in page for figure in certificate["figures"])


def test_probabilities_of_a_raw_clip_are_those_of_the_trained_probe(probe, opened):
    context = load_context(probe.run)
    context.model.eval()
    chosen = choose_questions(context, probe.clips.in_split("val"), 4, ["emotion"])
    samples = {sample.clip.id: sample for sample in chosen if not sample.hidden}
    for sample in (samples["v0"], samples[SILENT]):
        labels = opened.processor.labels("emotion", "toy")
        inputs = opened.processor(video=probe.video(sample.clip.id), task="emotion", dataset="toy")
        probabilities = dict(zip(labels, opened.model.label_probabilities(**inputs)[0].tolist(), strict=True))
        (expected,) = context.collator.probabilities(context.model, [sample])
        assert probabilities == dict(zip(sample.labels, expected, strict=True))
        assert sum(probabilities.values()) == pytest.approx(1)


def test_a_batch_is_classified_as_its_clips_alone(probe, opened):
    ids = ["v0", SILENT]
    together = opened.processor(video=[probe.video(clip_id) for clip_id in ids])
    both = opened.model.label_probabilities(**together)
    for row, clip_id in enumerate(ids):
        alone = opened.model.label_probabilities(**opened.processor(video=probe.video(clip_id)))
        torch.testing.assert_close(both[row], alone[0], atol=1e-5, rtol=1e-4)


def test_an_exported_probe_has_no_code_of_language_models(exported_probe):
    names = {path.name for path in exported_probe.iterdir()}
    assert {"modeling_emotion_probe.py", "processing_emotion_probe.py", "model.safetensors", "README.md"} <= names
    assert not {"modeling_emotion_llama.py", "processing_emotion_llama.py", "fusion_train_models_answering.py"} & names
    assert "AutoModel.from_pretrained" in (exported_probe / "README.md").read_text()
    assert "| head | linear" in (exported_probe / "README.md").read_text()


def test_predict_answers_with_labels_and_evidence(probe, exported_probe, tmp_path):
    arguments = ["predict", "--model", exported_probe, probe.video("v0"), "--json", "--look", tmp_path / "pictures"]
    result = CliRunner().invoke(main, [str(word) for word in arguments])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout.splitlines()[0])
    assert answer["answer"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert set(answer["without"]) == {"audio", "image", "video"}
    assert (tmp_path / "pictures" / "v0.mp4.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--question", "At ease?"], "got a question"),
        (["--choices", "yes,no"], "got the labels yes, no"),
        (["--task", "reason"], "got the task reason"),
    ],
)
def test_a_question_that_needs_a_language_model_is_refused(probe, exported_probe, words, said):
    result = CliRunner().invoke(main, ["predict", "--model", str(exported_probe), probe.video("v0"), *words])
    assert result.exit_code == 2
    assert "a probe without a language model" in " ".join(result.output.split())
    assert said in " ".join(result.output.split())


def test_labels_of_several_datasets_are_not_mixed():
    sets = {"meld": {"emotion": ["joy", "anger"]}, "mer": {"emotion": ["happy", "angry"]}, "none": {"emotion": []}}
    processor = EmotionProbeProcessor({}, {}, sets, ["emotion"])
    assert processor.labels("emotion", "mer") == ("angry", "happy")
    with pytest.raises(DataError, match=r"expected dataset= one of meld, mer, got none"):
        processor.labels("emotion")
    with pytest.raises(DataError, match=r"one of meld, mer, got \"other\""):
        processor.labels("emotion", "other")
    one = EmotionProbeProcessor({}, {}, {"mer": sets["mer"]}, ["emotion"])
    assert one.labels("emotion") == one.labels("emotion", "my-clips") == ("angry", "happy")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes_equal": False}, "labels differ"),
        ({"present_equal": False}, "modalities differ"),
        ({"features": {"audio": {"equal": False, "rms": 2e-3, "max": 0.1}}}, "audio features"),
        ({"reload_logits": 1e-6}, "fresh process"),
        ({"raw_logits": 1e-6}, "equal features"),
        ({"raw_kl": 0.01}, "KL"),
        ({"probabilities": 0.2}, "probabilities"),
        ({"text_margin": 0.1}, "scores of two labels"),
        ({"raw_kl": float("nan")}, "KL"),
    ],
)
def test_each_bound_of_a_probe_catches_its_own_breach(change, named):
    from test_export_parts import SPEC

    passing = {
        "classes_equal": True,
        "present_equal": True,
        "features": {"audio": {"equal": True, "rms": 0.0, "max": 0.0}},
        "reload_logits": 0.0,
        "raw_kl": 0.0,
        "raw_logits": 0.0,
        "probabilities": 0.0,
        "text_margin": 0.0,
    }
    failed = [f.name for f in judge_probe([passing, passing | change], {"audio": SPEC}, device="cpu") if not f.passed]
    assert len(failed) == 1
    assert named in failed[0]
    assert all(figure.passed for figure in judge_probe([passing], {"audio": SPEC}, device="cpu"))


def test_verify_catches_a_probe_that_computes_something_else(probe, exported_probe):
    copy = shutil.copytree(exported_probe, probe.folder / "tampered")
    tensors = load_file(copy / "model.safetensors")
    tensors["probe.head.bias"] += torch.linspace(0, 1, len(tensors["probe.head.bias"]))
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    certificate = json.loads((copy / "certificate.json").read_text())
    write_document(copy / "certificate.json", certificate | {"files": file_hashes(copy)})
    with pytest.raises(ParityError) as caught:
        verify_export(copy, say=lambda _: None)
    assert any("in a fresh process" in problem for problem in caught.value.problems)
    assert not any("features" in problem.partition(":")[0] for problem in caught.value.problems)


def test_missing_weights_of_a_probe_are_refused(exported_probe, tmp_path):
    from fusion_train.remote.modeling_emotion_probe import EmotionProbe

    copy = shutil.copytree(exported_probe, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    del tensors["probe.head.bias"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"probe\.head\.bias"):
        EmotionProbe.from_pretrained(copy)


@pytest.mark.parametrize("options", [{"adapter": True}, {"dtype": "float16"}])
def test_options_of_a_language_model_are_refused_for_a_probe(probe, tmp_path, options):
    with pytest.raises(ExportError, match="expected a run with a language model, got a probe"):
        export_run(probe.run, tmp_path / "out", probe.weights, ExportSources(**options), say=lambda _: None)
    assert not (tmp_path / "out").exists()
