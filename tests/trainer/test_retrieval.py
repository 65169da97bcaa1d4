"""Labels of the nearest training clips in the prompt, and what may never be shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy import SHAPES, feature_spec

import featurecache
from featurecache.clips.clip_list import Clip, ClipList, load_clips
from featurecache.errors import StoreError
from featurecache.explore.search import open_neighbourhood, update_indices
from fusion_train.config import Config
from fusion_train.data.retrieval import open_retrieval
from fusion_train.data.samples import Sample
from fusion_train.evaluation.evaluate import evaluate
from fusion_train.prompts.prompt import PromptFormat, find_task
from fusion_train.run import Run
from fusion_train.run_context import build_context
from fusion_train.training.trainer import train

LABELS = ("angry", "happy", "sad")
FEATURES = dict(zip(("audio", "image", "video"), SHAPES, strict=True))
ALL = [True] * 3
EMOTION = find_task("emotion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 clips in three clusters that tell the label; t01 is a copy of t00, t03 is in the dialogue of t00."""
    folder = tmp_path_factory.mktemp("retrieval")
    ids = [f"t{n:02d}" for n in range(36)] + [f"v{n:02d}" for n in range(12)]
    rows = []
    for n, clip_id in enumerate(ids):
        row = {
            "id": clip_id,
            "video": f"{clip_id}.mp4",
            "text": "so",
            "dataset": "toy",
            "labels": {"emotion": LABELS[n % 3]},
            "split": "train" if clip_id[0] == "t" else "val",
            "responses": {"reason": f"Because of {clip_id}. " * 20},
        }
        rows.append(row | ({"dialogue": "d1"} if clip_id in ("t00", "t03") else {}))
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = featurecache.open_store(folder / "features.zarr", "a")
    for name, shape in SHAPES.items():
        writer = store.writer(name, feature_spec(name, shape), shard_rows=64)
        writer.plan(ids)
        with writer.begin(writer.pending()[0]) as shard:
            for n, clip_id in enumerate(ids):
                number = 0 if clip_id == "t01" else n
                centre = np.random.default_rng([number % 3, shape[1]]).standard_normal(shape[1])
                own = np.random.default_rng([7, number, shape[1]]).standard_normal(shape)
                shard.put(n, (2 * centre + own).astype(np.float32), f"{number:064x}")
            shard.commit()
    update_indices(featurecache.open_store(folder / "features.zarr"))
    return folder


def retrieval_of(folder: Path, **rest):  # type: ignore[no-untyped-def]
    pool = load_clips(folder / "clips.jsonl").in_split("train")
    return open_retrieval(str(folder / "features.zarr"), FEATURES, pool, **{"k": 5, "reasons": False, **rest})


def shown_ids(folder: Path, clip: Clip, **rest) -> list[str]:  # type: ignore[no-untyped-def]
    """Which clips are shown, told by their reasons."""
    return [
        said.split("Because of ")[1].split(".")[0]
        for said in retrieval_of(folder, reasons=True, **rest).recalled(clip, EMOTION, ALL)
    ]


def test_a_clip_is_shown_its_nearest_training_clips_and_never_itself(folder: Path) -> None:
    clips = load_clips(folder / "clips.jsonl")
    neighbourhood = open_neighbourhood(featurecache.open_store(folder / "features.zarr"))
    for clip in (clips.by_id("t10"), clips.by_id("v04")):
        shown = shown_ids(folder, clip)
        similarity = neighbourhood.vectors @ neighbourhood.vectors[neighbourhood.row_of(clip.id)]
        order = [neighbourhood.ids[n] for n in np.argsort(-similarity)]
        assert shown == [other for other in order if other[0] == "t" and other != clip.id][:5]


def test_a_duplicate_is_never_shown(folder: Path) -> None:
    clips = load_clips(folder / "clips.jsonl")
    assert "t01" not in shown_ids(folder, clips.by_id("t00"), k=35)
    assert "t00" not in shown_ids(folder, clips.by_id("t01"), k=35)


def test_a_clip_of_the_same_dialogue_is_never_shown(folder: Path) -> None:
    clips = load_clips(folder / "clips.jsonl")
    assert "t03" not in shown_ids(folder, clips.by_id("t00"), k=35)
    assert "t03" in shown_ids(folder, clips.by_id("t06"), k=35)


def test_reasons_are_short_and_labels_alone_are_the_default(folder: Path) -> None:
    clip = load_clips(folder / "clips.jsonl").by_id("v00")
    assert set(retrieval_of(folder).recalled(clip, EMOTION, ALL)) <= set(LABELS)
    assert max(len(said.split()) for said in retrieval_of(folder, reasons=True).recalled(clip, EMOTION, ALL)) <= 21


def test_a_task_on_pictures_or_a_clip_without_tokens_recalls_nothing(folder: Path) -> None:
    retrieval = retrieval_of(folder)
    assert retrieval.recalled(load_clips(folder / "clips.jsonl").by_id("v00"), find_task("caption"), ALL) == ()
    assert retrieval.recalled(Clip("elsewhere", text="x"), EMOTION, ALL) == ()


def test_what_a_modality_that_is_hidden_would_say_does_not_count(folder: Path) -> None:
    clip = load_clips(folder / "clips.jsonl").by_id("v00")
    retrieval = retrieval_of(folder, reasons=True)
    heard = retrieval.recalled(clip, EMOTION, [True, False, False])
    neighbourhood = open_neighbourhood(featurecache.open_store(folder / "features.zarr"), {"whisper": 1.0})
    similarity = neighbourhood.vectors @ neighbourhood.vectors[neighbourhood.row_of("v00")]
    order = [neighbourhood.ids[n] for n in np.argsort(-similarity, kind="stable") if neighbourhood.ids[n][0] == "t"]
    assert [said.split("Because of ")[1].split(".")[0] for said in heard] == order[:5]
    assert retrieval.recalled(clip, EMOTION, [False] * 3) == ()


def test_what_is_recalled_stands_after_the_words_and_braces_in_words_are_words() -> None:
    _, said, asked = PromptFormat().pieces("I see {said}", EMOTION, LABELS)
    assert str(said) == "</Vid> The person in video says: i see {said}."
    assert str(asked).startswith("  [emotion]")


def test_without_an_index_training_says_what_to_run(material: Path, config: Config) -> None:
    asked = config.model_copy(update={"retrieval": config.retrieval.model_copy(update={"k": 2})})
    with pytest.raises(StoreError, match="fcache index"):
        build_context(asked, str(material / "features.zarr"), str(material / "clips.jsonl"))


def test_a_run_with_retrieval_trains_and_is_scored_on_the_same_prompts(
    folder: Path, config: Config, tmp_path: Path
) -> None:
    asked = config.model_copy(
        update={
            "retrieval": config.retrieval.model_copy(update={"k": 3}),
            "optim": config.optim.model_copy(update={"steps": 4}),
        }
    )
    places = {"store": str(folder / "features.zarr"), "clips": str(folder / "clips.jsonl")}
    train(asked, **places, run=Run(tmp_path / "run"), say=lambda _: None)
    context = build_context(asked, *places.values())
    clip = context.clips.by_id("v00")
    sample = Sample(clip, EMOTION, LABELS, "angry")
    words = context.tokenizer.decode([i for i in context.collator.prompt_ids(sample, ALL) if i >= 0])
    assert "Clips like this one:" in " ".join(words.split())
    assert evaluate(context, ClipList([clip]), "emotion").summary()["num_clips"] == 1
