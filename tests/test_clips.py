"""Clip lists: every problem is named with its line, nothing is guessed."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache.clips.clip_list import Clip, ClipList, Question, load_clips
from featurecache.clips.crop import Crop
from featurecache.clips.writing import write_clips
from featurecache.errors import ClipListError


def write(folder: Path, *rows: object) -> Path:
    path = folder / "clips.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def problems(folder: Path, *rows: object) -> list[str]:
    with pytest.raises(ClipListError) as caught:
        load_clips(write(folder, *rows))
    return caught.value.problems


FULL = {
    "id": "set/a1", "video": "v/a1.mp4", "audio": "a1.wav", "image": "a1.png", "text": "I see.", "split": "train",
    "dataset": "demo", "labels": {"emotion": "happy", "sentiment_score": 0.3, "multi-label": ["happy", "proud"]},
    "responses": {"reason": "…"},
    "peak_frame": 12, "start_s": 0.5, "end_s": 2, "speaker": "Ann", "dialogue": "7", "session": "1",
    "crop": {"right": 0.5}, "tags": ["sarcasm", "noisy"],
    "questions": [{"task": "caption", "answer": "A face."}, {"task": "vqa", "question": "Who?", "answer": "Ann"}],
}  # fmt: skip


def test_every_field_is_read_and_paths_are_relative_to_the_list(tmp_path: Path) -> None:
    clip = load_clips(write(tmp_path, FULL))[0]
    assert clip == Clip(
        **{
            **FULL,
            "video": tmp_path / "v/a1.mp4",
            "audio": tmp_path / "a1.wav",
            "image": tmp_path / "a1.png",
            "crop": Crop(right=0.5),
            "tags": ("sarcasm", "noisy"),
            "questions": (Question("caption", "A face."), Question("vqa", "Ann", "Who?")),
        }
    )
    assert isinstance(clip.end_s, float)
    elsewhere = load_clips(tmp_path / "clips.jsonl", media_root="/media")[0]
    assert elsewhere.video == Path("/media/v/a1.mp4")


def test_all_problems_of_all_lines_are_reported_at_once(tmp_path: Path) -> None:
    listed_problems = problems(
        tmp_path,
        {"id": "a", "video": "a.mp4"},
        {"id": "a", "video": "b.mp4"},
        {"id": "b", "vidoe": "b.mp4"},
        "not json",
        {"id": "c", "video": "../c.mp4", "peak_frame": -1},
        {"id": 7, "text": "x"},
        [1],
    )
    assert listed_problems[0] == 'line 2: id "a" stands already on line 1'
    assert listed_problems[1].startswith('line 3: unknown key "vidoe". Did you mean "video"?')
    assert listed_problems[2].startswith("line 4: not JSON")
    assert 'line 5: video: "../c.mp4" leaves the folder' in listed_problems[3]
    assert "peak_frame: expected a whole number from 0, got -1" in listed_problems[3]
    assert listed_problems[4] == "line 6: id: expected a string, got 7"
    assert listed_problems[5] == "line 7: expected an object, got list"


@pytest.mark.parametrize(
    "row",
    [
        {"id": "", "text": "x"},
        {"id": "a\n", "text": "x"},
        {"id": " a", "text": "x"},
        {"id": "../a", "text": "x"},
        {"id": "a//b", "text": "x"},
        {"id": "a\\b", "text": "x"},
        {"id": "x" * 256, "text": "x"},
        {"id": "a"},
        {"id": "a", "video": ""},
        {"id": "a", "video": "/etc/passwd"},
        {"id": "a", "video": "C:\\clips\\a.mp4"},
        {"id": "a", "video": "v/../../a.mp4"},
        {"id": "a", "video": "a\0.mp4"},
        {"id": "a", "video": 3},
        {"id": "a", "text": 3},
        {"id": "a", "text": "x", "labels": ["happy"]},
        {"id": "a", "text": "x", "responses": {"reason": 3}},
        {"id": "a", "text": "x", "peak_frame": True},
        {"id": "a", "text": "x", "peak_frame": 1.5},
        {"id": "a", "text": "x", "start_s": -1},
        {"id": "a", "text": "x", "start_s": "1"},
        {"id": "a", "text": "x", "start_s": 2, "end_s": 2},
        {"id": "a", "text": "x", "speaker": 7},
        {"id": "a", "text": "x", "labels": {"sentiment_score": "1.8"}},
        {"id": "a", "text": "x", "tags": "sarcasm"},
        {"id": "a", "text": "x", "crop": "left"},
        {"id": "a", "text": "x", "crop": {"rihgt": 0.5}},
        {"id": "a", "text": "x", "crop": {"right": 50}},
        {"id": "a", "text": "x", "crop": {"left": 0.5, "right": 0.5}},
        {"id": "a", "text": "x", "questions": {"vqa": "Who?"}},
        {"id": "a", "text": "x", "questions": [{"task": "vqa", "question": "Who?"}]},
        {"id": "a", "text": "x", "questions": [{"task": "vqa", "ask": "Who?", "answer": "Ann"}]},
        '{"id": "a", "text": "x", "end_s": NaN}',
        '{"id": "a", "text": "x", "end_s": Infinity}',
        '{"id": "a", "id": "b", "text": "x"}',
    ],
)
def test_an_unsound_line_is_refused(tmp_path: Path, row: object) -> None:
    assert len(problems(tmp_path, row)) == 1


def test_a_path_may_go_down_and_up_within_its_folder(tmp_path: Path) -> None:
    assert load_clips(write(tmp_path, {"id": "a", "video": "v/../a.mp4"}))[0].video == tmp_path / "v/../a.mp4"


def test_a_list_that_is_missing_empty_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClipListError, match="no such file"):
        load_clips(tmp_path / "none.jsonl")
    with pytest.raises(ClipListError, match="a folder"):
        load_clips(tmp_path)
    with pytest.raises(ClipListError, match="at least one clip"):
        load_clips(write(tmp_path, ""))
    (tmp_path / "clips.txt").write_text("a")
    with pytest.raises(ClipListError, match="an ending of"):
        load_clips(tmp_path / "clips.txt")


def test_csv_and_parquet_say_the_same_as_jsonl(tmp_path: Path) -> None:
    flat = {
        "id": "a1",
        "video": "a1.mp4",
        "text": "0012",
        "split": "train",
        "labels.emotion": "happy",
        "responses.reason": "She smiles.",
        "peak_frame": "3",
        "start_s": "0.5",
        "end_s": "",
        "speaker": "01",
        "labels.sentiment_score": "-1",
        "crop.left": "0.5",
        "tags": "sarcasm, noisy",
    }
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, flat)
        writer.writeheader()
        writer.writerow(flat)
    expected = Clip(
        "a1",
        tmp_path / "a1.mp4",
        text="0012",
        split="train",
        labels={"emotion": "happy", "sentiment_score": -1},
        responses={"reason": "She smiles."},
        peak_frame=3,
        start_s=0.5,
        speaker="01",
        crop=Crop(left=0.5),
        tags=("sarcasm", "noisy"),
    )
    assert load_clips(tmp_path / "clips.csv")[0] == expected
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {
            "id": "a1",
            "video": "a1.mp4",
            "text": "0012",
            "split": "train",
            "responses": {"reason": "She smiles."},
            "labels": {"emotion": "happy", "sentiment_score": -1.0, "x": None},
            "peak_frame": 3,
            "start_s": 0.5,
            "end_s": None,
            "speaker": "01",
            "crop": {"left": 0.5, "right": None},
            "tags": ["sarcasm", "noisy"],
        },
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "clips.parquet")
    assert load_clips(tmp_path / "clips.parquet")[0] == expected


def test_a_csv_line_with_another_number_of_cells_is_named(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("id,text\na,hello\nb\nc,x,y\n")
    with pytest.raises(ClipListError) as caught:
        load_clips(tmp_path / "clips.csv")
    assert caught.value.problems == [
        "line 3: expected 2 cells, got 1",
        "line 4: expected 2 cells, got 3; a text with a comma in it needs quotes",
    ]


def test_a_file_that_is_not_parquet_is_an_error_of_the_list(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "clips.parquet").write_bytes(b"nonsense")
    with pytest.raises(ClipListError, match="a Parquet file"):
        load_clips(tmp_path / "clips.parquet")


def test_clips_are_found_by_position_slice_id_and_split() -> None:
    clips = ClipList([Clip("a", text="x", split="train"), Clip("b", text="y", split="val"), Clip("c", text="z")])
    assert [clips[0].id, clips.by_id("b").text, len(clips[1:])] == ["a", "y", 2]
    assert isinstance(clips[1:], ClipList)
    assert clips.splits == ["train", "val"]
    assert clips.in_split("val").ids == ["b"]
    with pytest.raises(ClipListError, match='Did you mean "train"'):
        clips.in_split("trian")
    with pytest.raises(ClipListError, match="no clip of this id"):
        clips.by_id("d")
    with pytest.raises(ClipListError, match="every id once"):
        ClipList([Clip("a"), Clip("a")])


@given(st.text(max_size=300))
def test_any_text_is_either_a_sound_id_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("list")
    path = folder / "clips.jsonl"
    path.write_bytes(json.dumps({"id": text, "text": "x"}).encode("utf-8"))
    try:
        clip_id = load_clips(path)[0].id
    except ClipListError:
        return
    assert clip_id == text
    assert clip_id.encode("utf-8")  # no lone surrogate, which no file system or JSON reader takes back
    inside = (folder / clip_id).resolve()
    assert folder.resolve() in inside.parents


WRONG_LABELS = [3, 2.5, True, "", " ", "nan", "None", {"a": 1}, ["happy", None], ["happy", 3], [""], [["a"]]]


@pytest.mark.parametrize("value", WRONG_LABELS)
def test_a_label_that_names_no_class_is_refused_with_its_line(tmp_path: Path, value: object) -> None:
    listed_problems = problems(
        tmp_path, {"id": "a", "text": "x"}, {"id": "b", "text": "x", "labels": {"emotion": value}}
    )
    assert len(listed_problems) == 1
    assert listed_problems[0].startswith("line 2: labels.emotion: expected ")


@pytest.mark.parametrize("labels", ['{"emotion": null}', '{"emotion": NaN}', "null", "NaN", '{"x_score": NaN}', "{}"])
def test_null_and_nan_are_no_label(tmp_path: Path, labels: str) -> None:
    clips = load_clips(
        write(tmp_path, f'{{"id": "a", "text": "x", "labels": {labels}, "responses": {{"reason": null}}}}')
    )
    assert clips[0].labels == {}
    assert clips[0].responses == {}


@pytest.mark.parametrize("key", ["labels", "responses", "tags", "questions"])
@pytest.mark.parametrize("value", [0, False, ""])
def test_a_value_that_is_merely_false_is_not_taken_for_none(tmp_path: Path, key: str, value: object) -> None:
    assert problems(tmp_path, {"id": "a", "text": "x", key: value})[0].startswith(f"line 1: {key}: expected ")


def test_labels_of_a_csv_are_read_as_those_of_json_and_parquet(tmp_path: Path) -> None:
    rows = {"a": "happy", "b": "", "c": "nan", "d": "null", "e": "none"}
    (tmp_path / "c.csv").write_text("id,text,labels.emotion\n" + "".join(f"{k},x,{v}\n" for k, v in rows.items()))
    expected = [{"emotion": "happy"}, {}, {}, {}, {"emotion": "none"}]
    assert [clip.labels for clip in load_clips(tmp_path / "c.csv")] == expected
    for cell in ("3", "1e400", "true", "FALSE", "None", " "):
        (tmp_path / "c.csv").write_text(f"id,text,labels.emotion\na,x,{cell}\n")
        with pytest.raises(ClipListError, match=r"line 2: labels\.emotion: expected the name of a class"):
            load_clips(tmp_path / "c.csv")


def test_labels_of_a_parquet_are_read_as_those_of_json(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def clips(**columns: object) -> ClipList:
        table = pyarrow.table({"id": ["a", "b"], "text": ["x", "y"], **columns})
        parquet.write_table(table, tmp_path / "c.parquet")
        return load_clips(tmp_path / "c.parquet")

    assert [c.labels for c in clips(**{"labels.emotion": ["happy", None]})] == [{"emotion": "happy"}, {}]
    assert [c.labels for c in clips(**{"labels.x_score": [0.5, float("nan")]})] == [{"x_score": 0.5}, {}]
    assert [c.labels for c in clips(labels=[{"emotion": "sad"}, {"emotion": None}])] == [{"emotion": "sad"}, {}]
    for column in ([1, 2], [True, False], [0.5, 1.5], ["", "sad"], ["nan", "sad"]):
        with pytest.raises(ClipListError, match=r"line 1: labels\.emotion: expected the name of a class"):
            clips(**{"labels.emotion": column})
    with pytest.raises(ClipListError, match=r'either a column "labels" or columns'):
        clips(**{"labels": [{"emotion": "sad"}, None], "labels.emotion": ["sad", "sad"]})


HUGE = str(10**400)


@pytest.mark.parametrize(
    "line",
    [
        f'{{"id": "a", "text": "x", "start_s": {HUGE}}}',
        f'{{"id": "a", "text": "x", "peak_frame": {HUGE}}}',
        f'{{"id": "a", "text": "x", "peak_frame": {"9" * 5000}}}',
        f'{{"id": "a", "text": "x", "labels": {{"x_score": {HUGE}}}}}',
        f'{{"id": "a", "text": "x", "crop": {{"right": {HUGE}}}}}',
        '{"id": "a", "text": "x", "labels": {"emotion": ' + "[" * 300 + "]" * 300 + "}}",
        '{"id": "a", "text": "x", "labels": {"emotion": ' + "[" * 100_000 + "]" * 100_000 + "}}",
        '{"id": "a", "text": "x", "crop": ' + "[" * 300 + "]" * 300 + "}",
        '{"id": "a", "text": "half a \\ud83d smile"}',
        '{"id": "a", "text": "x", "labels": {"emotion": "\\udc00"}}',
        '{"id": "a", "text": "x", "labels": {"\\udc00": "happy"}}',
        '{"id": "a", "text": "x", "responses": {"reason": "\\udc00"}}',
        '{"id": "a", "text": "x", "questions": [{"task": "vqa", "question": "\\udc00", "answer": "y"}]}',
        '{"id": "a", "text": "x", "tags": ["\\udc00"]}',
        '{"id": "a", "video": "\\ud800.mp4"}',
        '{"id": "a\\udc00", "text": "x"}',
        '{"id": "a", "text": "x", "unknown": "' + "y" * (1 << 20) + '"}',
        '{"id": "a", "text": "x", "' + "y" * (1 << 20) + '": 1}',
    ],
    ids=range(18),
)
def test_what_no_list_should_hold_is_refused_in_one_short_line(tmp_path: Path, line: str) -> None:
    listed_problems = problems(tmp_path, line)
    assert len(listed_problems) == 1
    assert listed_problems[0].startswith("line 1: ")
    assert len(listed_problems[0]) < 600


def test_a_jsonl_list_may_begin_with_a_byte_order_mark_and_have_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "x"}\r\n\r\n{"id": "b", "text": "y\xe2\x80\xa8z"}')
    assert [(clip.id, clip.text) for clip in load_clips(path)] == [("a", "x"), ("b", "y\u2028z")]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("latin-1", "line 2: expected UTF-8, got byte 0xe9"), ("utf-16", "line 1: expected UTF-8, got UTF-16")],
)
def test_another_encoding_is_named(tmp_path: Path, ending: str, encoding: str, expected: str) -> None:
    text = {"csv": "id,text\na,café\nb,y\n", "jsonl": '{"id": "b", "text": "y"}\n{"id": "a", "text": "café"}\n'}[ending]
    (tmp_path / f"clips.{ending}").write_bytes(text.encode(encoding))
    with pytest.raises(ClipListError) as caught:
        load_clips(tmp_path / f"clips.{ending}")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(expected)


def test_a_cell_of_a_csv_may_be_long_and_an_endless_one_is_refused(tmp_path: Path) -> None:
    text = "so " * 100_000
    (tmp_path / "clips.csv").write_text(f'id,text\na,"{text}"\n')
    assert load_clips(tmp_path / "clips.csv")[0].text == text
    (tmp_path / "clips.csv").write_text('id,text\na,"' + "x" * (1 << 24) + 'y"\n')
    with pytest.raises(ClipListError, match=r"not CSV \(field larger than field limit"):
        load_clips(tmp_path / "clips.csv")
    (tmp_path / "clips.csv").write_bytes(b"id,text\na,x\0y\n")
    assert load_clips(tmp_path / "clips.csv")[0].text == "x\0y"


def test_a_column_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("id,text,labels.emotion,labels.emotion\na,x,happy,sad\n")
    with pytest.raises(ClipListError) as caught:
        load_clips(tmp_path / "clips.csv")
    assert caught.value.problems == ['line 1: expected every column once, got "labels.emotion" more than once']


def test_a_million_unknown_columns_are_refused_at_once(tmp_path: Path) -> None:
    names = ",".join(f"text{number}" for number in range(1_000_000))
    (tmp_path / "clips.csv").write_text(f"id,text,{names}\na,x{',1' * 1_000_000}\n")
    began = time.process_time()
    with pytest.raises(ClipListError) as caught:
        load_clips(tmp_path / "clips.csv")
    assert time.process_time() - began < 20
    assert "line 2: unknown key" in caught.value.problems[0]
    assert "999997 more unknown keys" in caught.value.problems[0]


def test_a_mute_clip_is_read_from_every_kind_of_list_and_written_only_where_it_is(tmp_path: Path) -> None:
    clips = load_clips(write(tmp_path, {"id": "a", "video": "a.mp4", "mute": True}, {"id": "b", "video": "b.mp4"}))
    assert [clip.mute for clip in clips] == [True, False]
    write_clips(clips, tmp_path / "written.jsonl")
    assert ["mute" in line for line in (tmp_path / "written.jsonl").read_text().splitlines()] == [True, False]
    (tmp_path / "clips.csv").write_text("id,video,mute\na,a.mp4,True\nb,b.mp4,false\nc,c.mp4,\n")
    assert [clip.mute for clip in load_clips(tmp_path / "clips.csv")] == [True, False, False]
    (tmp_path / "clips.csv").write_text("id,video,mute\na,a.mp4,yes\n")
    with pytest.raises(ClipListError, match="1 problem"):
        load_clips(tmp_path / "clips.csv")
    listed = problems(tmp_path, {"id": "a", "video": "a.mp4", "audio": "a.wav", "mute": True}, {"id": "b", "mute": 1})
    assert "mute: a clip that is mute has no audio file" in listed[0]
    assert "mute: expected true or false, got 1" in listed[1]
