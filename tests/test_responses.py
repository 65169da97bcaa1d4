"""Responses of a clip list: one text, several, or one per label task; in every format that a list is read from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from featurecache.clips.clip_list import Clip, load_clips
from featurecache.clips.responses import named_texts, response_texts
from featurecache.clips.writing import write_clips
from featurecache.errors import ClipListError, DatasetError
from featurecache.importers import Request, find_importer
from featurecache.importers.importing import Target, import_dataset

RATIONALES = {"reason": "A smile.", "think": {"intent": "A nod.", "emotion": "A smile."}, "audio": ["Soft.", ""]}


def write(folder: Path, **clip: object) -> Path:
    path = folder / "clips.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "x", **clip}) + "\n")
    return path


def test_a_text_names_no_label_task_and_an_object_names_one_for_each():
    assert response_texts("A smile.") == [(None, "A smile.")]
    assert response_texts(["Soft.", ""]) == [(None, "Soft."), (None, "")]
    assert response_texts({"intent": "A nod.", "emotion": ["One.", "Two."]}) == [
        ("intent", "A nod."),
        ("emotion", "One."),
        ("emotion", "Two."),
    ]
    assert response_texts(None) == []
    assert list(named_texts(RATIONALES)) == [
        ("reason", None, "A smile."),
        ("think", "intent", "A nod."),
        ("think", "emotion", "A smile."),
        ("audio", None, "Soft."),
    ]


def test_a_list_keeps_them_as_they_are_when_it_is_written_and_read(tmp_path):
    write_clips([Clip("a", text="x", responses=RATIONALES, person="the woman")], tmp_path / "clips.jsonl")
    (clip,) = load_clips(tmp_path / "clips.jsonl")
    assert clip.responses == RATIONALES
    assert clip.person == "the woman"


def test_columns_of_a_csv_name_label_tasks(tmp_path):
    path = tmp_path / "clips.csv"
    path.write_text("id,text,responses.reason,responses.think.intent,responses.think.emotion\na,x,Why.,A nod.,\n")
    assert load_clips(path)[0].responses == {"reason": "Why.", "think": {"intent": "A nod."}}
    for columns in ("responses.think,responses.think.intent", "responses.think.intent,responses.think"):
        path.write_text(f"id,text,{columns}\na,x,One.,Two.\n")
        with pytest.raises(ClipListError, match=r'either a column "responses\.think" or columns "responses\.think\.…"'):
            load_clips(path)


def test_a_struct_of_parquet_has_a_null_for_label_tasks_without_a_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [
        {"id": "a", "text": "x", "responses": {"think": {"intent": "A nod.", "emotion": None}, "audio": ["Soft.", ""]}},
        {"id": "b", "text": "x", "responses": {"think": {"intent": None, "emotion": None}, "audio": None}},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "clips.parquet")
    first, second = load_clips(tmp_path / "clips.parquet")
    assert first.responses == {"think": {"intent": "A nod."}, "audio": ["Soft.", ""]}
    assert second.responses == {}


@pytest.mark.parametrize(
    ("response", "message"),
    [(3, "got 3"), ([], r"got \[\]"), (["a", 3], "got 3"), ({"intent": 3}, "for every label task, got 3"),
     ({"intent": {"emotion": "x"}}, "a text or a list of texts for every label task")],
)  # fmt: skip
def test_other_values_are_refused_with_their_line(tmp_path, response, message):
    with pytest.raises(ClipListError) as caught:
        load_clips(write(tmp_path, responses={"think": response}))
    assert "line 1: responses.think: expected a text" in str(caught.value)
    assert re.search(message, str(caught.value))


def test_a_person_is_a_text(tmp_path):
    with pytest.raises(ClipListError, match="person: expected a string, got 3"):
        load_clips(write(tmp_path, person=3))


def test_any_table_gives_rationales_and_persons(tmp_path):
    (tmp_path / "table.csv").write_text("name,nod,who\na,A nod.,the man\n")
    (tmp_path / "a.mp4").write_bytes(b"media")
    options = {"id": "name", "video": "{name}.mp4", "responses.think.intent": "nod", "person": "who"}
    target = Target(tmp_path / "clips.jsonl")
    import_dataset(find_importer("csv"), Request(tmp_path / "table.csv", options=options), target)
    (clip,) = load_clips(tmp_path / "clips.jsonl")
    assert (clip.responses, clip.person) == ({"think": {"intent": "A nod."}}, "the man")
    both = Request(tmp_path / "table.csv", options={**options, "responses.think": "nod"})
    with pytest.raises(DatasetError, match="rows that are clips") as caught:
        import_dataset(find_importer("csv"), both, Target(tmp_path / "both.jsonl"))
    assert "line 2" in caught.value.problems[0]
