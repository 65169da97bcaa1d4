"""Clips of films and of the web: DFEW, MAFW, CAER, E3, BoLD."""

from __future__ import annotations

from dataset_fixture import DatasetFixture

DFEW = DatasetFixture(
    importer="dfew",
    files={
        **{f"EmoLabel_DataSplit/train(single-labeled)/set_{fold}.csv":
           [["video_name", "label"], ["00001", "1"], ["12", "7"]] for fold in (1, 2)},
        **{f"EmoLabel_DataSplit/test(single_labeled)/set_{fold}.csv": [["video_name", "label"], ["16372", "4"]]
           for fold in (1, 2)},
    },
    media=("Clip/original/1.mp4", "Clip/original/00012.mp4", "Clip/original/16372.mp4"),
    num_clips=3,
    expected={
        "00001": {"video": "Clip/original/1.mp4", "labels": {"emotion": "happy"}, "split": "train"},
        "00012": {"video": "Clip/original/00012.mp4", "labels": {"emotion": "fear"}},
        "16372": {"labels": {"emotion": "angry"}, "split": "test", "dataset": "dfew"},
    },
    needed="EmoLabel_DataSplit/train(single-labeled)/set_2.csv",
    bad_label=("EmoLabel_DataSplit/test(single_labeled)/set_2.csv", "4", "8"),
    twice="EmoLabel_DataSplit/train(single-labeled)/set_2.csv",
    fold=2,
)  # fmt: skip

MAFW_ROOT = "Train & Test Set/{}/no_caption/set_1/{}.txt"

MAFW = DatasetFixture(
    importer="mafw",
    files={
        MAFW_ROOT.format("single", "train"): "03747.mp4 anger\n00002.mp4 helplessness\n",
        MAFW_ROOT.format("single", "test"): "00151.mp4 happiness\n",
    },
    media=("data/clips/03747.mp4", "data/clips/00002.mp4", "data/clips/00151.mp4"),
    num_clips=3,
    expected={
        "03747": {"video": "data/clips/03747.mp4", "labels": {"emotion": "anger"}, "split": "train"},
        "00151": {"split": "test", "dataset": "mafw"},
    },
    needed=MAFW_ROOT.format("single", "test"),
    bad_label=(MAFW_ROOT.format("single", "train"), "anger", "angr"),
    twice=MAFW_ROOT.format("single", "train"),
)

MAFW_COMPOUND = DatasetFixture(
    importer="mafw",
    files={
        "Train & Test Set/compound/with_caption/set_1/train.txt": "20045.mp4\tanger_disgust\t说话。\tA woman talks.\n",
        "Train & Test Set/compound/with_caption/set_1/test.txt": "20046.mp4\tsadness_helplessness\t\t\n",
    },
    media=("data/clips/20045.mp4", "data/clips/20046.mp4"),
    num_clips=2,
    expected={"20045": {"labels": {"multi-label": ["anger", "disgust"]}, "split": "train"}},
    needed="Train & Test Set/compound/with_caption/set_1/test.txt",
    bad_label=("Train & Test Set/compound/with_caption/set_1/train.txt", "anger_disgust", "anger_disgus"),
    twice="Train & Test Set/compound/with_caption/set_1/train.txt",
    options={"set": "compound"},
)

CAER = DatasetFixture(
    clips_are_files=True,
    importer="caer",
    files={"train/notes.txt": "about"},
    media=("train/Anger/0001.avi", "train/Happy/0001.avi", "validation/Sad/0001.avi", "test/Anger/0001.avi"),
    num_clips=4,
    expected={
        "test_Anger_0001": {"video": "test/Anger/0001.avi", "labels": {"emotion": "anger"}, "split": "test"},
        "train_Happy_0001": {"labels": {"emotion": "happy"}, "dataset": "caer"},
    },
    needed="",
)

E3 = DatasetFixture(
    importer="e3",
    files={"E3_label.xlsx": [["video", "segment", "emotion", "person", "conversation", "mode"],
                             ["0a1b", "3", "Happy", "a woman in blue", "Look here.", "train"],
                             ["0a1b", "004", "sarcastic", "", "", "val"], [7, 5, "shy", "a boy", "Hm.", "test"]]},
    media=("E3/0a1b/3.mp4", "E3/0a1b/4.mp4", "E3/7/5.mp4"),
    num_clips=3,
    expected={
        "0a1b_3": {"video": "E3/0a1b/3.mp4", "text": "Look here.", "speaker": "0a1b: a woman in blue",
                   "labels": {"emotion": "happy"}, "split": "train", "dialogue": "0a1b"},
        "0a1b_004": {"video": "E3/0a1b/4.mp4", "split": "val"},
        "7_5": {"split": "test"},
    },
    needed="E3_label.xlsx",
    bad_label=("E3_label.xlsx", "Happy", "Hapy"),
    twice="E3_label.xlsx",
)  # fmt: skip


def _bold(video: str, person: int, *strong: int) -> str:
    scores = ["0.9" if place in strong else "0.1" for place in range(26)]
    return ",".join([video, str(person), "10", "90", *scores, "0.4", "0.5", "0.6", "0", "1", "2", "0.95"]) + "\n"


BOLD = DatasetFixture(
    importer="bold",
    files={
        "BOLD_public/annotations/train.csv": _bold("003/x-6CtPWVi6E.mp4/0208.mp4", 1, 6, 11)
        + _bold("003/x-6CtPWVi6E.mp4/0208.mp4", 2),
        "BOLD_public/annotations/val.csv": _bold("004/IzvOYVMltkI.mp4/0114.mp4", 0, 25),
    },
    media=("BOLD_public/videos/003/x-6CtPWVi6E.mp4/0208.mp4", "BOLD_public/videos/004/IzvOYVMltkI.mp4/0114.mp4"),
    num_clips=3,
    expected={
        "x-6CtPWVi6E_0208_1": {
            "video": "BOLD_public/videos/003/x-6CtPWVi6E.mp4/0208.mp4", "split": "train", "dialogue": "x-6CtPWVi6E",
            "labels": {"multi-label": ["happiness", "doubt/confusion"], "valence_score": 0.4, "arousal_score": 0.5,
                       "dominance_score": 0.6},
        },
        "x-6CtPWVi6E_0208_2": {"labels": {"multi-label": [], "valence_score": 0.4, "arousal_score": 0.5,
                                          "dominance_score": 0.6}},
        "IzvOYVMltkI_0114_0": {"split": "val"},
    },
    needed="BOLD_public/annotations/val.csv",
    bad_label=("BOLD_public/annotations/train.csv", "0.9", "9"),
    twice="BOLD_public/annotations/val.csv",
    lost_with_first=2,
)  # fmt: skip
