"""Human ratings: blinded sheets, import, agreement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusion_train.cli import main
from fusion_train.errors import DataError
from fusion_train.evaluation.rating import QUESTIONS, agreement, write_sheet

SYSTEMS = {
    name: [{"id": f"c{n}", "prediction": f"{name[:1]} <b>answer</b> {n}", "reference": "ref"} for n in range(4)]
    for name in ("ours-v2", "theirs-v1")
}


def rated(folder: Path, rater: str, values) -> Path:
    key = json.loads((folder / "key.json").read_text())
    ratings = {number: dict.fromkeys(QUESTIONS, values(entry)) for number, entry in key["key"].items()}
    path = folder / f"ratings-{rater}.json"
    path.write_text(json.dumps({"format": 1, "sheet": key["sheet"], "rater": rater, "ratings": ratings}))
    return path


def test_the_sheet_names_no_system_and_is_the_same_from_the_same_seed(tmp_path):
    page = write_sheet(SYSTEMS, tmp_path / "a", clips=3).read_text()
    assert "ours-v2" not in page
    assert "theirs-v1" not in page
    assert "&lt;b&gt;answer" in page
    assert page.count("<section>") == 3
    assert page.count("<input type=radio") == 3 * 2 * 3 * 5
    assert page == write_sheet(SYSTEMS, tmp_path / "b", clips=3).read_text()
    first = [
        entry["system"]
        for number, entry in json.loads((tmp_path / "a/key.json").read_text())["key"].items()
        if number.endswith(".1")
    ]
    assert len(write_sheet(SYSTEMS, tmp_path / "c", clips=9, seed=1).read_text()) > len(page)
    assert set(first) <= set(SYSTEMS)


def test_raters_who_agree_have_alpha_one_and_systems_their_means(tmp_path):
    write_sheet(SYSTEMS, tmp_path, clips=4)
    files = [rated(tmp_path, rater, lambda entry: 5 if entry["system"] == "ours-v2" else 2) for rater in ("ann", "ben")]
    result = agreement(tmp_path / "key.json", files)
    assert result.means["ours-v2"]["clues"] == 5
    assert result.means["theirs-v1"]["emotion"] == 2
    assert result.alpha["clues"] == pytest.approx(1)
    shown = CliRunner().invoke(main, ["agreement", str(tmp_path), *map(str, files)])
    assert shown.exit_code == 0, shown.output
    assert "1.000" in shown.output


def test_alpha_is_left_out_where_it_is_not_defined(tmp_path):
    write_sheet(SYSTEMS, tmp_path, clips=4)
    assert agreement(tmp_path / "key.json", [rated(tmp_path, "ann", lambda entry: 3)]).alpha["clues"] is None


def test_ratings_that_do_not_fit_are_named(tmp_path):
    write_sheet(SYSTEMS, tmp_path, clips=4)
    good = rated(tmp_path, "ann", lambda entry: 3)
    with pytest.raises(DataError, match="ann: rated twice"):
        agreement(tmp_path / "key.json", [good, good])
    with pytest.raises(DataError, match="clues: 9"):
        agreement(tmp_path / "key.json", [rated(tmp_path, "ben", lambda entry: 9)])
    document = json.loads(good.read_text())
    (tmp_path / "other.json").write_text(json.dumps(document | {"sheet": "another"}))
    with pytest.raises(DataError, match="of another sheet"):
        agreement(tmp_path / "key.json", [tmp_path / "other.json"])
    with pytest.raises(DataError, match="format 1"):
        agreement(tmp_path / "key.json", [tmp_path / "key.json"])


def test_a_sheet_is_made_on_the_command_line(tmp_path):
    for name, rows in SYSTEMS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = [f"{name}={tmp_path / name}.jsonl" for name in SYSTEMS]
    result = CliRunner().invoke(main, ["rate", *named, "--out", str(tmp_path / "r"), "--media", "../clips/"])
    assert result.exit_code == 0, result.output
    assert 'src="../clips/c0.mp4"' in (tmp_path / "r" / "sheet.html").read_text()
    wrong = CliRunner().invoke(main, ["rate", "file.jsonl"])
    assert wrong.exit_code == 2
    assert "NAME=FILE" in wrong.output
