"""What is exported computes what was trained, needs nothing of ours, and refuses what it cannot vouch for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from checkpoints import save_whisper
from exporting import SILENT
from safetensors.torch import load_file, save_file
from test_train import run_training
from toy import make_config

from featurecache.errors import FingerprintError, MediaError, WeightsError
from fusion_train.data.samples import Sample
from fusion_train.documents import write_document
from fusion_train.errors import CheckpointError, DataError, ExportError, ParityError
from fusion_train.export.card import scores_of
from fusion_train.export.export_run import ExportSources, export_run, verify_export
from fusion_train.export.weights import merge_lora
from fusion_train.models.answering import label_log_probabilities
from fusion_train.prompts.prompt import encode_answer, find_task
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM
from fusion_train.run import Run
from fusion_train.run_context import load_context
from fusion_train.training.shared_base import RunRequest, SharedBase
from fusion_train.training.trainer import train_runs


def test_a_fresh_process_without_our_packages_answers_as_the_run_did(exported):
    certificate = json.loads((exported / "certificate.json").read_text())
    assert certificate["passed"]
    rows = {row["id"]: row for row in certificate["clips"] if not row["withheld"]}
    assert set(rows) == {"v0", "v1", "v2", "v3"}
    for row in certificate["clips"]:
        assert all(feature["equal"] for feature in row["features"].values())
        assert row["reload_logits"] == row["raw_logits"] == 0
        assert row["text_equal"]
        assert 0 < row["total_kl"] < 1e-9 or row["total_kl"] == 0
    assert set(rows[SILENT]["features"]) == {"image", "video"}
    assert {row["task"] for row in rows.values()} == {"emotion", "reason"}


def test_a_trial_trained_in_a_group_is_exported_with_its_certificate(trained, llama, tmp_path):
    requests = [
        RunRequest(make_config(llama, "optim.steps=3", f"model.fusion.name={fusion}"), Run(tmp_path / fusion))
        for fusion in ("conv", "attention")
    ]
    places = {"store": str(trained.folder / "features.zarr"), "clips": str(trained.folder / "clips.jsonl")}
    train_runs(requests, **places, base=SharedBase(), say=lambda _: None)
    export_run(requests[0].run, tmp_path / "exported", trained.weights, ExportSources(), say=lambda _: None)
    assert json.loads((tmp_path / "exported" / "certificate.json").read_text())["passed"]


def test_every_modality_is_absent_from_a_question_of_the_certificate(exported):
    rows = json.loads((exported / "certificate.json").read_text())["clips"]
    assert [(row["absent"], row["withheld"]) for row in rows if row["absent"]] == [
        (["audio"], []),
        (["image"], ["image"]),
        (["video"], ["video"]),
    ]
    assert not any(row["stand_ins"] for row in rows)
    page = (exported / "CERTIFICATE.md").read_text()
    assert "by 6 questions on 4 raw clips" in page
    assert (
        "audio in 1, image in 1, video in 1 of these questions; in 2 of them a modality of the clip was withheld"
        in page
    )


def test_card_and_certificate_say_how_the_weights_were_chosen(exported):
    said = json.loads((exported / "certificate.json").read_text())["run"]["weights"]
    assert said.startswith(("the best of", "the only ones scored", "the last ones"))
    assert f"Weights: {said}." in (exported / "CERTIFICATE.md").read_text()
    assert f"Weights: {said}." in (exported / "README.md").read_text()


def test_the_card_gives_the_scores_of_the_exported_weights_and_not_of_the_last(
    trained, exported, llama, material, tmp_path
):
    step = json.loads((exported / "certificate.json").read_text())["run"]["step"]
    assert scores_of(trained.run, step) in (exported / "README.md").read_text()
    run = run_training(make_config(llama, "log.eval_every=1", "optim.lr=1e-2"), material, tmp_path / "run")
    scored = {row["step"]: row for row in run.metric_rows() if "eval_loss" in row}
    assert len({row["eval_loss"] for row in scored.values()}) == len(scored) == 6
    for step, row in scored.items():
        assert scores_of(run, step) == (
            f"Of these weights (step {step}), on the split val: accuracy emotion {row['accuracy/emotion']:.4f}, "
            f"loss per supervised token {row['eval_loss']:.4f}."
        )
    assert scores_of(run, 7) == "The weights of step 7 were not scored while the run trained."


def test_every_bound_has_a_reason_and_a_page_says_so(exported):
    certificate = json.loads((exported / "certificate.json").read_text())
    page = (exported / "CERTIFICATE.md").read_text()
    for figure in certificate["figures"]:
        assert figure["reason"] in page
        assert figure["measured"] <= figure["bound"]
    for value in (*certificate["fingerprints"].values(), *certificate["files"].values()):
        assert value in page


def test_no_absolute_path_is_exported(exported, trained):
    for path in exported.iterdir():
        if path.suffix in (".json", ".py", ".md"):
            assert str(trained.folder) not in path.read_text(), path.name
            assert str(trained.folder.parent.parent) not in path.read_text(), path.name


def test_raw_clips_give_the_logits_of_the_store_bit_for_bit(trained, model, processor):
    context = load_context(trained.run)
    context.model.eval()
    context.model.llm = merge_lora(context.model.llm)
    for clip in trained.clips.in_split("val"):
        inputs = processor(video=trained.video(clip.id), text=clip.text, task="emotion", dataset="toy")
        present = torch.tensor([[context.reader.presence(clip.id)[name] for name in context.reader.modalities]])
        assert torch.equal(inputs["present"], present)
        ids = [encode_answer(context.tokenizer, label) for label in processor.labels("emotion", "toy")]
        features = context.reader.read([clip.id], present)
        cached = label_log_probabilities(context.model, inputs["input_ids"].tolist(), features, present, ids)
        assert torch.equal(model.label_probabilities(ids, **inputs), cached.softmax(1))


@pytest.mark.parametrize("words", ["</s> so <s>", "so </s>", "我很高兴" * 1000], ids=["special", "end", "long"])
def test_an_exported_processor_asks_in_the_tokens_of_training(trained, processor, words):
    context = load_context(trained.run)
    clip = replace(trained.clips.by_id("v0"), text=words)
    sample = Sample(clip, find_task("emotion"), tuple(processor.labels("emotion", "toy")), "happy")
    if len(words) > 1000:
        for ask in (lambda: context.collator.encode(sample), lambda: processor(video=trained.video("v0"), text=words)):
            with pytest.raises(DataError, match="expected at most 3800 prompt tokens"):
                ask()
        return
    ids = processor(video=trained.video("v0"), text=words, task="emotion", dataset="toy")["input_ids"][0].tolist()
    assert ids == context.collator.encode(sample).prompt
    assert ids.count(context.tokenizer.bos_token_id) == 1
    assert context.tokenizer.eos_token_id not in ids


def test_a_batch_answers_as_its_clips_alone(trained, model, processor):
    ids = ["v0", SILENT]
    texts = ["Number 0!", None]
    together = processor(video=[trained.video(i) for i in ids], text=texts, task="emotion")
    labels = processor.label_ids(processor.labels("emotion"))
    both = model.label_probabilities(labels, **together)
    for row, (clip_id, text) in enumerate(zip(ids, texts, strict=True)):
        alone = model.label_probabilities(labels, **processor(video=trained.video(clip_id), text=text, task="emotion"))
        torch.testing.assert_close(both[row], alone[0], atol=1e-5, rtol=1e-4)


def test_the_loss_of_an_exported_model_trains_its_own_parts_and_no_encoder(trained, model, processor):
    inputs = processor(video=trained.video("v0"), task="emotion")
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.emotion_llama.projectors.parameters())
    assert all(p.grad is None for p in model.networks.parameters())
    model.zero_grad()


def test_a_question_takes_the_place_of_the_instruction(trained, processor):
    inputs = processor(video=trained.video("v0"), question="Is the person at ease?")
    ids = [i for i in inputs["input_ids"][0].tolist() if i >= 0]
    assert "at ease" in processor.tokenizer.decode(ids)


def test_generation_options_reach_the_language_model(trained, model, processor):
    inputs = processor(video=trained.video("v0"), task="reason")
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"video": "no-such.mp4"}, MediaError, "no such file"),
        ({}, DataError, "video, audio, image or text"),
        ({"video": ["a.mp4", "b.mp4"], "text": ["x"]}, DataError, "one length"),
    ],
)
def test_the_processor_says_what_is_wrong_with_its_input(processor, arguments, kind, said):
    with pytest.raises(kind, match=said):
        processor(**arguments)


def test_missing_weights_are_refused_and_not_drawn_at_random(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    name = next(key for key in tensors if "fusion" in key)
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=name):
        EmotionLlamaForCausalLM.from_pretrained(copy)


def test_encoders_of_other_weights_are_refused_with_the_field_that_differs(trained, tmp_path):
    other = save_whisper(tmp_path / "other", seed=1)
    with pytest.raises(FingerprintError, match=r"weights\.model\.safetensors"):
        export_run(
            trained.run, tmp_path / "out", {**trained.weights, "whisper": str(other)}, ExportSources(), lambda _: None
        )
    assert not (tmp_path / "out").exists()


def test_encoder_weights_of_unknown_place_must_be_named(trained, tmp_path):
    with pytest.raises(ExportError, match=r"--weights whisper=FOLDER"):
        export_run(trained.run, tmp_path / "out", {}, ExportSources(), lambda _: None)


def test_a_misspelt_encoder_is_suggested(trained, tmp_path):
    with pytest.raises(ExportError, match='Did you mean "whisper"'):
        export_run(trained.run, tmp_path / "out", {"wisper": "x"}, ExportSources(), lambda _: None)


def test_a_folder_that_holds_something_is_never_written_over(trained, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ExportError, match="holds something"):
        export_run(trained.run, tmp_path, trained.weights, ExportSources(), lambda _: None)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="expected a run"):
        export_run(Run(tmp_path / "none"), tmp_path / "out", {}, ExportSources(), lambda _: None)


def test_media_that_changed_since_extraction_are_refused(trained, tmp_path):
    moved = shutil.copytree(trained.folder / "clips", tmp_path / "clips")
    shutil.copy(trained.folder / "clips.jsonl", tmp_path / "clips.jsonl")
    shutil.copy(moved / "v0.mp4", moved / "v1.mp4")
    sources = ExportSources(clips=str(tmp_path / "clips.jsonl"))
    with pytest.raises(FingerprintError, match="v1"):
        export_run(trained.run, tmp_path / "out", trained.weights, sources, lambda _: None)
    (moved / "v1.mp4").unlink()
    with pytest.raises(DataError, match=r"v1: v1\.mp4"):
        export_run(trained.run, tmp_path / "out", trained.weights, sources, lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "clips.jsonl"]


def test_verify_refuses_files_that_are_not_those_certified(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "generation_config.json").write_text("{}")
    with pytest.raises(ExportError, match=r"changed: generation_config\.json"):
        verify_export(copy, say=lambda _: None)
    with pytest.raises(ExportError, match="certificate"):
        verify_export(tmp_path, say=lambda _: None)


def test_a_folder_apart_from_its_run_says_how_to_name_it(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "elsewhere" / "copy")
    with pytest.raises(ExportError, match="Name it with --run"):
        verify_export(copy, say=lambda _: None)


def test_verify_catches_a_model_that_computes_something_else(exported, tmp_path, trained):
    from fusion_train.remote.integrity import file_hashes

    copy = shutil.copytree(exported, trained.folder / "tampered")
    tensors = load_file(copy / "model.safetensors")
    tensors["networks.whisper.conv1.bias"] += 0.05
    tensors["emotion_llama.projectors.video.bias"] += 0.05
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    certificate = json.loads((copy / "certificate.json").read_text())
    write_document(copy / "certificate.json", certificate | {"files": file_hashes(copy)})
    with pytest.raises(ParityError) as caught:
        verify_export(copy, say=lambda _: None)
    assert caught.value.exit_code == 1
    assert any("audio features" in problem for problem in caught.value.problems)
    assert any("in a fresh process" in problem for problem in caught.value.problems)
    assert not any("image features" in problem for problem in caught.value.problems)


@pytest.mark.slow
def test_verify_repeats_the_measurement_wherever_the_folder_lies(exported, trained, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    assert all(figure.passed for figure in verify_export(copy, run=trained.run, say=lambda _: None))
