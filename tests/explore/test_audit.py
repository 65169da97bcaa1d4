"""Doubtful labels, the review sheet, corrections, the map."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import planted
import pytest
from click.testing import CliRunner

from featurecache.cli import main
from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.corrections import (
    Correction,
    adjust,
    apply_corrections,
    corrections_of_review,
    dump_corrections,
    load_corrections,
)
from featurecache.errors import ClipListError
from featurecache.explore.labels import audit, concluded_label, response_agreements
from featurecache.explore.search import open_neighbourhood, update_indices

COUNT = 120
FLIPPED = {f"c{n:03d}" for n in range(5, COUNT, 17)}


def mislabelled() -> list[Clip]:
    wrong = {label: planted.LABELS[number - 1] for number, label in enumerate(planted.LABELS)}
    return [
        dataclasses.replace(clip, labels={"emotion": wrong[clip.labels["emotion"]]}) if clip.id in FLIPPED else clip
        for clip in planted.planted_clips(COUNT)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    update_indices(planted.write_store(folder / "features.zarr", planted.planted_clips(COUNT)))
    planted.write_list(folder / "clips.jsonl", mislabelled())
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def fcache(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_planted_wrong_labels_lead_the_list_with_the_right_ones_suggested(folder: Path) -> None:
    import featurecache

    label_audit = audit(
        open_neighbourhood(featurecache.open_store(folder / "features.zarr")), ClipList(mislabelled()), "emotion"
    )
    top = [issue.id for issue in label_audit.issues[: len(FLIPPED)]]
    assert len(FLIPPED & set(top)) >= len(FLIPPED) - 1
    truth = {clip.id: clip.labels["emotion"] for clip in planted.planted_clips(COUNT)}
    assert all(issue.suggested == truth[issue.id] for issue in label_audit.issues if issue.id in FLIPPED)
    assert all(issue.id not in [other for other, _, _ in issue.evidence] for issue in label_audit.issues)
    assert 0.02 < np.mean([class_noise.noise for class_noise in label_audit.noise]) < 0.2


def test_too_few_clips_of_every_class_is_said(folder: Path) -> None:
    import featurecache

    clips = open_neighbourhood(featurecache.open_store(folder / "features.zarr"))
    with pytest.raises(ClipListError, match="at least 5 clips"):
        audit(clips, ClipList(planted.planted_clips(9)), "emotion")
    with pytest.raises(ClipListError, match="emotion"):
        audit(clips, ClipList(planted.planted_clips(9)), "valence")


def test_the_sheet_names_media_relative_to_itself_and_its_decisions_come_back(here: Path, tmp_path: Path) -> None:
    out = fcache("audit", "--out", "sheets/audit")
    assert "review.html" in out
    page = Path("sheets/audit/review.html").read_text()
    assert str(here) not in page
    doubts = [json.loads(line) for line in Path("sheets/audit/doubts.jsonl").read_text().splitlines()]
    first, second = doubts[:2]
    assert f'"../../{first["id"]}.mp4"' in page
    saved = {"task": "emotion", "decisions": {first["id"]: first["suggested"], second["id"]: second["given"]}}
    Path("decisions.json").write_text(json.dumps(saved))
    assert "2 decided, 1 changed" in fcache("audit", "--decisions", "decisions.json")
    assert load_corrections("corrections.jsonl") == [
        Correction(first["id"], "emotion", first["given"], first["suggested"])
    ]


def test_a_script_in_the_words_of_a_clip_stays_words(folder: Path) -> None:
    from featurecache.explore.labels import ClassNoise, LabelAudit, LabelIssue, review_sheet

    clip = Clip("x", video=Path("x.mp4"), text="</script><script>alert(1)</script>", labels={"emotion": "a"})
    label_audit = LabelAudit(
        "emotion", 1, (LabelIssue("x", "", "a", "b", 0.1, 0.9, ()),), (ClassNoise("", "a", 1, 0.0),), 0.0, ()
    )
    page = review_sheet(label_audit, ClipList([clip]), Path("review.html"))
    assert page.count("</script>") == 1


def test_corrections_change_labels_and_refuse_another_list() -> None:
    clips = ClipList(planted.planted_clips(4))
    corrected = apply_corrections(clips, [Correction("c001", "emotion", "happy", "sad")])
    assert [clip.labels["emotion"] for clip in corrected] == ["angry", "sad", "sad", "angry"]
    with pytest.raises(ClipListError, match="c001: emotion is 'happy', corrected was 'angry'"):
        apply_corrections(clips, [Correction("c001", "emotion", "angry", "sad")])
    with pytest.raises(ClipListError, match="gone: not in the list"):
        apply_corrections(clips, [Correction("gone", "emotion", "angry", "sad")])


def test_exclusions_and_corrections_lie_beside_the_list(tmp_path: Path) -> None:
    clips = planted.write_list(tmp_path / "clips.jsonl", planted.planted_clips(6))
    planted.write_list(tmp_path / "out.jsonl", planted.planted_clips(2))
    (tmp_path / "fixed.jsonl").write_text(dump_corrections([Correction("c003", "emotion", "angry", "sad")]))
    left = adjust(clips, tmp_path, ["fixed.jsonl"], ["out.jsonl"])
    assert left.ids == ["c002", "c003", "c004", "c005"]
    assert left.by_id("c003").labels["emotion"] == "sad"
    planted.write_list(tmp_path / "all.jsonl", planted.planted_clips(6))
    with pytest.raises(ClipListError, match="all of them"):
        adjust(clips, tmp_path, [], ["all.jsonl"])
    (tmp_path / "bad.jsonl").write_text('{"id": "c001"}\nnot json\n')
    with pytest.raises(ClipListError, match=r"line 1.*\n.*line 2"):
        adjust(clips, tmp_path, ["bad.jsonl"], [])


def test_decisions_about_clips_or_labels_that_are_not_there_are_refused() -> None:
    clips = ClipList(planted.planted_clips(3))
    with pytest.raises(ClipListError, match="review sheet"):
        corrections_of_review({}, clips)
    with pytest.raises(ClipListError, match="nope"):
        corrections_of_review({"task": "emotion", "decisions": {"nope": "sad"}}, clips)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>Sad or angry?</think><answer>sad</answer>", "sad"),
        ("The voice is angry at first. So the person is Happy.", "happy"),
        ("She is sad. She smiles.", "sad"),
        ("Both sad and angry.", None),
        ("Unhappy.", None),
        ("", None),
    ],
)
def test_what_a_response_concludes(text: str, expected: str | None) -> None:
    assert concluded_label(text, set(planted.LABELS)) == expected


def test_sources_of_annotation_are_compared() -> None:
    clips = [
        Clip("a", text="", labels={"emotion": "sad"}, responses={"reason": "So: sad."}),
        Clip("b", text="", labels={"emotion": "happy"}, responses={"reason": "So: sad."}),
        Clip("c", text="", labels={"emotion": "happy"}, responses={"reason": "Who knows."}),
    ]
    (agreement,) = response_agreements(ClipList(clips), "emotion")
    assert (agreement.same, agreement.other, agreement.silent) == (1, 1, 1)


def test_a_rationale_is_compared_with_the_label_task_that_it_argues_for() -> None:
    labels = {"emotion": "sad", "intent": "agreeing"}
    clip = Clip("a", text="", labels=labels, responses={"think": {"intent": "So: agreeing.", "emotion": "Sad."}})
    for task in ("emotion", "intent"):
        (agreement,) = response_agreements(ClipList([clip]), task)
        assert (agreement.response, agreement.same, agreement.other, agreement.silent) == ("think", 1, 0, 0)


def test_a_map_is_a_picture_and_a_page(here: Path) -> None:
    fcache("map", "--by", "emotion", "--out", "pictures/map")
    assert Path("pictures/map.png").read_bytes().startswith(b"\x89PNG")
    page = Path("pictures/map.html").read_text()
    assert '"c005"' in page
    assert page.count("</script>") == 1
    refused = CliRunner().invoke(main, ("map", "--by", "colour"))
    assert refused.exit_code == 2
    assert "emotion" in refused.output


def test_similar_lists_neighbours_and_draws_them(here: Path) -> None:
    rows = [json.loads(line) for line in fcache("similar", "c010", "-k", "4", "--json").splitlines()]
    assert len(rows) == 4
    assert "c010" not in {row["id"] for row in rows}
    assert rows == sorted(rows, key=lambda row: -row["similarity"])
    out = fcache("similar", "c010", "-k", "4", "--sheet", "near.png", "--feature", "face=2", "--feature", "voice")
    assert "near.png" in out  # the media are not there: tiles say so
    assert Path("near.png").read_bytes().startswith(b"\x89PNG")
    refused = CliRunner().invoke(main, ("similar", "c010", "--feature", "fase"))
    assert refused.exit_code == 2
    assert "face" in refused.output


def test_duplicates_write_a_clip_list_and_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import featurecache

    monkeypatch.chdir(tmp_path)
    clips = planted.planted_clips(60)
    planted.write_store(tmp_path / "features.zarr", clips, like={"c050": ("c002", 0.0)})
    planted.write_list(tmp_path / "clips.jsonl", clips)
    assert "1 same content" in fcache("duplicates", "--out", "twice.jsonl")
    assert featurecache.load_clips("twice.jsonl").ids == ["c050"]
    assert json.loads(Path("twice.pairs.jsonl").read_text())["kind"] == "same content"
    refused = CliRunner().invoke(main, ("leaks", "--train", "train", "--test", "meld:test"))
    assert refused.exit_code == 2
    assert "planted" in refused.output
