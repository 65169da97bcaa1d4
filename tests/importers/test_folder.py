"""`fcache import folder`: what is read of a folder of clips, and one clear line where something does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import recordings as rec
from click.testing import CliRunner, Result
from dataset_fixture import rows_of, write

from featurecache.cli import main
from featurecache.importers.folder import IMPORTER

FOUR = ("a.wav", "b.wav", "c.wav", "d.wav")


def fcache(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder `clips` in the working directory; `fcache` finds the importer as if it were installed anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("featurecache.importers.find_importer", lambda name: IMPORTER)
    (tmp_path / "clips").mkdir()
    return tmp_path / "clips"


def sounds(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rec.write_wav(folder / name, rec.sine(0.1)[None])


def table(*rows: str, name: str = "labels.csv") -> None:
    Path(name).write_text("\n".join(rows) + "\n")


def refusal(*arguments: str) -> str:
    """The one line of a refused import; nothing may be written."""
    result = fcache("import", "folder", "clips", *arguments)
    assert result.exit_code == 2, result.output
    assert not Path("clips.jsonl").exists()
    return result.output


def test_labels_by_table_and_splits_by_speaker(folder: Path) -> None:
    names = [f"{speaker}{number}.wav" for speaker in "ABCD" for number in range(3)]
    sounds(folder, *names)
    table("file,label,speaker", *(f"{name},{'happy' if '0' in name else 'sad'},{name[0]}" for name in names))
    result = fcache("import", "folder", "clips", "--labels", "labels.csv", "--split", "50/25/25", "--group", "speaker")
    assert result.exit_code == 0, result.output
    rows = rows_of(Path("clips.jsonl"))
    assert rows["A0"]["labels"] == {"emotion": "happy"}
    assert rows["A0"]["audio"] == "clips/A0.wav"
    splits = {speaker: {row["split"] for row in rows.values() if row["speaker"] == speaker} for speaker in "ABCD"}
    assert sorted(min(found) for found in splits.values()) == ["test", "train", "train", "val"]
    assert all(len(found) == 1 for found in splits.values())
    assert "clips of one speaker together" in result.output
    assert "rare: happy (4), sad (8)" in result.output


def test_the_same_import_gives_the_same_splits_and_another_seed_others(folder: Path) -> None:
    sounds(folder, *(f"{number}.wav" for number in range(30)))
    lists = []
    for seed in ("0", "0", "1"):
        assert fcache("import", "folder", "clips", "--seed", seed, "--split", "70/15/15", "--overwrite").exit_code == 0
        lists.append(Path("clips.jsonl").read_bytes())
    assert lists[0] == lists[1] != lists[2]


def test_files_without_sound_or_picture_are_named(folder: Path) -> None:
    rec.write_clip(folder / "both.mp4", sound=rec.sine(2.0))
    rec.write_clip(folder / "mute.mp4")
    rec.write_clip(folder / "blind.mp4", num_frames=0, sound=rec.sine(1.0))
    write(folder / "torn.mp4", "no recording")
    output = fcache("import", "folder", "clips").output
    assert "1 file (mute) has no sound" in output
    assert "1 file (blind) has no picture" in output
    assert "1 file (torn) has no sound and no picture that can be read" in output
    rows = rows_of(Path("clips.jsonl"))
    assert rows["blind"]["audio"] == "clips/blind.mp4"  # as sound, so that its pictures are absent and not failed
    assert "video" not in rows["blind"]
    assert len(rows) == 4


def test_classes_that_may_be_one_are_named_and_stay_apart(folder: Path) -> None:
    sounds(folder, "Happy/a.wav", "happy/b.wav", "happy/c.wav", "hapy/d.wav", "sad/e.wav")
    output = fcache("import", "folder", "clips").output
    assert 'emotion: "happy" (2) and "Happy" (1) and "hapy" (1) are classes of their own' in output
    assert {row["labels"]["emotion"] for row in rows_of(Path("clips.jsonl")).values()} == {
        "Happy", "happy", "hapy", "sad",
    }  # fmt: skip


def test_labels_and_files_that_do_not_meet_are_named_on_both_sides(folder: Path) -> None:
    sounds(folder, *FOUR)
    table("file,label", "a.wav,happy", "b,sad", "x.wav,sad", "y.wav,sad")
    result = fcache("import", "folder", "clips", "--labels", "labels.csv")
    assert result.exit_code == 0
    assert "left out: 2 rows: no file of this name in clips (x.wav, y.wav)" in result.output
    assert "no label: 2 of 4 clips (c, d)" in result.output


def test_one_folder_is_no_class(folder: Path) -> None:
    sounds(folder, *(f"wav/{name}" for name in FOUR))
    output = fcache("import", "folder", "clips").output
    assert "no labels: name a table with --labels" in output
    assert all("labels" not in row for row in rows_of(Path("clips.jsonl")).values())


def test_one_class_only_is_said(folder: Path) -> None:
    sounds(folder, *FOUR)
    table("file,label", *(f"{name},happy" for name in FOUR))
    output = fcache("import", "folder", "clips", "--labels", "labels.csv").output
    assert 'emotion: only one class, "happy". A model needs two or more.' in output


def test_two_clips_are_listed_without_splits_and_refused_where_splits_are_asked_for(folder: Path) -> None:
    sounds(folder, "a.wav", "b.wav")
    assert "at least 3 clips for train, val, test, got 2. Add clips" in refusal("--split", "70/15/15")
    assert "note: too few clips to divide into splits" in fcache("import", "folder", "clips").output
    assert all("split" not in row for row in rows_of(Path("clips.jsonl")).values())


def test_a_folder_without_media_is_refused(folder: Path) -> None:
    write(folder / "notes.txt", "…")
    assert "expected media files (.3gp" in refusal()
    assert "got notes.txt" in refusal()


def test_a_folder_that_is_not_there_is_refused(folder: Path) -> None:
    write(Path("recordings/a.txt"), "…")
    result = fcache("import", "folder", "klips")
    assert result.exit_code == 2
    assert "klips: expected a folder that is there (a folder of your own clips), got nothing; there is" in result.output
    assert len(result.output.splitlines()) == 1


def test_two_files_of_one_name_are_refused_by_name(folder: Path) -> None:
    sounds(folder, "a.wav", "b.wav")
    rec.write_clip(folder / "a.mp4")
    assert "expected one file of each name, got 1 name with several." in refusal()
    assert "a.mp4 and a.wav" in refusal()


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (["a.wav,happy", "b.wav,sad"], "expected a column file or filename"),
        (["file,feeling", "a.wav,happy"], "--option label=COLUMN"),
        (["file,label", "a.wav,happy", "a.wav,sad"], "labels.csv line 3: a second row for a.wav"),
        (["file,label", "x.wav,happy"], "names of files in"),
        (["file,label", "e.wav,happy"], "e.wav may be one/e or two/e"),
        (["file,label,split"], "names of files in"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(folder: Path, rows: list[str], line: str) -> None:
    sounds(folder, *FOUR, "one/e.wav", "two/e.wav")
    table(*rows)
    assert line in refusal("--labels", "labels.csv")


def test_a_table_that_is_not_there_is_refused(folder: Path) -> None:
    sounds(folder, *FOUR)
    assert "lables.csv: expected a file that can be read, got No such file" in refusal("--labels", "lables.csv")


def test_a_group_that_no_clip_has_is_refused(folder: Path) -> None:
    sounds(folder, *FOUR)
    assert "--group speaker: expected clips with a speaker, got none of 4." in refusal("--group", "speaker")


def test_a_list_that_is_there_is_kept_before_any_file_is_read(folder: Path) -> None:
    Path("clips.jsonl").write_text('{"id": "mine", "text": "x"}\n')
    write(folder / "a.mp4", "…")
    result = fcache("import", "folder", "clips")
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    assert Path("clips.jsonl").read_text() == '{"id": "mine", "text": "x"}\n'
