"""Dialogues: IEMOCAP, MELD, EmoryNLP, MC-EIU."""

from __future__ import annotations

from dataset_fixture import Content, DatasetFixture, Rows


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
            "speaker": "Ses05F", "dialogue": "Ses05F_impro01", "session": "Session5",
            "start_s": 6.2901, "end_s": 8.2357, "crop": {"right": 0.5},
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

EMORYNLP_HEADER = ["Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode", "Start_Time",
                   "End_Time"]  # fmt: skip

EMORYNLP = DatasetFixture(
    importer="emorynlp",
    files={
        "emorynlp_train_final.csv": [EMORYNLP_HEADER,
                                     ["Coffee.", "['Rachel Green']", "Neutral", "1", "1", "1", "2", "00:00:03.795",
                                      "00:00:05.004"]],
        "emorynlp_dev_final.csv": [EMORYNLP_HEADER,
                                   ["Yeah!", "['Joey Tribbiani', 'Ross Geller']", "Powerful", "12", "3", "1", "15",
                                    "00:19:18.824", "00:19:21.159"]],
        "emorynlp_test_final.csv": [EMORYNLP_HEADER, ["No.", "['Celia']", "Mad", "7", "2", "1", "20", "x", "y"]],
    },
    media=("emorynlp_train_splits/sea1_ep2_sc1_utt1.mp4", "emorynlp_dev_splits/sea1_ep15_sc12_utt3.mp4",
           "emorynlp_test_splits/sea1_ep20_sc7_utt2.mp4"),
    num_clips=3,
    expected={
        "sea1_ep2_sc1_utt1": {"video": "emorynlp_train_splits/sea1_ep2_sc1_utt1.mp4", "text": "Coffee.",
                              "labels": {"emotion": "neutral"}, "speaker": "Rachel Green", "split": "train",
                              "dialogue": "sea1_ep2_sc1", "dataset": "emorynlp", "duration_s": 1.209},
        "sea1_ep15_sc12_utt3": {"speaker": "Joey Tribbiani, Ross Geller", "split": "val",
                                "labels": {"emotion": "powerful"}},
        "sea1_ep20_sc7_utt2": {"split": "test", "duration_s": None},
    },
    needed="emorynlp_dev_final.csv",
    bad_label=("emorynlp_test_final.csv", "Mad", "Made"),
    twice="emorynlp_train_final.csv",
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
