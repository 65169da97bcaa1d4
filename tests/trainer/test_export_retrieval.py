"""An exported model recalls from raw media what the run recalled from the store."""

from __future__ import annotations

import json

import torch
from exporting import train_run

from fusion_train.export.export_run import ExportSources, export_run
from fusion_train.models.recall import RECALL_TOKEN
from fusion_train.prompts.prompt import find_task
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM
from fusion_train.remote.processing_emotion_llama import EmotionLlamaProcessor
from fusion_train.run_context import load_context


def test_raw_clips_recall_what_the_run_recalled(tmp_path, whisper_folder, eva_folder, llama):
    trained = train_run(
        tmp_path / "material", whisper_folder, eva_folder, llama, "retrieval.k=2", "retrieval.reasons=true"
    )
    out = trained.folder / "exported"
    figures = export_run(trained.run, out, trained.weights, ExportSources(), say=lambda _: None)
    assert all(figure.passed for figure in figures)  # prompts of raw and stored clips are equal, token by token
    assert json.loads((out / "config.json").read_text())["recall"]["k"] == 2

    model = EmotionLlamaForCausalLM.from_pretrained(out).eval()
    processor = EmotionLlamaProcessor.from_pretrained(out, trust_remote_code=True)
    videos = [trained.video(clip_id) for clip_id in ("v1", "v3")]
    both = processor(video=videos, text=["Number 1!", "Number 3!"], task="emotion", dataset="toy")
    assert (both["input_ids"] == RECALL_TOKEN).sum(dim=1).tolist() == [1, 1]
    features = model.encode(
        both["present"], **{name: both[name] for name in ("input_features", "image_frames", "video_frames")}
    )
    ids, mask = model.fill_recall(both["input_ids"], both["attention_mask"], features, both["present"])
    assert not (ids <= RECALL_TOKEN).any()
    said = " ".join(processor.tokenizer.decode([i for i in ids[0].tolist() if i > 0]).split())
    assert "Clips like this one:" in said

    context = load_context(trained.run)
    for row, clip_id in enumerate(("v1", "v3")):
        clip = context.clips.by_id(clip_id)
        shown = context.collator.present(clip)
        recalled = context.collator.recall(clip, find_task("emotion"), shown)
        kept = ids[row][mask[row].bool()].tolist()
        place = next(n for n in range(len(kept)) if kept[n : n + len(recalled)] == recalled)
        assert place > 0

    alone = processor(video=videos[0], text="Number 1!", task="emotion", dataset="toy")
    torch.testing.assert_close(
        model.generate(**alone, max_new_tokens=4)[0], model.generate(**both, max_new_tokens=4)[0, :4]
    )


def test_a_run_without_retrieval_has_no_place_and_no_memory(processor, model, trained):
    inputs = processor(video=trained.video("v0"), text="x", task="emotion")
    assert (inputs["input_ids"] > RECALL_TOKEN).all()
    assert model.recall is None
