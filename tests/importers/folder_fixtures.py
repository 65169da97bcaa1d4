"""Folders of clips: labels from the names of folders, and from a table."""

from __future__ import annotations

from dataset_fixture import DatasetFixture

FOLDER = DatasetFixture(
    importer="folder",
    files={"labels.csv": [["File", "Emotion", "speaker", "text", "age"],
                          ["a.mp4", "glad", "Ann", "Ja, so.", "30"],
                          ["./more/b", "sad", "Bob", "", "40"],
                          ["c.JPG", "", "Ann", "", ""],
                          ["lost.mp4", "sad", "Ann", "", ""]]},
    media=("a.mp4", "more/b.wav", "c.JPG", ".hidden/x.mp4"),
    num_clips=3,
    expected={
        "a": {"video": "a.mp4", "text": "Ja, so.", "speaker": "Ann", "labels": {"emotion": "glad"}},
        "more/b": {"labels": {"emotion": "sad"}, "speaker": "Bob"},
        "c": {"image": "c.JPG", "labels": None, "speaker": "Ann"},
    },
    needed="labels.csv",
    left_out={"no file of this name in data": 1},
    options={"labels": "labels.csv"},
    clips_are_files=True,
)  # fmt: skip

FOLDER_OF_CLASSES = DatasetFixture(
    importer="folder",
    files={"README.txt": "ours"},
    media=("train/happy/a.mp4", "train/sad/b.mp4", "dev/happy/a.mp4", "test/sad/d.mp4"),
    num_clips=4,
    expected={
        "train/happy/a": {"video": "train/happy/a.mp4", "split": "train", "labels": {"emotion": "happy"}},
        "dev/happy/a": {"split": "val"},
        "test/sad/d": {"split": "test", "labels": {"emotion": "sad"}},
    },
    needed="test",
    without_needed=3,
    clips_are_files=True,
)  # fmt: skip
