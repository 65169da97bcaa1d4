"""`fcache import` as a user meets it, and what importers share: tables, folders, labels."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import dialogue_fixtures as dialogue
import picture_fixtures as picture
import pytest
import recordings as rec
import sentiment_fixtures as sentiment
import table_fixtures as table
import video_fixtures as video
from click.testing import CliRunner, Result
from dataset_fixture import rows_of, run, write
from hypothesis import given
from hypothesis import strategies as st
from stub_encoders import stub_encoders

import featurecache
from featurecache.cli import main
from featurecache.clips.clip_list import Clip, load_clips
from featurecache.clips.writing import write_clips
from featurecache.errors import ClipListError, DatasetError, MissingExtraError, SpreadsheetError
from featurecache.extract.run import extract
from featurecache.importers import Importer, Request, find_importer, registered
from featurecache.importers.dialogues import FOUR_WAY_COUNTS, speaker_crop
from featurecache.importers.findings import Findings, Vocabulary, list_of, score
from featurecache.importers.folders import MediaFolder
from featurecache.importers.image_text import box_answer, most_common
from featurecache.importers.importing import Target, import_dataset
from featurecache.importers.tables import find_tables, read_json, read_table

NAMES = {"name": ("name",)}


def fcache(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_an_import_ends_with_counts_what_is_missing_and_the_licence(tmp_path: Path) -> None:
    dialogue.MELD.build(tmp_path / "MELD")
    (tmp_path / "MELD/train_splits/dia0_utt1.mp4").unlink()
    result = fcache("import", "meld", tmp_path / "MELD", "--out", tmp_path / "clips.jsonl")
    assert result.exit_code == 1, result.output
    assert re.search(r"train +1 +1 +2", result.output)
    assert re.search(r"surprise +1 +0 +0", result.output)
    assert "train: 2 in the tables, 9989 published" in result.output
    assert "media missing: 1 clip, left out" in result.output
    assert "train_dia0_utt1" in result.output
    assert "Rights: " in result.output
    assert len(load_clips(tmp_path / "clips.jsonl")) == 3
    again = fcache("import", "meld", tmp_path / "MELD", "--out", tmp_path / "clips.jsonl")
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    assert (
        fcache(
            "import", "meld", tmp_path / "MELD", "--keep-missing", "--overwrite", "--out", tmp_path / "clips.jsonl"
        ).exit_code
        == 0
    )
    assert len(load_clips(tmp_path / "clips.jsonl")) == 4


def test_importers_are_listed_and_described(tmp_path: Path) -> None:
    listed = fcache("import")
    assert listed.exit_code == 0
    for name in registered():
        assert f"\n{name} " in listed.output
        described = fcache("import", name)
        assert described.exit_code == 0
        assert "Rights: " in described.output
    assert "--option crop=… (side, none) [side]" in fcache("import", "iemocap").output
    unknown = fcache("import", "mleld", tmp_path)
    assert unknown.exit_code == 2
    assert 'Did you mean "meld"' in unknown.output
    assert find_importer("cmu_mosei") is find_importer("CMU-MOSEI")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["meld", "{}", "--split", "tset"], 'expected train, val, test, got another. Did you mean "test"?'),
        (["meld", "{}", "--fold", "1"], "no folds"),
        (["dfew", "{}", "--fold", "6"], "a fold from 1 to 5"),
        (["iemocap", "{}", "--option", "labels=five"], "expected all or four"),
        (["iemocap", "{}", "--option", "label=four"], 'Did you mean "labels"'),
        (["iemocap", "{}", "--option", "labels"], "KEY=VALUE"),
        (["meld", "{}", "--out", "clips.csv"], "an ending of .jsonl"),
        (["meld", "{}", "--encoding", "utf-9"], "an encoding that Python knows"),
        (["meld", "{}", "--media-root", "elsewhere"], "leaves the folder"),
    ],
)
def test_wrong_use_is_one_message_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    dialogue.MELD.build(tmp_path / "MELD")
    result = fcache("import", *(argument.format("MELD") for argument in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not list(tmp_path.glob("clips*"))


def test_lists_of_several_datasets_join_under_one_root_by_their_prefixes(tmp_path: Path) -> None:
    for fixture in (video.DFEW, video.MAFW):
        fixture.build(tmp_path / fixture.importer)
        lists = run(
            fixture, tmp_path / fixture.importer, tmp_path / f"{fixture.importer}.jsonl", prefix=f"{fixture.importer}/"
        )
        assert lists.media_root is None
    joined = (tmp_path / "dfew.jsonl").read_bytes() + (tmp_path / "mafw.jsonl").read_bytes()
    (tmp_path / "clips.jsonl").write_bytes(joined)
    clips = load_clips(tmp_path / "clips.jsonl")
    assert {"dfew/00001", "mafw/03747"} <= set(clips.ids)
    assert all(clip.video.is_file() for clip in clips)


def test_an_imported_list_is_extracted_each_speaker_by_their_own_half_and_time(tmp_path: Path) -> None:
    dialogue.IEMOCAP.build(tmp_path / "IEMOCAP")
    for session in range(1, 6):
        path = tmp_path / f"IEMOCAP/Session{session}/dialog/avi/DivX/Ses0{session}F_impro01.avi"
        rec.write_clip(
            path,
            num_frames=140,
            codec="mpeg4",
            options={"b": "4M", "bf": "0"},
            marked=True,
            sound=rec.sine(14.0),
            audio_codec="mp3",
        )
    run(dialogue.IEMOCAP, tmp_path / "IEMOCAP", tmp_path / "clips.jsonl", ("test",))
    store = featurecache.open_store(tmp_path / "features.zarr", "a")
    summary = extract(store, load_clips(tmp_path / "clips.jsonl"), stub_encoders())
    assert not summary.failed
    colours = store["colours"]
    left, right = colours["Ses05F_impro01_F000"], colours["Ses05F_impro01_M001"]
    assert left[0, 0] * 255 > 180  # the left half is red
    assert max(right[0]) * 255 < 180
    assert len(store["loudness"]) == 2


def test_four_emotions_of_iemocap_join_excited_to_happiness(tmp_path: Path) -> None:
    dialogue.IEMOCAP.build(tmp_path / "data")
    request = Request(tmp_path / "data", options={"labels": "four", "crop": "none"})
    summary = import_dataset(find_importer("iemocap"), request, Target(tmp_path / "clips.jsonl"))
    assert set(summary.by_label["emotion"]) == {"neutral", "happiness"}
    assert ("test", 2, 1241) in summary.against_published()
    assert ("train+test happiness", 5, 1636) in summary.against_published()
    assert sum(FOUR_WAY_COUNTS.values()) == 5531
    assert all(clip.crop is None for clip in load_clips(tmp_path / "clips.jsonl"))


def test_the_speaker_sits_left_where_the_letters_are_the_same() -> None:
    assert speaker_crop("Ses05F_script03_1_F033").right == 0.5
    assert speaker_crop("Ses05F_script03_1_M033").left == 0.5
    assert speaker_crop("Ses02M_impro02_M004").right == 0.5


@pytest.mark.parametrize("name", ["val", "dev", "valid"])
def test_what_datasets_call_dev_valid_or_validation_is_val_and_found_under_any_of_these_names(
    tmp_path: Path, name: str
) -> None:
    for fixture in (dialogue.MELD, sentiment.CH_SIMS, video.CAER, dialogue.MC_EIU, video.E3, picture.COCO_VQA):
        source = fixture.build(tmp_path / fixture.importer)
        summary = run(fixture, source, tmp_path / f"{fixture.importer}.jsonl", (name,))
        assert summary.by_split == {"val": 1}, fixture.importer


def test_a_fold_of_iemocap_is_its_session(tmp_path: Path) -> None:
    dialogue.IEMOCAP.build(tmp_path / "data")
    import_dataset(find_importer("iemocap"), Request(tmp_path / "data", fold=2), Target(tmp_path / "clips.jsonl"))
    held_out = [clip.id for clip in load_clips(tmp_path / "clips.jsonl").in_split("test")]
    assert all(clip_id.startswith("Ses02") for clip_id in held_out)


def test_mer2024_of_1169_rows_is_the_semi_track(tmp_path: Path) -> None:
    labels = ["sad"] * 317 + ["happy"] * 246 + ["neutral"] * 201 + ["angry"] * 163 + ["worried"] * 159
    labels += ["surprise"] * 83
    write(tmp_path / "label-disdim.csv", [["name", "discrete"], *([f"s{n}", label] for n, label in enumerate(labels))])
    summary = import_dataset(
        find_importer("mer2024"), Request(tmp_path), Target(tmp_path / "clips.jsonl", keep_missing=True)
    )
    assert all(read == published for _, read, published in summary.against_published())
    assert len(summary.against_published()) == 7


def test_mmeverse_takes_only_the_sets_asked_for_and_bare_ids_on_request(tmp_path: Path) -> None:
    table.MMEVERSE.build(tmp_path / "data")
    options = {"sets": "MELD, mafw", "ids": "id"}
    import_dataset(find_importer("mmeverse"), Request(tmp_path / "data", options=options), Target(tmp_path / "c.jsonl"))
    assert set(rows_of(tmp_path / "c.jsonl")) == {"train_dia0_utt0", "00007"}
    with pytest.raises(DatasetError, match=r"caer, got AU_gpt/"):
        import_dataset(
            find_importer("mmeverse"),
            Request(tmp_path / "data", options={"sets": "caer"}),
            Target(tmp_path / "d.jsonl"),
        )


def test_refs_in_a_pickle_are_refused_and_a_packed_list_of_boxes_is_read(tmp_path: Path) -> None:
    write(tmp_path / "refcoco/refs(unc).p", "a pickle")
    with pytest.raises(DatasetError, match=r"refs\(unc\)\.p, a pickle, which is not read"):
        import_dataset(find_importer("refcoco"), Request(tmp_path), Target(tmp_path / "c.jsonl"))
    write(
        tmp_path / "finetune_refcoco_val.json",
        {
            "images": [
                {
                    "id": 1,
                    "file_name": "COCO_train2014_000000000009.jpg",
                    "height": 100,
                    "width": 200,
                    "caption": "left cat",
                }
            ],
            "annotations": [{"image_id": 1, "bbox": [0, 0, 100, 50]}],
        },
    )
    write(tmp_path / "train2014/COCO_train2014_000000000009.jpg", "picture")
    import_dataset(find_importer("refcoco"), Request(tmp_path), Target(tmp_path / "c.jsonl"))
    (clip,) = load_clips(tmp_path / "c.jsonl")
    assert clip.split == "val"
    assert clip.questions[0].answer == "{<0><0><50><50>}"


def test_lists_that_lavis_packs_are_read(tmp_path: Path) -> None:
    write(
        tmp_path / "vqa_train.json", {"": [{"image": "val2014/a.jpg", "question": "Who?", "answer": ["a", "b", "b"]}]}
    )
    write(
        tmp_path / "coco_karpathy_train.json", {"": [{"image": "val2014/a.jpg", "caption": "A cat.", "image_id": "1"}]}
    )
    write(tmp_path / "gqa_train.json", {"": [{"image": "a.jpg", "question": "Is it?", "answer": "yes"}]})
    write(tmp_path / "val2014/a.jpg", "picture")
    write(tmp_path / "images/a.jpg", "picture")
    for name, answer in (("coco-vqa", "b"), ("coco-caption", "A cat."), ("gqa", "yes")):
        import_dataset(find_importer(name), Request(tmp_path), Target(tmp_path / f"{name}.jsonl"))
        (clip,) = load_clips(tmp_path / f"{name}.jsonl")
        assert (clip.questions[0].answer, clip.split) == (answer, "train")


def test_a_box_is_hundredths_of_the_picture() -> None:
    assert box_answer([0, 0, 640, 480], 640, 480) == "{<0><0><100><100>}"
    assert box_answer([-3, 1, 700, 480], 640, 480) == "{<0><0><100><100>}"


@pytest.mark.parametrize("broken", ["not json", "[1, 2", '{"images": []}', '[{"caption": "no picture"}]', '"text"'])
def test_json_of_another_form_is_an_error_that_names_the_file(tmp_path: Path, broken: str) -> None:
    (tmp_path / "captions_train2014.json").write_text(broken)
    with pytest.raises(DatasetError, match="captions_train2014"):
        import_dataset(find_importer("coco-caption"), Request(tmp_path), Target(tmp_path / "c.jsonl"))


def test_the_importer_that_the_documentation_shows_works(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "datasets.md").read_text("utf-8")
    module: dict[str, Importer] = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], module)
    write(tmp_path / "labels.csv", [["name", "feeling"], ["01", "Happy"], ["02", ""]])
    write(tmp_path / "clips/01.mp4", "media")
    summary = import_dataset(module["IMPORTER"], Request(tmp_path), Target(tmp_path / "c.jsonl"))
    assert load_clips(tmp_path / "c.jsonl")[0].labels == {"emotion": "glad"}
    assert set(summary.left_out) == {"no emotion"}


def test_a_users_own_importer_is_a_module_with_one_object(tmp_path: Path) -> None:
    importer = Importer(
        "mine",
        "my clips",
        lambda request, found: iter([Clip("a", video=request.source / "a.mp4")]),
        ("a.mp4",),
        "mine.",
    )
    write(tmp_path / "a.mp4", "media")
    import_dataset(importer, Request(tmp_path), Target(tmp_path / "c.jsonl"))
    assert load_clips(tmp_path / "c.jsonl").ids == ["a"]


def test_a_csv_mapping_that_fits_no_clip_or_no_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", [["name", "when"], ["a", "soon"]])
    for options, message in (
        ({"id": "nam"}, r'Did you mean "name"\? Its columns are name, when'),
        ({"id": "name", "vidoe": "name"}, 'Did you mean "video"'),
        ({"video": "name"}, "the column of the ids"),
        ({"id": "name", "video": "{nam}.mp4"}, "a column of the table, got nam"),
        ({"id": "name", "text": "name", "start_s": "when"}, "rows that are clips"),
        ({"id": "name"}, "at least one of video"),
    ):
        with pytest.raises(DatasetError) as caught:
            import_dataset(
                find_importer("csv"), Request(tmp_path / "t.csv", options=options), Target(tmp_path / "c.jsonl")
            )
        assert re.search(message, str(caught.value)), str(caught.value)


def test_a_csv_of_another_delimiter_and_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("name;said\na;Café\n".encode("cp1252"))
    options = {"id": "name", "text": "said", "delimiter": ";"}
    with pytest.raises(DatasetError, match="--encoding"):
        import_dataset(find_importer("csv"), Request(tmp_path / "t.csv", options=options), Target(tmp_path / "c.jsonl"))
    request = Request(tmp_path / "t.csv", options=options, encoding="cp1252")
    import_dataset(find_importer("csv"), request, Target(tmp_path / "c.jsonl"))
    assert load_clips(tmp_path / "c.jsonl")[0].text == "Café"


def test_a_table_is_checked_by_its_header_and_keeps_every_cell_as_text(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", [[" Name ", "n"], ["007", "1.50"], [], ["008", ""]])
    assert [row["name"] for row in read_table(tmp_path / "t.csv", NAMES)] == ["007", "008"]
    with pytest.raises(DatasetError, match="a column emotion or discrete, got columns"):
        read_table(tmp_path / "t.csv", {"emotion": ("emotion", "discrete")})
    (tmp_path / "torn.csv").write_text("name,n\na,1\nb\n")
    with pytest.raises(DatasetError, match="2 cells in every row") as caught:
        read_table(tmp_path / "torn.csv", NAMES)
    assert caught.value.problems == ["line 3: 1 cells"]
    with pytest.raises(DatasetError, match="a file that can be read"):
        read_table(tmp_path / "none.csv", NAMES)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DatasetError, match="got columns none"):
        read_table(tmp_path / "empty.csv", NAMES)
    with pytest.raises(DatasetError, match="tables of other columns"):
        find_tables(tmp_path, ({"x": ("x",)},))


def test_xlsx_numbers_are_read_as_they_are_shown_and_without_openpyxl_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "t.xlsx", [["name", "n"], ["007", 3], [8, 1.5], [None, None]])
    rows = read_table(tmp_path / "t.xlsx", {**NAMES, "n": ("n",)})
    assert [(row["name"], row["n"]) for row in rows] == [("007", "3"), ("8", "1.5")]
    (tmp_path / "no.xlsx").write_text("nothing")
    with pytest.raises(SpreadsheetError, match="an xlsx workbook"):
        read_table(tmp_path / "no.xlsx", NAMES)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featurecache\[import\]'"):
        read_table(tmp_path / "t.xlsx", NAMES)


def test_labels_are_found_whatever_their_case_and_unknown_ones_are_kept_for_the_message() -> None:
    findings = Findings()
    vocabulary = Vocabulary("emotion", ("happy", "sad"), {"joy": "happy"})
    assert [findings.label(vocabulary, cell, "row") for cell in ("Happy ", "JOY", "", "nan", "hapy")] == [
        "happy",
        "happy",
        None,
        None,
        None,
    ]
    assert findings.unknown == ['row: emotion "hapy". Did you mean "happy"?']
    assert {reason: len(rows) for reason, rows in findings.left_out.items()} == {
        "no emotion": 2,
        "emotion outside the vocabulary": 1,
    }


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("['happy', 'sad']", ["happy", "sad"]),
        ("[\"can't decide\", 'calm']", ["can't decide", "calm"]),
        ("[happy, sad]", ["happy", "sad"]),
        ("Happy, sad,, happy", ["happy", "sad"]),
        ("[]", []),
        ("", []),
        ("nan", []),
        ("[__import__('os')]", ["__import__(", "os", ")"]),
    ],
)
def test_a_cell_with_a_list_is_read_in_every_spelling(cell: str, words: list[str]) -> None:
    assert list_of(cell) == words


@given(st.lists(st.text("abc dé'", min_size=1).map(str.strip).filter(bool), max_size=5))
def test_a_list_as_python_writes_it_comes_back(words: list[str]) -> None:
    expected = [word for word in dict.fromkeys(words) if word not in ("nan", "none", "null", "unknown")]
    assert list_of(str(words)) == expected


@given(st.text(max_size=40))
def test_any_cell_is_a_list_of_words_and_a_score_or_none(cell: str) -> None:
    assert all(word == word.strip().lower() and word for word in list_of(cell))
    number = score(cell)
    assert number is None or number == number


def test_padding_of_numbers_may_vary_only_where_no_file_has_the_very_name(tmp_path: Path) -> None:
    for name in ("7.mp4", "007.mp4", "12.MP4", "._7.mp4", "a7.mp4"):
        write(tmp_path / name, "media")
    folder = MediaFolder(tmp_path)
    assert len(folder) == 4
    assert folder.path_of("7", any_padding=True).name == "7.mp4"
    assert folder.path_of("007", any_padding=True).name == "007.mp4"
    assert folder.path_of("00012", any_padding=True).name == "12.MP4"
    assert not folder.path_of("00012").exists()
    assert folder.path_of("0", any_padding=True) == tmp_path / "0.mp4"


def test_the_answer_of_most_people_counts() -> None:
    assert most_common(["a", " b", "b "]) == "b"
    assert most_common(["x", "y"]) == "x"
    assert most_common([]) == ""


def test_a_written_list_is_checked_and_holds_no_line_breaks_of_any_kind(tmp_path: Path) -> None:
    clip = Clip("a", video=tmp_path / "a.mp4", text="one\u2028two\x85three")
    write_clips([clip], tmp_path / "clips.jsonl")
    assert len((tmp_path / "clips.jsonl").read_text("utf-8").splitlines()) == 1
    assert load_clips(tmp_path / "clips.jsonl")[0] == clip
    for clips, message in (
        ([Clip("a/../b", text="x")], "path escape"),
        ([clip, clip], "stands twice"),
        ([Clip("a", video=Path("/elsewhere/a.mp4"))], "leaves the folder"),
    ):
        with pytest.raises(ClipListError) as caught:
            write_clips(clips, tmp_path / "no.jsonl")
        assert message in str(caught.value)
    assert not (tmp_path / "no.jsonl").exists()


def test_a_json_document_of_another_kind_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"": [1]})
    with pytest.raises(DatasetError, match="expected an object, got a list"):
        read_json(tmp_path / "a.json", dict)
    assert json.loads((tmp_path / "a.json").read_text()) == read_json(tmp_path / "a.json", list)


def test_npy_features_of_a_set_get_the_ids_of_its_imported_list(tmp_path: Path) -> None:
    import numpy as np

    folder = tmp_path / "features" / "whisper-large-v3"
    folder.mkdir(parents=True)
    np.save(folder / "00007.npy", np.ones((1, 2, 3), np.float32))
    result = fcache("import-npy", folder, "--store", tmp_path / "s.zarr", "--name", "whisper", "--prefix", "mafw/")
    assert result.exit_code == 0, result.output
    assert featurecache.open_store(tmp_path / "s.zarr")["whisper"].ids == ["mafw/00007"]


def test_every_importer_has_a_row_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "datasets.md").read_text("utf-8")
    missing = [name for name in registered() if f"`{name}`" not in page]
    assert not missing
