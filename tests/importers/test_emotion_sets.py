"""What single importers of emotion datasets do beyond the promises of all."""

from __future__ import annotations

import re
from pathlib import Path

import acted_fixtures as acted
import dimensional_fixtures as dimensional
import humor_fixtures as humor
import pytest
from click.testing import CliRunner
from dataset_fixture import DatasetFixture, rows_of, run, write

from featurecache.cli import main
from featurecache.errors import DatasetError


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        (acted.RAVDESS, "03-01-09-01-02-01-12.wav"),
        (acted.CREMA_D, "1001_DFA_BOR_XX.wav"),
        (acted.TESS, "OAF_back_bored.wav"),
        (acted.EMODB, "03a01Xa.wav"),
        (acted.SAVEE, "DC_x01.wav"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.importer,
)
def test_a_file_name_with_an_unknown_emotion_is_named(dataset: DatasetFixture, name: str, tmp_path: Path) -> None:
    source = dataset.build(tmp_path / "data")
    write(source / name, "sound")
    with pytest.raises(DatasetError, match="vocabulary") as caught:
        run(dataset, source, tmp_path / "clips.jsonl")
    assert len(caught.value.problems) == 1
    summary = run(dataset, source, tmp_path / "clips.jsonl", lenient=True)
    assert sum(summary.by_split.values()) == dataset.num_clips


def test_file_names_of_no_recording_are_listed_and_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "other/wav/holiday.wav", "sea")
    with pytest.raises(DatasetError, match="files with names such as 03a01Fa, got wav/"):
        run(acted.EMODB, tmp_path / "other", tmp_path / "clips.jsonl")
    source = acted.EMODB.build(tmp_path / "data")
    write(source / "wav/holiday.wav", "sea")
    summary = run(acted.EMODB, source, tmp_path / "clips.jsonl")
    assert summary.left_out == {"no file name such as 03a01Fa": ["holiday.wav"]}


def test_a_dataset_without_splits_says_how_to_divide_it_by_speakers(tmp_path: Path) -> None:
    source = acted.EMODB.build(tmp_path / "EmoDB")
    out = tmp_path / "clips.jsonl"
    result = CliRunner().invoke(main, ["import", "emodb", str(source), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "clips: 3 in the tables, 535 published" in result.output
    assert "note: the clips have no splits; --split 70/15/15 --group speaker divides them" in result.output
    arguments = ["import", "emodb", str(source), "--overwrite", "--out", str(out)]
    refused = CliRunner().invoke(main, [*arguments, "--split", "test"])
    assert refused.exit_code == 2
    assert "--split test: expected shares such as 70/15/15, since EmoDB has no splits" in refused.output
    divided = CliRunner().invoke(main, [*arguments, "--split", "50/50", "--group", "speaker"])
    assert divided.exit_code == 0, divided.output
    assert {row["split"] for row in rows_of(out).values()} == {"train", "test"}


def test_votes_of_raters_are_chosen_by_what_they_were_shown(tmp_path: Path) -> None:
    source = acted.CREMA_D_VOTES.build(tmp_path / "data")
    emotions = {}
    for shown in ("intended", "voice", "face"):
        fixture = DatasetFixture(**{**vars(acted.CREMA_D_VOTES), "options": {"labels": shown}})
        run(fixture, source, tmp_path / f"{shown}.jsonl")
        rows = rows_of(tmp_path / f"{shown}.jsonl")
        emotions[shown] = {clip_id: row["labels"]["emotion"] for clip_id, row in rows.items()}
    assert emotions["intended"]["1001_IEO_HAP_LO"] == "happy"
    assert len(emotions["intended"]) == 4
    assert emotions["voice"] == {"1001_DFA_ANG_XX": "neutral", "1001_IEO_HAP_LO": "neutral", "1002_IEO_SAD_HI": "sad"}
    assert emotions["face"] == {"1001_DFA_ANG_XX": "anger", "1001_IEO_HAP_LO": "happy", "1002_IEO_SAD_HI": "disgust"}


@pytest.mark.parametrize(
    ("dataset", "table", "cell", "other", "problem"),
    [
        (dimensional.OMG_EMOTION, "omg_TrainVideos.csv", "0.41", "-0.2", "arousal -0.2, outside 0 to 1"),
        (dimensional.MSP_PODCAST, "Labels/labels_consensus.csv", "2.2", "0.5", "arousal 0.5, outside 1 to 7"),
        (dimensional.MSP_PODCAST, "Labels/labels_consensus.csv", "Train", "Trial", 'Split_Set "Trial"'),
        (humor.MUSTARD_PLUS_PLUS, "mustard++_text.csv", "PRO", "PROP", 'sarcasm_type "PROP"'),
    ],
)
def test_a_number_outside_its_scale_is_named_with_its_row(
    dataset: DatasetFixture, table: str, cell: str, other: str, problem: str, tmp_path: Path
) -> None:
    source = dataset.build(tmp_path / "data", dataset.edited(table, cell, other))
    with pytest.raises(DatasetError) as caught:
        run(dataset, source, tmp_path / "clips.jsonl")
    (message,) = caught.value.problems
    assert re.match(rf".+ line \d+: {re.escape(problem)}", message)
    assert sum(run(dataset, source, tmp_path / "c.jsonl", lenient=True).by_split.values()) == dataset.num_clips - 1


def test_a_row_without_a_number_is_left_out_with_the_reason(tmp_path: Path) -> None:
    dataset = dimensional.OMG_EMOTION
    source = dataset.build(tmp_path / "data", dataset.edited("omg_TrainVideos.csv", "0.41", ""))
    summary = run(dataset, source, tmp_path / "clips.jsonl")
    assert summary.left_out == {"no arousal": ["omg_TrainVideos.csv line 3"]}


def test_an_utterance_that_ends_before_it_begins_is_named(tmp_path: Path) -> None:
    dataset = dimensional.OMG_EMOTION
    rows = [[*row] for row in dataset.files["omg_TrainVideos.csv"]]
    rows[1][1:3] = 19.68, 15.41
    source = dataset.build(tmp_path / "data", {**dataset.files, "omg_TrainVideos.csv": rows})
    with pytest.raises(DatasetError) as caught:
        run(dataset, source, tmp_path / "clips.jsonl")
    assert caught.value.problems == ["omg_TrainVideos.csv line 2: from 19.68 s to 15.41 s"]


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("data_folds.json", {"train": "12, 7"}, "split -> a list of ids, got train: '12, 7'"),
        ("language_sdk.json", {"12": "so we ate it"}, "id -> an object of sentences, got 12: 'so we ate it'"),
    ],
)
def test_a_converted_table_of_another_shape_is_named(
    name: str, document: dict[str, object], message: str, tmp_path: Path
) -> None:
    source = humor.UR_FUNNY.build(tmp_path / "data", {**humor.UR_FUNNY.files, name: document})
    with pytest.raises(DatasetError, match=re.escape(f"{name}: expected {message}")):
        run(humor.UR_FUNNY, source, tmp_path / "clips.jsonl")


def test_pickles_of_ur_funny_are_not_read(tmp_path: Path) -> None:
    source = humor.UR_FUNNY.build(tmp_path / "data")
    (source / "data_folds.json").rename(source / "data_folds.pkl")
    with pytest.raises(DatasetError, match=r"expected data_folds.json, got data_folds.pkl, a pickle.*Convert"):
        run(humor.UR_FUNNY, source, tmp_path / "clips.jsonl")
