"""Sarcasm and humor: MUStARD, MUStARD++, UR-FUNNY."""

from __future__ import annotations

from dataset_fixture import DatasetFixture

MUSTARD = DatasetFixture(
    importer="mustard",
    files={
        "data/sarcasm_data.json": {
            "1_60": {"utterance": "It's just a privilege.", "speaker": "SHELDON", "context": ["I never would."],
                     "context_speakers": ["LEONARD"], "show": "BBT", "sarcasm": True},
            "2_105": {"utterance": "Thank you.", "speaker": "PERSON1", "context": [], "context_speakers": [],
                      "show": "FRIENDS", "sarcasm": False},
        }
    },
    media=("mmsd_raw_data/utterances_final/1_60.mp4", "mmsd_raw_data/utterances_final/2_105.mp4"),
    num_clips=2,
    expected={
        "1_60": {"video": "mmsd_raw_data/utterances_final/1_60.mp4", "text": "It's just a privilege.",
                 "labels": {"sarcasm": "sarcastic"}, "tags": ["sarcasm"], "speaker": "SHELDON", "dataset": "mustard"},
        "2_105": {"labels": {"sarcasm": "not sarcastic"}, "tags": None, "speaker": "2_105: PERSON1"},
    },
    needed="data/sarcasm_data.json",
    bad_label=("data/sarcasm_data.json", "true", '"maybe"'),
)  # fmt: skip

MUSTARD_PP_HEADER = ["SCENE", "KEY", "SENTENCE", "END_TIME", "SPEAKER", "SHOW", "Sarcasm", "Sarcasm_Type",
                     "Implicit_Emotion", "Explicit_Emotion", "Valence", "Arousal"]  # fmt: skip
MUSTARD_PP_ROWS = [
    MUSTARD_PP_HEADER,
    ["1_10004", "1_10004_c_00", "Who was he?", "0:08", "SHELDON", "BBT", "", "", "", "", "", ""],
    ["1_10004", "1_10004_u", "How long?", "0:07", "PERSON", "BBT", "0", "NONE", "Anger", "Anger", "2", "7"],
    ["1_S11E03_067", "Disgust", "I see, \nnice.", "0:07", "AMY", "BBT", "1", "PRO", "Disgust", "Happiness", "3", "6"],
]

MUSTARD_PLUS_PLUS = DatasetFixture(
    importer="mustard-plus-plus",
    files={"mustard++_text.csv": MUSTARD_PP_ROWS},
    media=("final_utterance_videos/1_10004_u.mp4", "final_utterance_videos/1_S11E03_067_u.mp4"),
    num_clips=2,
    expected={
        "1_10004_u": {"labels": {"emotion": "anger", "sarcasm": "not sarcastic", "valence_score": 2.0,
                                 "arousal_score": 7.0}, "speaker": "1_10004: PERSON", "tags": None},
        "1_S11E03_067_u": {"video": "final_utterance_videos/1_S11E03_067_u.mp4", "tags": ["sarcasm"],
                           "labels": {"emotion": "disgust", "sarcasm": "sarcastic", "sarcasm_type": "propositional",
                                      "valence_score": 3.0, "arousal_score": 6.0}, "speaker": "AMY"},
    },
    needed="mustard++_text.csv",
    bad_label=("mustard++_text.csv", "7", "17"),
    twice="mustard++_text.csv",
)  # fmt: skip

MUSTARD_PLUS_PLUS_SHOWN = DatasetFixture(
    importer="mustard-plus-plus",
    files=MUSTARD_PLUS_PLUS.files,
    media=MUSTARD_PLUS_PLUS.media,
    num_clips=2,
    expected={"1_S11E03_067_u": {"labels": {"emotion": "happiness", "sarcasm": "sarcastic", "valence_score": 3.0,
                                            "sarcasm_type": "propositional", "arousal_score": 6.0}}},
    needed="mustard++_text.csv",
    bad_label=("mustard++_text.csv", "Happiness", "Hapiness"),
    twice="mustard++_text.csv",
    options={"emotion": "shown"},
)  # fmt: skip

UR_FUNNY = DatasetFixture(
    importer="ur-funny",
    files={
        "data_folds.json": {"train": [12, 7], "dev": [3], "test": [9]},
        "humor_label_sdk.json": {"12": 1, "7": 0, "3": 1, "9": 0},
        "language_sdk.json": {
            "12": {"punchline_sentence": "so we ate it", "context_sentences": ["it was late", "and cold"]},
            "7": {"punchline_sentence": ["that", "is", "all"], "context_sentences": []},
            "3": {"punchline_sentence": "", "context_sentences": []},
        },
    },
    media=("urfunny2_videos/12.mp4", "urfunny2_videos/7.mp4", "urfunny2_videos/3.mp4", "urfunny2_videos/9.mp4"),
    num_clips=4,
    expected={
        "12": {"video": "urfunny2_videos/12.mp4", "text": "it was late and cold so we ate it", "split": "train",
               "labels": {"humor": "humorous"}, "dataset": "ur_funny"},
        "7": {"text": "that is all", "labels": {"humor": "not humorous"}},
        "3": {"split": "val", "text": None},
        "9": {"split": "test", "text": None},
    },
    needed="language_sdk.json",
    bad_label=("humor_label_sdk.json", '"7": 0', '"7": 2'),
)  # fmt: skip
