"""Tables of emotion wheels: every run of every row is read, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("openpyxl")

from wheel_files import write_table

from fusion_train.errors import DataError
from fusion_train.metrics.wheels import PUBLISHED_SIZES, WheelSizes, read_synonyms, read_wheel

RUNS = tuple(name for run in range(1, 9) for name in (f"word_run{run}", f"synonym_run{run}"))


def test_a_run_without_a_word_ends_no_row(tmp_path: Path) -> None:
    path = tmp_path / "synonym.xlsx"
    write_table(path, RUNS, [(None, "lost", "glad", "happy") + (None,) * 12, ("blue", "low") + (None,) * 14])
    assert read_synonyms(path, {"glad", "blue"}) == {
        "glad": {"glad"},
        "happy": {"glad"},
        "blue": {"blue"},
        "low": {"blue"},
    }


def test_words_that_stand_on_no_wheel_are_named_and_the_first_with_its_near_one(tmp_path: Path) -> None:
    path = tmp_path / "synonym.xlsx"
    write_table(path, RUNS, [("gladd", "happy") * 8, ("zzz", "low") * 8])
    with pytest.raises(DataError, match=r'got 2 others.*Did you mean "glad"\?') as error:
        read_synonyms(path, {"glad", "blue"})
    assert error.value.problems == ["gladd", "zzz"]


def test_a_column_that_is_missing_is_named_beside_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "wheel1.xlsx"
    write_table(path, ("level1", "word"), [("joy", "glad")])
    with pytest.raises(DataError, match=r"got level1, word\. Missing: level2, level3\."):
        read_wheel(path)


def test_the_published_tables_are_known_by_their_sizes() -> None:
    assert WheelSizes(words=253, synonyms=1255, surfaces=7386, level1=(6, 7, 6, 6, 6)) == PUBLISHED_SIZES
