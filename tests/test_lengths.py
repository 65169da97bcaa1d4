"""Clips whose list says another length than their files, and files that the list spells otherwise, are named."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import recordings as rec
from click.testing import CliRunner
from stub_encoders import stub_encoders

from featurecache import load_clips, open_store
from featurecache.cli import main
from featurecache.clips.clip_list import Clip
from featurecache.extract.run import extract
from featurecache.media.decode import decode_each
from featurecache.media.durations import differences_in_words, length_difference, length_differences
from featurecache.store.protocols import Status
from featurecache.views import AudioView, FramesView

VIEWS = [AudioView(), FramesView(4, "uniform", still=False)]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Two seconds of pictures and sound."""
    return rec.write_clip(tmp_path / "a.mp4", sound=rec.sine(2.0))


def notices_of(clip: Clip) -> list[str]:
    notices: list[str] = []
    assert not any(isinstance(result, Exception) for result in decode_each(clip, VIEWS, notices=notices))
    return notices


def test_an_end_far_beyond_the_file_is_said_where_the_clip_is_decoded(recording: Path) -> None:
    (notice,) = notices_of(Clip("a", video=recording, end_s=300.0))
    assert notice.startswith("end_s is 300.00 s, its video file ends at 2.0")
    for part in ({}, {"end_s": 2.0}, {"end_s": 2.3}, {"start_s": 0.5, "end_s": 1.5}):
        assert notices_of(Clip("a", video=recording, **part)) == []


def test_sound_that_is_longer_than_an_encoder_hears_is_not_called_short(tmp_path: Path) -> None:
    path = rec.write_clip(tmp_path / "a.wav", num_frames=0, sound=rec.sine(50.0), audio_codec="pcm_s16le")
    notices: list[str] = []
    decode_each(Clip("a", audio=path, end_s=48.0), [AudioView()], notices=notices)
    assert notices == []


def test_extraction_says_which_clips_end_before_their_end(tmp_path: Path, recording: Path) -> None:
    rows = [{"id": "long", "video": "a.mp4", "end_s": 300}, {"id": "right", "video": "a.mp4", "end_s": 1.5}]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = open_store(tmp_path / "s", "a")
    summary = extract(store, load_clips(tmp_path / "clips.jsonl"), stub_encoders())
    assert list(summary.notices) == ["long"]
    assert summary.to_dict()["notices"]["long"].startswith("end_s is 300.00 s")
    assert open_store(tmp_path / "s")["loudness"].record("long").status is Status.OK


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"duration_s": 284.0}, "the table says 284.00 s, its file holds 2.00 s"),
        ({"duration_s": 0.9}, "the table says 0.90 s, its file holds 2.00 s"),
        ({"start_s": 0.5, "end_s": 1.0, "duration_s": 2.0}, "the table says 2.00 s, its file holds 0.50 s"),
        ({"end_s": 300.0}, "end_s is 300.00 s, its file ends at 2.00 s"),
        ({"duration_s": 2.25}, None),
        ({"start_s": 0.5, "end_s": 1.5, "duration_s": 1.0}, None),
        ({}, None),
    ],
)
def test_lengths_that_differ_greatly_are_named(recording: Path, stated: dict[str, float], message: str | None) -> None:
    difference = length_difference(Clip("a", video=recording, **stated))
    assert difference is None if message is None else difference is not None and difference == message


def test_many_differences_are_counted_and_three_are_named(recording: Path) -> None:
    clips = [Clip(f"{n}", video=recording, duration_s=60.0) for n in range(5)]
    lines = differences_in_words(length_differences([*clips, Clip("text", text="Hi.", duration_s=3.0)]))
    assert lines[0].startswith("length: 5 clips whose list and file differ greatly")
    assert lines[1:] == [f"  {n}: the table says 60.00 s, its file holds 2.00 s" for n in range(3)] + ["  … and 2 more"]


def meld(folder: Path) -> Path:
    """A folder as MELD has it, the second of whose clips holds four seconds where the table says one."""
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
    row = '{n},Well.,Ross,neutral,neutral,0,{n},3,9,"00:16:16,059","{end}"\n'
    for split, place in (
        ("train", "train_splits"),
        ("dev", "dev_splits_complete"),
        ("test", "output_repeated_splits_test"),
    ):
        rows = row.format(n=0, end="00:16:18,100") + row.format(n=1, end="00:16:17,059")
        (folder / f"{split}_sent_emo.csv").write_text(header + rows)
        (folder / place).mkdir()
        rec.write_clip(folder / place / "dia0_utt0.mp4", num_frames=20)
        rec.write_clip(folder / place / "dia0_utt1.mp4", num_frames=40)
    return folder


def test_import_keeps_the_tables_length_and_names_files_of_another(tmp_path: Path) -> None:
    (tmp_path / "MELD").mkdir()
    out = tmp_path / "meld.jsonl"
    done = CliRunner().invoke(main, ["import", "meld", str(meld(tmp_path / "MELD")), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "length: 3 clips whose list and file differ greatly" in done.output
    assert "train_dia0_utt1: the table says 1.00 s, its file holds 4.00 s" in done.output
    assert "utt0:" not in done.output
    clips = load_clips(out)
    assert clips.by_id("train_dia0_utt0").duration_s == pytest.approx(2.041)
    assert clips.by_id("train_dia0_utt1").duration_s == 1.0


def test_a_length_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_text('{"id": "a", "text": "Hi.", "duration_s": -1}\n')
    with pytest.raises(Exception, match="duration_s: expected seconds from 0, got -1"):
        load_clips(tmp_path / "clips.jsonl")


@pytest.mark.parametrize(("listed", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_unicode_form_are_found_with_a_notice(tmp_path: Path, listed: str, on_disk: str) -> None:
    name, folder = "Renée – ñandú", "vidéos"
    place = tmp_path / unicodedata.normalize(on_disk, folder)
    place.mkdir()
    rec.write_clip(place / unicodedata.normalize(on_disk, f"{name}.mp4"), num_frames=4)
    row = {"id": "a", "video": unicodedata.normalize(listed, f"{folder}/{name}.mp4")}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row) + "\n")
    clips = load_clips(tmp_path / "clips.jsonl")
    assert clips[0].video is not None
    assert clips[0].video.is_file()
    (notice,) = clips.notices
    assert notice.startswith("media of 1 clip found whose names are spelt in another Unicode form")
    assert rec.frame_numbers(decode_each(clips[0], [VIEWS[1]])[0]) == [0, 1, 2, 3]
    table = tmp_path / "table.csv"
    table.write_text(f"name\n{unicodedata.normalize(listed, name)}\n", encoding="utf-8")
    video = f"video={unicodedata.normalize(listed, folder)}/{{name}}.mp4"
    options = ["--out", str(tmp_path / "l.jsonl"), "--option", "id=name", "--option", video]
    done = CliRunner().invoke(main, ["import", "csv", str(table), *options])
    assert done.exit_code == 0, done.output
    assert "note: media of 1 clip found whose names are spelt" in done.output
    imported = load_clips(tmp_path / "l.jsonl")
    assert imported[0].video is not None
    assert imported[0].video.is_file()
    assert imported.notices == []


def test_a_file_that_was_renamed_since_the_list_was_read_last_is_found(tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_text(json.dumps({"id": "a", "video": "\u00e9.mp4"}) + "\n")
    (tmp_path / "other.mp4").touch()
    assert load_clips(tmp_path / "clips.jsonl")[0].video == tmp_path / "\u00e9.mp4"
    (tmp_path / "other.mp4").rename(tmp_path / "e\u0301.mp4")
    assert load_clips(tmp_path / "clips.jsonl")[0].video == tmp_path / "e\u0301.mp4"


def test_a_name_that_is_there_in_its_own_form_is_left_as_it_is(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        rec.write_clip(tmp_path / unicodedata.normalize(form, "é.mp4"), num_frames=2)
    row = {"id": "a", "video": unicodedata.normalize("NFD", "é.mp4")}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row) + "\n")
    clips = load_clips(tmp_path / "clips.jsonl")
    assert clips.notices == []
    assert clips[0].video == tmp_path / unicodedata.normalize("NFD", "é.mp4")
