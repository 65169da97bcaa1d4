"""Predictions of any system as files: what is read is what stands there, or it is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from featurecache.files.jsonl import dump_lines
from fusion_train.errors import DataError
from fusion_train.evaluation.append_only import AppendedLines
from fusion_train.evaluation.benchmarks import BenchmarkSet
from fusion_train.evaluation.prediction_rows import read_predictions
from fusion_train.evaluation.scoring import score_set
from fusion_train.metrics import EmotionWheels
from fusion_train.metrics.metric_result import MetricSettings
from fusion_train.metrics.registry import score


def problems(path: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    return caught.value.problems


def test_a_comma_without_quotes_is_refused_and_not_cut_off(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text('id,prediction\na,"happy, proud"\nb,happy, proud\nc\n')
    assert problems(path) == [
        "line 3: expected 2 cells, got 3; a text with a comma in it needs quotes",
        "line 4: expected 2 cells, got 1",
    ]
    path.write_text('id,prediction\na,"happy, proud"\n')
    assert read_predictions(path) == [{"id": "a", "prediction": "happy, proud"}]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"id,prediction,prediction\na,happy,sad\n", "line 1: expected every column once"),
        ("id,prediction\na,gaîté\n".encode("latin-1"), "line 2: expected UTF-8, got byte 0xee"),
        ("id,prediction\na,happy\n".encode("utf-16"), "line 1: expected UTF-8, got UTF-16"),
        (b"id,prediction\na," + b"x" * (1 << 25) + b"\n", "line 2: not CSV (field larger than field limit"),
    ],
    ids=["column twice", "latin-1", "utf-16", "endless cell"],
)
def test_what_is_no_table_is_named_with_its_line(tmp_path, data, expected):
    (tmp_path / "theirs.csv").write_bytes(data)
    assert problems(tmp_path / "theirs.csv")[0].startswith(expected)


def test_answers_may_hold_any_line_break_and_a_file_any_line_end(tmp_path):
    path = tmp_path / "theirs.jsonl"
    said = [{"id": f"a{n}", "prediction": f"so{mark}glad"} for n, mark in enumerate("\u2028\x85\u2029\x0b\n")]
    path.write_bytes(b"\xef\xbb\xbf" + dump_lines(said).replace(b"\n", b"\r\n"))
    assert read_predictions(path) == said
    path.write_text('{"id": "a\u2028b", "prediction": "so\x85glad"}\n', encoding="utf-8")
    assert read_predictions(path) == [{"id": "a\u2028b", "prediction": "so\x85glad"}]


@pytest.mark.parametrize("nothing", [None, math.nan, "", " ", "nan", "None"])
def test_a_row_whose_reference_is_nothing_is_named_and_makes_no_class(nothing):
    rows = [
        {"id": "a", "prediction": "happy", "reference": "happy"},
        {"id": "b", "prediction": "happy", "reference": nothing},
    ]
    settings = MetricSettings(wheels=EmotionWheels.small())
    with pytest.raises(DataError, match="a reference in every row") as caught:
        score_set("toy", BenchmarkSet(metric="classification"), rows, settings)
    assert caught.value.problems == ["b"]


@pytest.mark.parametrize(
    ("metric", "reference"),
    [("multi-label", ["happy", None]), ("waf", True), ("waf", math.inf), ("sentiment-three-way", math.nan)],
)
def test_a_reference_that_names_nothing_is_refused_by_every_metric(metric, reference):
    with pytest.raises(DataError, match=r"expected (a text or a list of texts|sentiment scores)"):
        score(
            metric,
            {"a": reference, "b": reference},
            {"a": "happy", "b": "sad"},
            MetricSettings(wheels=EmotionWheels.small()),
        )


def test_a_changed_line_of_answers_is_refused_wherever_scores_are_formed_of_it(tmp_path):
    path = tmp_path / "predictions-test-emotion.jsonl"
    rows = [
        {"id": f"c{n}", "prediction": "happy", "reference": "sad", "p": 0.1 + n, "none": float("nan")} for n in range(3)
    ]
    with AppendedLines(path) as lines:
        lines.append(rows[:2])
        lines.append(rows[2:])
    whole = path.read_bytes()
    assert read_predictions(path) == [row | {"none": None} for row in rows]
    noticed = 0
    places = range(0, len(whole), 2)
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place // 2) % 8
        path.write_bytes(flipped)
        try:
            read = read_predictions(path)
        except DataError:
            noticed += 1
            continue
        known = [{name: row[name] for name in rows[0]} for row in read]
        assert known == [row | {"none": None} for row in rows], place  # white space, or the checksum's own key
    assert noticed > 0.85 * len(places)
    path.write_bytes(whole.replace(b'"c1", "prediction": "happy"', b'"c1", "prediction": "sad"'))
    with pytest.raises(DataError, match="1 of 3 that were changed since they were written") as error:
        read_predictions(path)
    assert '"id": "c1"' in str(error.value)
    assert "Changed on purpose? Take crc32c out of them." in str(error.value)


def test_lines_of_other_systems_and_of_earlier_releases_have_no_checksum(tmp_path):
    path = tmp_path / "theirs.jsonl"
    path.write_text('{"id": "a", "prediction": "x"}\n')
    with AppendedLines(path) as lines:
        lines.append([{"id": "b", "prediction": "y"}])
    assert read_predictions(path) == [{"id": "a", "prediction": "x"}, {"id": "b", "prediction": "y"}]
