"""Synthetic datasets in the real layouts: invented rows and media of a few bytes, written anew for every test."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Rows = Sequence[Sequence[object]]
Content = str | Rows | Mapping[str, Any]
"""Text; rows of a table (csv or xlsx, by the name's ending); a document for a .json (`{"": [...]}` is a list)."""


@dataclass(frozen=True)
class DatasetFixture:
    """One dataset of few clips, and what must come out of it."""

    importer: str
    files: Mapping[str, Content]
    media: Sequence[str]
    """Every file of media that a clip has."""
    num_clips: int
    expected: Mapping[str, Mapping[str, object]]
    """Clip id -> parts of its line in the clip list, paths relative to the dataset."""
    needed: str
    """A file without which nothing can be read."""
    bad_label: tuple[str, str, str] | None = None
    """(file, text, other text): with it, a label is outside the vocabulary."""
    twice: str = ""
    """A file whose last row, doubled, names a clip twice."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    options: Mapping[str, str] = field(default_factory=dict)
    fold: int = 0
    without_needed: int | None = None
    """How many clips are left without the needed file; None where that is an error."""
    lost_with_first: int = 1
    """How many clips need the first of the media."""

    def build(self, root: Path, files: Mapping[str, Content] | None = None) -> Path:
        """Write it below `root`; return what an importer is given."""
        for name, content in (self.files if files is None else files).items():
            write(root / name, content)
        for name in self.media:
            write(root / name, f"media of {name}")
        return root / self.needed if self.importer == "csv" else root

    def edited(self, name: str, old: str, new: str) -> dict[str, Content]:
        """The files with a text replaced in one of them, first found."""
        content = self.files[name]
        if isinstance(content, str):
            assert old in content
            changed: Content = content.replace(old, new, 1)
        elif isinstance(content, Mapping):
            dumped = json.dumps(content)
            assert old in dumped
            changed = json.loads(dumped.replace(old, new, 1))
        else:
            assert any(old == cell for row in content for cell in row), old
            changed = [[new if cell == old else cell for cell in row] for row in content]
        return {**self.files, name: changed}

    def doubled(self) -> dict[str, Content]:
        """The files with the last row of `twice` written again."""
        content = self.files[self.twice]
        if isinstance(content, str):
            return {**self.files, self.twice: content + content.rstrip("\n").rsplit("\n", 1)[-1] + "\n"}
        return {**self.files, self.twice: [*content, content[-1]]}


def write(path: Path, content: Content) -> None:
    """Write one file in the form that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, Mapping):
        path.write_text(json.dumps(content.get("", content)), encoding="utf-8")
    elif path.suffix == ".xlsx":
        from openpyxl import Workbook

        book = Workbook()
        for row in content:
            book.active.append(list(row))
        book.save(path)
    else:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(content)
        path.write_text(text.getvalue(), encoding="utf-8")


SUBTITLES = [
    ["name", "chinese", "english"],
    ["sample_00000001", "我明白。", "I see, you know."],
    ["sample_00000002", "走开", ""],
]

MER2023 = DatasetFixture(
    importer="mer2023",
    files={
        "train-label.csv": [["name", "discrete", "valence"], ["sample_00000001", "happy", "1.5"],
                            ["sample_00000002", "worried", "-2"]],
        "test1-label.csv": [["name", "discrete", "valence"], ["sample_00000003", "Neutral", "0"]],
        "test2-label.csv": [["name", "discrete", "valence"], ["sample_00000004", "sad", "-1"]],
        "test3-label.csv": [["name", "discrete"], ["sample_00000005", "angry"]],
        "transcription-engchi.csv": SUBTITLES,
    },
    media=("train/sample_00000001.avi", "train/sample_00000002.mp4", "test1/sample_00000003.mp4",
           "test2/sample_00000004.avi", "test3/sample_00000005.mp4"),
    num_clips=5,
    expected={
        "sample_00000001": {"video": "train/sample_00000001.avi", "text": "I see, you know.", "split": "train",
                            "dataset": "mer2023", "labels": {"emotion": "happy", "valence_score": 1.5}},
        "sample_00000005": {"labels": {"emotion": "angry"}, "split": "test3"},
    },
    needed="test3-label.csv",
    bad_label=("train-label.csv", "happy", "hungry"),
    twice="train-label.csv",
)  # fmt: skip

MER2024 = DatasetFixture(
    importer="mer2024",
    files={
        "label-disdim.csv": [["name", "discrete", "valence"], ["samplenew_00000001", "happy", "2"],
                             ["samplenew_00000002", "", "0"]],
        "label-semi.csv": [["name", "discrete"], ["samplenew3_00000009", "surprise"]],
        "label-transcription.csv": [["name", "sentence"], ["samplenew_00000001", "Come in."]],
    },
    media=("video-labeled/samplenew_00000001.mp4", "video-labeled/samplenew3_00000009.mp4"),
    num_clips=2,
    expected={
        "samplenew_00000001": {"text": "Come in.", "split": "train",
                               "labels": {"emotion": "happy", "valence_score": 2.0}},
        "samplenew3_00000009": {"split": "semi", "labels": {"emotion": "surprise"}},
    },
    needed="label-disdim.csv",
    without_needed=1,
    bad_label=("label-semi.csv", "surprise", "surpise"),
    twice="label-semi.csv",
    left_out={"no emotion": 1},
)  # fmt: skip

OV_MERD = DatasetFixture(
    importer="ov-merd",
    files={
        "track2_train_ovmerd.csv": [["name", "openset"], ["samplenew_1", "['Happy', \"at ease\"]"],
                                    ["samplenew_2", "[]"]],
        "track2_train_mercaptionplus.csv": [["name", "openset"], ["samplenew_9", "[sad]"]],
        "track3_train_ovmerd.csv": [["name", "reason"], ["samplenew_1", "She smiles, and the voice is calm."]],
        "subtitle_chieng.csv": [["name", "chinese", "english"], ["samplenew_1", "好", "Good."]],
    },
    media=("video/samplenew_1.mp4", "video/samplenew_2.mp4"),
    num_clips=2,
    expected={
        "samplenew_1": {"labels": {"openset": ["happy", "at ease"]}, "text": "Good.", "split": "train",
                        "responses": {"reason": "She smiles, and the voice is calm."}, "dataset": "ov_merd"},
        "samplenew_2": {"labels": {"openset": []}},
    },
    needed="track2_train_ovmerd.csv",
    without_needed=1,
)  # fmt: skip

OV_MERD_PLUS = DatasetFixture(
    importer="ov-merd-plus",
    files={"ovlabel.csv": [["name", "openset"], ["sample_00000007", "[happy, proud]"]],
           "subtitle.csv": [["name", "english"], ["sample_00000007", "Look!"]]},
    media=("video/sample_00000007.mp4",),
    num_clips=1,
    expected={"sample_00000007": {"labels": {"openset": ["happy", "proud"]}, "split": "test", "text": "Look!",
                                  "dataset": "ov_merd_plus"}},
    needed="ovlabel.csv",
)  # fmt: skip

MER_CAPTION_PLUS = DatasetFixture(
    importer="mer-caption-plus",
    files={**OV_MERD.files, "track3_train_mercaptionplus.csv": [["name", "reason"], ["samplenew_8", "He frowns."]]},
    media=("video/samplenew_9.mp4", "video/samplenew_8.mp4"),
    num_clips=2,
    expected={"samplenew_9": {"labels": {"openset": ["sad"]}}, "samplenew_8": {"responses": {"reason": "He frowns."}}},
    needed="track2_train_mercaptionplus.csv",
    without_needed=1,
)

EMER = DatasetFixture(
    importer="emer",
    files={"gt-eng.csv": [["names", "emotions", "subtitles", "reasons"],
                          ["sample_00000011", "sad, helpless", "No way.", "The head hangs."]]},
    media=("video/sample_00000011.mp4",),
    num_clips=1,
    expected={"sample_00000011": {"labels": {"openset": ["sad", "helpless"]}, "text": "No way.", "split": "test",
                                  "responses": {"reason": "The head hangs."}}},
    needed="gt-eng.csv",
    twice="gt-eng.csv",
)  # fmt: skip

MERR = DatasetFixture(
    importer="merr",
    files={
        "MERR_fine_grained.json": {"sample_00000021": {"smp_reason_caption": "Fine.", "peak_index": "39",
                                                       "text": "Well."}},
        "MERR_coarse_grained.json": {"sample_00000021": {"caption": "Coarse."}, "sample_00000022": {"caption": "Few."}},
        "MERR_coarse_grained.txt": "sample_00000021 71 happy 1.5\nsample_00000022 40 contempt -10\n",
    },
    media=("video/sample_00000021.avi", "video/sample_00000022.avi"),
    num_clips=2,
    expected={
        "sample_00000021": {"labels": {"emotion": "happy", "valence_score": 1.5}, "responses": {"reason": "Fine."},
                            "peak_frame": 39, "text": "Well.", "split": "train"},
        "sample_00000022": {"responses": {"reason": "Few."}, "labels": {"emotion": "contempt", "valence_score": -10.0}},
    },
    needed="MERR_coarse_grained.txt",
    without_needed=2,
    bad_label=("MERR_coarse_grained.txt", "contempt", "contemp"),
)  # fmt: skip


def _iemocap() -> dict[str, Content]:
    files: dict[str, Content] = {}
    for session in range(1, 6):
        name = f"Ses0{session}F_impro01"
        dialog = f"Session{session}/dialog"
        files[f"{dialog}/EmoEvaluation/{name}.txt"] = (
            "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
            f"[6.2901 - 8.2357]\t{name}_F000\tneu\t[2.5000, 2.5000, 2.5000]\n"
            "C-E2:\tNeutral;\t()\n\n"
            f"[12.0000 - 13.0000]\t{name}_M002\txxx\t[2.0000, 2.0000, 2.0000]\n"
            f"[10.0100 - 11.3925]\t{name}_M001\texc\t[4.0000, 3.0000, 2.0000]\n"
        )
        files[f"{dialog}/transcriptions/{name}.txt"] = (
            f"{name}_F000 [006.2901-008.2357]: Excuse me.\n{name}_M001 [010.0100-011.3925]: Yes.\n"
        )
    return files


IEMOCAP = DatasetFixture(
    importer="iemocap",
    files=_iemocap(),
    media=tuple(f"Session{n}/dialog/avi/DivX/Ses0{n}F_impro01.avi" for n in range(1, 6)),
    num_clips=10,
    expected={
        "Ses05F_impro01_F000": {
            "video": "Session5/dialog/avi/DivX/Ses05F_impro01.avi", "text": "Excuse me.", "split": "test",
            "labels": {"emotion": "neutral", "valence_score": 2.5, "activation_score": 2.5, "dominance_score": 2.5},
            "speaker": "Ses05F", "dialogue": "Ses05F_impro01", "start_s": 6.2901, "end_s": 8.2357,
            "crop": {"right": 0.5},
        },
        "Ses01F_impro01_M001": {"split": "train", "speaker": "Ses01M", "crop": {"left": 0.5}},
    },
    needed="Session5/dialog/EmoEvaluation",
    bad_label=("Session1/dialog/EmoEvaluation/Ses01F_impro01.txt", "\tneu\t", "\tzen\t"),
    twice="Session3/dialog/EmoEvaluation/Ses03F_impro01.txt",
    left_out={"the raters did not agree (xxx)": 5},
    lost_with_first=2,
)  # fmt: skip

MELD_HEADER = ["Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season",
               "Episode", "StartTime", "EndTime"]  # fmt: skip


def _meld(*rows: tuple[str, str, str, str, int, int]) -> Rows:
    times = ["3", "9", "00:00:01,000", "00:00:02,000"]
    return [MELD_HEADER, *([number, *row, *times] for number, row in enumerate(rows, start=1))]


MELD = DatasetFixture(
    importer="meld",
    files={
        "train_sent_emo.csv": _meld(("Oh, no\x85 \x93really\x94?", "Ross", "surprise", "negative", 0, 0),
                                    ("Hi\nthere", "Rachel Green", "joy", "positive", 0, 1)),
        "dev_sent_emo.csv": _meld(("Well.", "Ross", "neutral", "neutral", 0, 0)),
        "test_sent_emo.csv": _meld(("Go!", "Monica", "anger", "negative", 0, 0)),
        "output_repeated_splits_test/._dia0_utt0.mp4": "not a clip",
        "output_repeated_splits_test/final_videos_testdia0_utt0.mp4": "not a clip either",
    },
    media=("train_splits/dia0_utt0.mp4", "train_splits/dia0_utt1.mp4", "dev_splits_complete/dia0_utt0.mp4",
           "output_repeated_splits_test/dia0_utt0.mp4"),
    num_clips=4,
    expected={
        "train_dia0_utt0": {"video": "train_splits/dia0_utt0.mp4", "text": "Oh, no\x85 \x93really\x94?",
                            "labels": {"emotion": "surprise", "sentiment": "negative"}, "speaker": "Ross",
                            "dialogue": "train_dia0", "split": "train", "dataset": "meld"},
        "test_dia0_utt0": {"video": "output_repeated_splits_test/dia0_utt0.mp4", "speaker": "Monica"},
    },
    needed="dev_sent_emo.csv",
    bad_label=("test_sent_emo.csv", "anger", "angst"),
    twice="train_sent_emo.csv",
)  # fmt: skip

MMSA_HEADER = ["video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode"]


def _mmsa(
    importer: str, dataset: str, scores: tuple[str, str, str], clip: str, file: str, table: str
) -> DatasetFixture:
    positive, zero, negative = scores
    return DatasetFixture(
        importer=importer,
        files={table: [
            MMSA_HEADER,
            ["03bSnISJMiM", clip, "ANYHOW", positive, "", "", "", "Positive", "train"],
            ["_dI--eQ6qVU", "2", "so", zero, "0.5", "", "", "Neutral", "valid"],
            ["_dI--eQ6qVU", "10", "bad", negative, "", "", "", "", "test"],
            ["_dI--eQ6qVU", "11", "?", "", "", "", "", "", "train"],
        ]},
        media=(f"Raw/03bSnISJMiM/{file}.mp4", "Raw/_dI--eQ6qVU/2.mp4", "Raw/_dI--eQ6qVU/10.mp4"),
        num_clips=3,
        expected={
            f"03bSnISJMiM_{clip}": {
                "video": f"Raw/03bSnISJMiM/{file}.mp4", "text": "ANYHOW", "split": "train", "dataset": dataset,
                "labels": {"sentiment": "positive", "sentiment_score": float(positive)}, "dialogue": "03bSnISJMiM",
            },
            "_dI--eQ6qVU_2": {"labels": {"sentiment": "neutral", "sentiment_score": float(zero), "text_score": 0.5}},
            "_dI--eQ6qVU_10": {"labels": {"sentiment": "negative", "sentiment_score": float(negative)}},
        },
        needed=table,
        bad_label=(table, positive, "7.5"),
        left_out={"no score": 1},
    )  # fmt: skip


CMU_MOSI = _mmsa("cmu-mosi", "cmu_mosi", ("2.4", "0", "-1.75"), "1", "1", "label.csv")
CMU_MOSEI = _mmsa("cmu-mosei", "cmu_mosei", ("3.0", "0.0", "-0.3333"), "0", "0", "label.csv")
CH_SIMS = _mmsa("ch-sims", "ch_sims", ("0.8", "0", "-0.2"), "0001", "0001", "label.csv")
CH_SIMS_V2 = _mmsa("ch-sims-v2", "ch_sims_v2_s", ("0.8", "0", "-0.2"), "1", "0001", "meta.csv")

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
    expected={"03747": {"video": "data/clips/03747.mp4", "labels": {"emotion": "anger"}, "split": "train"},
              "00151": {"split": "test", "dataset": "mafw"}},
    needed=MAFW_ROOT.format("single", "test"),
    bad_label=(MAFW_ROOT.format("single", "train"), "anger", "angr"),
    twice=MAFW_ROOT.format("single", "train"),
)  # fmt: skip
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
    importer="caer",
    files={"train/notes.txt": "about"},
    media=("train/Anger/0001.avi", "train/Happy/0001.avi", "validation/Sad/0001.avi", "test/Anger/0001.avi"),
    num_clips=4,
    expected={"test_Anger_0001": {"video": "test/Anger/0001.avi", "labels": {"emotion": "anger"}, "split": "test"},
              "train_Happy_0001": {"labels": {"emotion": "happy"}, "dataset": "caer"}},
    needed="",
)  # fmt: skip

MC_EIU = DatasetFixture(
    importer="mc-eiu",
    files={
        "English/train.csv": [["video_id", "Speaker", "Subtitle", "emotion", "intent"],
                              ["dia_0_utt_0", "A", "Shall we?", "Happy", "suggesting"],
                              ["dia_0_utt_1", "B", "Yes.", "neu", "Agr"]],
        "Chinese/labels.xlsx": [["video_id", "Subtitle", "emotion", "intent", "mode"],
                                ["dia_622_utt_8_ch", "好", "neutral", "sympathizing", "val"],
                                ["dia_622_utt_9_ch", "走", "sad", "wishing", "test"]],
    },
    media=("English/videos/dia_0_utt_0.mp4", "English/videos/dia_0_utt_1.mp4", "Chinese/dia_622_utt_8_ch.mp4",
           "Chinese/dia_622_utt_9_ch.mp4"),
    num_clips=4,
    expected={
        "dia_0_utt_1": {"video": "English/videos/dia_0_utt_1.mp4", "text": "Yes.", "speaker": "dia_0_B",
                        "labels": {"emotion": "neutral", "intent": "agreeing"}, "split": "train", "dialogue": "dia_0"},
        "dia_622_utt_8_ch": {"labels": {"emotion": "neutral", "intent": "sympathizing"}, "split": "val",
                             "dialogue": "dia_622_ch"},
    },
    needed="English/train.csv",
    without_needed=2,
    bad_label=("English/train.csv", "suggesting", "sugesting"),
    twice="Chinese/labels.xlsx",
)  # fmt: skip

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

MMEVERSE_RESPONSES = ["response_AudioReasoner", "response_Qwen2Audio", "response_Qwen25vl_72B"]
MMEVERSE = DatasetFixture(
    importer="mmeverse",
    files={
        "MER2023/MER2023_merged.csv": [
            ["video_id", "emotion_label", "english", "chinese", "MER2023_mode", *MMEVERSE_RESPONSES],
            ["sample_00000001", "happy", "I see.", "我明白。", "train", "", "A bright voice.", "A smile."],
            ["sample_00000002", "sad", "No.", "不", "test1", "", "", ""],
        ],
        "MER2023/MER2023_peak.json": {"sample_00000001": {"peak_index": 12}},
        "AU_gpt/MER2023_AU_gpt.csv": [
            ["video_id", "emotion_label", "english", "MER2023_mode", "gpt-4o-mini_Emotion"],
            ["sample_00000001", "happy", "I see.", "train", "Lips are raised."],
        ],
        "MELD/MELD_merged.csv": [
            ["video_id", "Emotion", "Sentiment", "text", "mode"],
            ["train_dia0_utt0", "joy", "positive", "Hi!", "train"],
        ],
        "AU_gpt/MELD_AU_gpt.csv": [
            ["video_id", "Emotion", "Sentiment", "text", "mode", "gpt-4o-mini_Emotion", "gpt-4o-mini_Sentiment"],
            ["train_dia0_utt0", "joy", "positive", "Hi!", "train", "A laugh.", "Warm words."],
        ],
        "CMU-MOSEI/CMU-MOSEI_label.csv": [
            ["video_id", "clip_id", "text", "label", "sentiment_label", "mode"],
            ["-3g5yACwYnA", "10", "Key is", "1.0", "Positive", "test"],
        ],
        "MAFW/MAFW_merged.csv": [
            ["video_id", "single_label", "multi_label", "text_whisper", "mode"],
            ["00007", "anger", "anger_disgust", "Out!", "train"],
        ],
        "IEMOCAP/IEMOCAP_merged.csv": [
            ["video_id", "official_label", "text", "session"],
            ["Ses05F_impro01_F000", "frustration", "Why?", "Session5"],
        ],
        "E3/E3_merged.csv": [
            ["video_id", "emotion", "person", "conversation", "mode"],
            ["0a1b_3", "happy", "a woman", "Look.", "val"], ["0a1b_3", "shy", "a boy", "Look.", "val"],
        ],
        "MER2023/features/whisper-large-v3/readme.txt": "features",
    },
    media=("MER2023/video/sample_00000001.mp4", "MER2023/video/sample_00000002.mp4",
           "MELD/video/train_dia0_utt0.mp4", "CMU-MOSEI/video/-3g5yACwYnA_10.mp4", "MAFW/video/00007.mp4",
           "IEMOCAP/video/Ses05F_impro01_F000.mp4", "E3/video/0a1b_3.mp4"),
    num_clips=8,
    expected={
        "mer2023/sample_00000001": {
            "video": "MER2023/video/sample_00000001.mp4", "text": "I see.", "split": "train", "dataset": "mer2023",
            "labels": {"emotion": "happy"}, "peak_frame": 12,
            "responses": {"audio": "A bright voice.", "image": "A smile.", "reason": "Lips are raised.",
                          "think": "Lips are raised."},
        },
        "mer2023/sample_00000002": {"text": "不", "split": "test1"},
        "meld/train_dia0_utt0": {
            "labels": {"emotion": "joy", "sentiment": "positive"}, "dialogue": "train_dia0",
            "responses": {"reason": "A laugh.", "think": "A laugh.", "reason-sentiment": "Warm words."},
        },
        "cmu_mosei/-3g5yACwYnA_10": {"labels": {"sentiment": "positive", "sentiment_score": 1.0}, "split": "test",
                                     "dialogue": "-3g5yACwYnA"},
        "mafw/00007": {"labels": {"emotion": "anger", "multi-label": ["anger", "disgust"]}},
        "e3/0a1b_3": {"labels": {"emotion": "happy"}, "speaker": "0a1b: a woman"},
        "e3/0a1b_3#2": {"labels": {"emotion": "shy"}, "video": "E3/video/0a1b_3.mp4", "dialogue": "0a1b"},
        "iemocap/Ses05F_impro01_F000": {"split": "test", "dialogue": "Ses05F_impro01"},
    },
    needed="MAFW/MAFW_merged.csv",
    bad_label=("MER2023/MER2023_merged.csv", "sad", "saad"),
    twice="MELD/MELD_merged.csv",
)  # fmt: skip

COCO_CAPTION = DatasetFixture(
    importer="coco-caption",
    files={"annotations/captions_train2014.json": {
        "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}],
        "annotations": [{"image_id": 9, "id": 1, "caption": "A cat.\n"}, {"image_id": 9, "id": 2, "caption": "A pet."},
                        {"image_id": 8, "id": 3, "caption": "Of no picture."}],
    }},
    media=("train2014/COCO_train2014_000000000009.jpg",),
    num_clips=1,
    expected={"COCO_train2014_000000000009": {
        "image": "train2014/COCO_train2014_000000000009.jpg", "split": "train", "dataset": "coco_caption",
        "questions": [{"task": "caption", "answer": "A cat."}, {"task": "caption", "answer": "A pet."}],
    }},
    needed="annotations/captions_train2014.json",
    left_out={"a caption of no picture, or an empty one": 1},
)  # fmt: skip


def _refcoco(importer: str, dataset: str) -> DatasetFixture:
    return DatasetFixture(
        importer=importer,
        files={
            f"{dataset}/refs(unc).json": {"": [{
                "ref_id": 1, "ann_id": 5, "image_id": 9, "split": "train",
                "sentences": [{"raw": "the left cat", "sent": "left cat"}, {"sent": "grey one"}],
            }]},
            f"{dataset}/instances.json": {
                "images": [{"id": 9, "width": 200, "height": 100, "file_name": "COCO_train2014_000000000009.jpg"}],
                "annotations": [{"id": 5, "bbox": [10, 20, 90, 40]}],
            },
        },
        media=("images/mscoco/train2014/COCO_train2014_000000000009.jpg",),
        num_clips=1,
        expected={"COCO_train2014_000000000009": {
            "image": "images/mscoco/train2014/COCO_train2014_000000000009.jpg", "dataset": dataset, "split": "train",
            "questions": [{"task": "refer", "answer": "{<5><20><50><60>}", "question": "the left cat"},
                          {"task": "refer", "answer": "{<5><20><50><60>}", "question": "grey one"}],
        }},
        needed=f"{dataset}/refs(unc).json",
    )  # fmt: skip


REFCOCO = _refcoco("refcoco", "refcoco")
REFCOCO_PLUS = _refcoco("refcoco-plus", "refcoco+")
REFCOCOG = _refcoco("refcocog", "refcocog")


def _vqa(importer: str, dataset: str, questions: str, annotations: str) -> DatasetFixture:
    return DatasetFixture(
        importer=importer,
        files={
            questions: {"data_subtype": "val2014", "questions": [
                {"image_id": 42, "question_id": 420, "question": "What colour? "},
                {"image_id": 42, "question_id": 421, "question": "Unanswered?"},
            ]},
            annotations: {"annotations": [
                {"question_id": 420, "answers": [{"answer": "red"}, {"answer": "blue"}, {"answer": "blue"}]},
            ]},
        },
        media=("val2014/COCO_val2014_000000000042.jpg",),
        num_clips=1,
        expected={"COCO_val2014_000000000042": {
            "image": "val2014/COCO_val2014_000000000042.jpg", "split": "val", "dataset": dataset,
            "questions": [{"task": "vqa", "answer": "blue", "question": "What colour?"}],
        }},
        needed=questions,
        left_out={"a question without an answer": 1},
    )  # fmt: skip


COCO_VQA = _vqa("coco-vqa", "coco_vqa", "v2_OpenEnded_mscoco_val2014_questions.json",
                "v2_mscoco_val2014_annotations.json")  # fmt: skip
OK_VQA = _vqa("ok-vqa", "ok_vqa", "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")
AOK_VQA = DatasetFixture(
    importer="aok-vqa",
    files={"aokvqa_v1p0_train.json": {"": [
        {"split": "train", "image_id": 299207, "question_id": "a", "question": "Why?", "choices": ["a", "b"],
         "correct_choice_idx": 1, "direct_answers": ["ride", "ride", "play"]},
        {"split": "train", "image_id": 299207, "question_id": "b", "question": "Who?", "choices": ["he", "she"],
         "correct_choice_idx": 1, "direct_answers": []},
    ]}},
    media=("train2017/000000299207.jpg",),
    num_clips=1,
    expected={"000000299207": {"image": "train2017/000000299207.jpg", "split": "train", "questions": [
        {"task": "vqa", "answer": "ride", "question": "Why?"}, {"task": "vqa", "answer": "she", "question": "Who?"},
    ]}},
    needed="aokvqa_v1p0_train.json",
)  # fmt: skip

GQA = DatasetFixture(
    importer="gqa",
    files={"train_balanced_questions.json": {"07333408": {"imageId": "2375429", "question": "Is it overcast?",
                                                          "answer": "no", "fullAnswer": "No, it is clear."}}},
    media=("images/2375429.jpg",),
    num_clips=1,
    expected={"2375429": {"image": "images/2375429.jpg", "split": "train", "dataset": "gqa",
                          "questions": [{"task": "vqa", "answer": "no", "question": "Is it overcast?"}]}},
    needed="train_balanced_questions.json",
)  # fmt: skip

CSV = DatasetFixture(
    importer="csv",
    files={"mine.csv": [["Name", "file", "feeling", "said", "how much", "all", "who"],
                        ["", "c", "sad", "", "", "", ""],
                        ["007", "a", "glad", "Ja, so.", "1.5", "glad, calm", "Ann"],
                        ["008", "b", "sad", "", "", "", ""]]},
    media=("clips/a.mp4", "clips/b.mp4"),
    num_clips=2,
    expected={
        "007": {"video": "clips/a.mp4", "text": "Ja, so.", "split": "train", "speaker": "Ann",
                "labels": {"emotion": "glad", "sentiment_score": 1.5, "multi-label": ["glad", "calm"]},
                "crop": {"right": 0.5}},
        "008": {"labels": {"emotion": "sad", "multi-label": []}},
    },
    needed="mine.csv",
    twice="mine.csv",
    left_out={"no id": 1},
    options={"id": "Name", "video": "clips/{file}.mp4", "labels.emotion": "feeling", "text": "said",
             "labels.sentiment_score": "how much", "labels.multi-label[]": "all", "speaker": "who",
             "split": "'train'", "crop.right": "'0.5'"},
)  # fmt: skip
