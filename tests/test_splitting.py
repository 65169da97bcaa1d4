"""Splits: shares by class, groups together, the same for the same seed, and none empty."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from featurecache.cli import main
from featurecache.clips.class_counts import class_notes, near_equal_names
from featurecache.clips.clip_list import Clip, load_clips
from featurecache.clips.splitting import Splitting, parse_shares, split_clips
from featurecache.errors import ClipListError

SHARES = parse_shares("70/15/15")


def clips_of(counts: dict[str, int], num_speakers: int = 0) -> list[Clip]:
    clips = [
        Clip(id=f"{label}{number}", labels={"emotion": label})
        for label, count in counts.items()
        for number in range(count)
    ]
    if num_speakers:
        clips = [replace(clip, speaker=f"s{index % num_speakers}") for index, clip in enumerate(clips)]
    return clips


def counted(clips: list[Clip]) -> Counter[tuple[str, str]]:
    return Counter((clip.labels["emotion"], clip.split or "") for clip in clips)


def test_every_class_is_divided_by_the_shares() -> None:
    found = counted(split_clips(clips_of({"happy": 100, "sad": 40, "calm": 20}), Splitting(SHARES)))
    assert found == {
        ("happy", "train"): 70, ("happy", "val"): 15, ("happy", "test"): 15,
        ("sad", "train"): 28, ("sad", "val"): 6, ("sad", "test"): 6,
        ("calm", "train"): 14, ("calm", "val"): 3, ("calm", "test"): 3,
    }  # fmt: skip


def test_a_class_of_one_clip_is_trained_on() -> None:
    divided = split_clips(clips_of({"happy": 20, "rare": 1}), Splitting(SHARES))
    assert counted(divided)["rare", "train"] == 1


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, *"stuvw"])), min_size=3, max_size=60),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_groups_stay_together_no_split_is_empty_and_the_order_does_not_matter(
    rows: list[tuple[str, str | None]], seed: int, chance: random.Random
) -> None:
    clips = [Clip(id=str(n), labels={"emotion": label}, speaker=who) for n, (label, who) in enumerate(rows)]
    groups = {clip.speaker or clip.id for clip in clips}
    splitting = Splitting(SHARES, "speaker" if any(who for _, who in rows) else None, seed)
    if splitting.group and len(groups) < 3:
        with pytest.raises(ClipListError, match=r"expected at least 3 values of speaker for train, val, test, got"):
            split_clips(clips, splitting)
        return
    divided = split_clips(clips, splitting)
    assert {clip.split for clip in divided} == {"train", "val", "test"}
    assert [clip.id for clip in divided] == [clip.id for clip in clips]
    if splitting.group:
        of_group: dict[str, set[str | None]] = {}
        for clip in divided:
            of_group.setdefault(clip.speaker or clip.id, set()).add(clip.split)
        assert all(len(splits) == 1 for splits in of_group.values())
    shuffled = chance.sample(clips, len(clips))
    assert {c.id: c.split for c in split_clips(shuffled, splitting)} == {c.id: c.split for c in divided}


def test_classes_are_balanced_over_speakers_of_unequal_size() -> None:
    speakers = {f"s{n}": {"happy": n + 1, "sad": 10 - n} for n in range(10)}
    clips = [
        Clip(id=f"{who}{label}{n}", labels={"emotion": label}, speaker=who)
        for who, counts in speakers.items()
        for label, count in counts.items()
        for n in range(count)
    ]
    found = counted(split_clips(clips, Splitting(parse_shares("60/20/20"), "speaker")))
    for label in ("happy", "sad"):
        assert abs(found[label, "train"] - 33) <= 2, found
        assert abs(found[label, "test"] - 11) <= 2, found


@pytest.mark.parametrize("text", ["70/20/15", "70", "0/50/50", "a/b", "70/15/15/0", "-10/110", "70/15/"])
def test_shares_that_do_not_add_up_are_refused(text: str) -> None:
    with pytest.raises(ClipListError, match=r"70/15/15.*80/20"):
        parse_shares(text)


def test_two_shares_are_train_and_test() -> None:
    assert parse_shares("80/20") == {"train": 0.8, "test": 0.2}
    assert parse_shares("90/10/0") == {"train": 0.9, "val": 0.1}


def test_names_that_may_mean_the_same_are_found_and_short_words_are_not() -> None:
    names = {
        "happy": 9,
        "Happy": 3,
        "hapy": 1,
        "sad": 1,
        "mad": 2,
        "very sad": 1,
        "very  sad": 2,
        "class1": 1,
        "class2": 1,
    }
    assert near_equal_names(names) == [["happy", "Happy", "hapy"], ["very  sad", "very sad"]]


def test_a_class_that_cannot_be_learnt_is_named() -> None:
    clips = [Clip(id="a", labels={"emotion": "x"}, split="train"), Clip(id="b", labels={"emotion": "y"}, split="test")]
    assert "emotion: no clip of y is in train, so these cannot be learnt." in class_notes(clips)


class TestCommand:
    @pytest.fixture(autouse=True)
    def listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        rows = [{"id": f"c{n}", "text": "x", "labels": {"emotion": "ab"[n % 2]}, "tags": ["t"]} for n in range(20)]
        Path("clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, *arguments: str) -> str:
        result = CliRunner().invoke(main, ["split", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    def test_it_divides_the_list_and_keeps_all_else(self) -> None:
        output = self.run()
        clips = load_clips("clips.jsonl")
        assert Counter(clip.split for clip in clips) == {"train": 14, "val": 3, "test": 3}
        assert all(clip.tags == ("t",) and clip.text == "x" for clip in clips)
        assert "divided into train 70%, val 15%, test 15%" in output

    def test_splits_that_are_there_are_replaced_only_when_asked(self) -> None:
        self.run("--shares", "80/20")
        before = Path("clips.jsonl").read_bytes()
        result = CliRunner().invoke(main, ["split"])
        assert result.exit_code == 2
        assert "got test, train. Replace them with --overwrite" in result.output
        assert Path("clips.jsonl").read_bytes() == before
        self.run("--overwrite")
        assert load_clips("clips.jsonl").splits == ["test", "train", "val"]

    def test_a_validation_set_is_taken_from_the_training_clips_alone(self) -> None:
        self.run("--shares", "80/20")
        tests = set(load_clips("clips.jsonl").in_split("test").ids)
        self.run("--of", "train", "--shares", "75/25/0", "--out", "other.jsonl")
        clips = load_clips("other.jsonl")
        assert set(clips.in_split("test").ids) == tests
        assert Counter(clip.split for clip in clips) == {"train": 12, "val": 4, "test": 4}

    def test_bad_shares_are_named_by_the_option_of_this_command(self) -> None:
        before = Path("clips.jsonl").read_bytes()
        result = CliRunner().invoke(main, ["split", "--shares", "70/20"])
        assert result.exit_code == 2
        assert result.output.startswith("error: --shares 70/20: expected percents of train, val and test")
        assert Path("clips.jsonl").read_bytes() == before

    def test_another_list_that_is_there_is_kept(self) -> None:
        Path("other.jsonl").write_text("mine")
        assert CliRunner().invoke(main, ["split", "--out", "other.jsonl"]).exit_code == 2
        assert Path("other.jsonl").read_text() == "mine"

    def test_a_csv_list_becomes_jsonl(self) -> None:
        Path("mine.csv").write_text("id,text\na,x\nb,x\nc,x\n")
        self.run("--clips", "mine.csv")
        assert load_clips("mine.jsonl").splits == ["test", "train", "val"]
