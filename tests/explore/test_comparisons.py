"""Which clips are near depends on what is asked for: the whole, the content, or a label."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import planted
import pytest
import voices
from click.testing import CliRunner

from featurecache.cli import main
from featurecache.clips.clip_list import ClipList
from featurecache.explore.labels import label_neighbourhood
from featurecache.explore.projection import CONTENT, COPIES, OVERALL
from featurecache.explore.search import Neighbourhood, open_neighbourhood, update_indices

CLASSES, TOPICS, TAKES = 4, 12, 5
WIDTH, TOKENS = 96, 4
STRONG_AXES = 3


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A store whose few strongest axes tell the label, and whose many weak ones tell the topic; and its list."""
    import featurecache

    folder = tmp_path_factory.mktemp("space")
    random = np.random.default_rng(0)
    classes = 16.0 * random.standard_normal((CLASSES, STRONG_AXES))
    mixing = np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0]
    topics = 1.5 * random.standard_normal((TOPICS, WIDTH - STRONG_AXES))
    rows, tokens = [], []
    for n in range(CLASSES * TOPICS * TAKES):
        label, topic = n % CLASSES, (n // CLASSES) % TOPICS
        strong = classes[label] + 9.0 * random.standard_normal(STRONG_AXES)
        weak = topics[topic] + 0.9 * random.standard_normal(WIDTH - STRONG_AXES)
        clip = np.concatenate([strong, weak]) @ mixing
        tokens.append((clip + 0.05 * random.standard_normal((TOKENS, WIDTH))).astype(np.float32))
        rows.append(
            {
                "id": f"c{n:03d}",
                "audio": f"c{n:03d}.wav",
                "text": f"topic {topic}",
                "speaker": f"p{n % 7}",
                "labels": {"emotion": f"class {label}"},
            }
        )
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = featurecache.open_store(folder / "features.zarr", mode="a")
    writer = store.writer("voice", planted.spec_of("voice", shape=(TOKENS, WIDTH)), shard_rows=512)
    writer.plan([row["id"] for row in rows])
    with writer.begin(writer.pending()[0]) as shard:
        for slot, clip in enumerate(tokens):
            shard.put(slot, clip, f"{slot + 1:064x}")
        shard.commit()
    store = featurecache.open_store(folder / "features.zarr")
    update_indices(store)
    return store, featurecache.load_clips(folder / "clips.jsonl"), folder


def shares(neighbourhood: Neighbourhood, clips: ClipList) -> tuple[float, float]:
    """Of the ten nearest clips, the share with the same label and the share with the same text."""
    _, places = neighbourhood.search(neighbourhood.vectors, 11)
    labels = np.array([clips.by_id(clip_id).labels["emotion"] for clip_id in neighbourhood.ids])
    texts = np.array([clips.by_id(clip_id).text for clip_id in neighbourhood.ids])
    near = places[:, 1:]
    return float((labels[near] == labels[:, None]).mean()), float((texts[near] == texts[:, None]).mean())


def test_neighbours_overall_share_the_label_that_whitening_erases(spoken) -> None:  # type: ignore[no-untyped-def]
    store, clips, _ = spoken
    overall, _ = shares(open_neighbourhood(store), clips)
    whitened, _ = shares(open_neighbourhood(store, comparison=COPIES), clips)
    assert overall > 0.5
    assert whitened < overall - 0.15


def test_neighbours_by_content_share_the_text(spoken) -> None:  # type: ignore[no-untyped-def]
    store, clips, _ = spoken
    _, overall = shares(open_neighbourhood(store, comparison=OVERALL), clips)
    _, content = shares(open_neighbourhood(store, comparison=CONTENT), clips)
    assert content > 0.8
    assert content > overall + 0.2


def test_neighbours_by_label_share_it_though_no_clip_told_the_probe_its_own(spoken) -> None:  # type: ignore[no-untyped-def]
    store, clips, _ = spoken
    source = open_neighbourhood(store)
    by_label, text = shares(label_neighbourhood(source, clips, "emotion")[0], clips)
    assert by_label > shares(source, clips)[0]
    assert text < 0.2
    shuffled = [
        dataclasses.replace(clip, labels={"emotion": f"class {np.random.default_rng(n).integers(CLASSES)}"})
        for n, clip in enumerate(clips)
    ]
    chance, _ = shares(label_neighbourhood(source, ClipList(shuffled), "emotion")[0], ClipList(shuffled))
    assert chance < 0.35  # labels that the tokens do not tell are not found again


def test_other_media_are_projected_as_clips_of_the_store_are(spoken) -> None:  # type: ignore[no-untyped-def]
    store, clips, _ = spoken
    source = open_neighbourhood(store)
    neighbourhood, project = label_neighbourhood(source, clips, "emotion")
    outside = project(source.vectors[:40])
    assert outside.shape == neighbourhood.vectors[:40].shape
    assert np.mean((outside * neighbourhood.vectors[:40]).sum(1)) > 0.8


def test_similar_and_map_take_what_to_compare_by(spoken, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    store, clips, folder = spoken
    monkeypatch.chdir(folder)
    overall, content = (open_neighbourhood(store, comparison=way) for way in (OVERALL, CONTENT))
    by_label, _ = label_neighbourhood(overall, clips, "emotion")
    for compare, expected in (("overall", overall), ("content", content), ("label:emotion", by_label)):
        result = CliRunner().invoke(main, ("similar", "c017", "-k", "8", "--json", "--compare", compare))
        assert result.exit_code == 0, result.output
        _, places = expected.search(expected.vectors[[expected.row_of("c017")]], 9)
        near = [expected.ids[place] for place in places[0] if expected.ids[place] != "c017"]
        assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == near
    for compare in ("overall", "content", "label:emotion"):
        result = CliRunner().invoke(main, ("map", "--by", "emotion", "--compare", compare, "--out", "drawn"))
        assert result.exit_code == 0, result.output
        assert compare in (folder / "drawn.html").read_text()
    refused = CliRunner().invoke(main, ("similar", "c017", "--compare", "emotion"))
    assert refused.exit_code == 2
    assert "overall | content | label:emotion" in refused.output
    refused = CliRunner().invoke(main, ("similar", "c017", "--compare", "label:valence"))
    assert refused.exit_code == 2
    assert "valence" in refused.output


def test_a_few_strong_channels_of_emotion_are_lost_in_copies_alone(tmp_path: Path) -> None:
    store, clips = voices.write_voices(tmp_path / "voices")
    update_indices(store)
    assert shares(open_neighbourhood(store), clips)[0] > 0.55
    assert shares(open_neighbourhood(store, comparison=CONTENT), clips)[1] > 0.4
