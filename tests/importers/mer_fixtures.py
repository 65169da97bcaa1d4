"""The MER challenges and what was made of their clips: EMER, OV-MERD, MER-Caption+, MERR, EmoPrefer."""

from __future__ import annotations

from dataset_fixture import DatasetFixture

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
    files={
        "ovlabel.csv": [["name", "openset"], ["sample_00000007", "[happy, proud]"]],
        "subtitle.csv": [["name", "english"], ["sample_00000007", "Look!"]],
    },
    media=("video/sample_00000007.mp4",),
    num_clips=1,
    expected={
        "sample_00000007": {
            "labels": {"openset": ["happy", "proud"]},
            "split": "test",
            "text": "Look!",
            "dataset": "ov_merd_plus",
        }
    },
    needed="ovlabel.csv",
)

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

MER2026_TABLES = {
    "track1_train.csv": [["name", "discrete"], ["sample_00000001", "happy"], ["sample_00000002", "worried"]],
    "track1_track2_candidate.csv": [["name"], ["samplenew3_00000009"]],
    "track2_train_human.csv": [["name", "openset"], ["sample_00000001", "happy, at ease"], ["sample_00000002", ""]],
    "track2_train_mercaptionplus.csv": [["name", "openset"], ["sample_00000002", "['sad']"],
                                        ["samplenew_00000004", "['Nervous']"]],
    "track3_emoprefer.csv": [["name", "a1", "a2", "preference"], ["sample_00000001", "She smiles.", "A frown.", "a1"]],
    "track3_emopreferv2.csv": [["name", "a1", "a2", "preference"],
                               ["samplenew_00000004", "Calm.", "Tense.", "same"],
                               ["samplenew_00000004", "Calm.", "Sad,\nand slow.", "a2"],
                               ["samplenew_00000004", "Calm.", "", "a1"]],
    "track3_candidate.csv": [["name", "a1", "a2"], ["samplenew3_00000009", "Glad.", "Sad."]],
    "subtitle_chieng.csv": [["name", "chinese", "english"], ["sample_00000001", "我明白。", "I see."],
                            ["samplenew3_00000009", "走开", "Go away."]],
}  # fmt: skip

MER2026 = DatasetFixture(
    importer="mer2026",
    files=MER2026_TABLES,
    media=("video/video_track1_train/video/sample_00000001.mp4", "video/sample_00000002.mp4",
           "video/samplenew3_00000009.mp4"),
    num_clips=3,
    expected={
        "sample_00000001": {"video": "video/video_track1_train/video/sample_00000001.mp4", "text": "I see.",
                            "split": "train", "dataset": "mer2026", "labels": {"emotion": "happy"}, "mute": None},
        "samplenew3_00000009": {"mute": True, "text": None, "split": "candidate", "labels": None},
    },
    needed="track1_train.csv",
    bad_label=("track1_train.csv", "happy", "hapy"),
    twice="track1_track2_candidate.csv",
)  # fmt: skip

MER2026_LISTENER_ALL = DatasetFixture(
    importer="mer2026",
    files=MER2026_TABLES,
    media=MER2026.media,
    num_clips=3,
    expected={"samplenew3_00000009": {"mute": None, "text": "走开", "split": "candidate"}},
    needed="track1_track2_candidate.csv",
    options={"listener": "all", "language": "chinese"},
)

MER2026_FINE_GRAINED = DatasetFixture(
    importer="mer2026",
    files=MER2026_TABLES,
    media=(*MER2026.media, "video/samplenew_00000004.mp4"),
    num_clips=4,
    expected={
        "sample_00000001": {"labels": {"openset": ["happy", "at ease"]}, "dataset": "mer2026_human", "text": "I see."},
        "sample_00000002": {"labels": {"openset": []}, "dataset": "mer2026_human"},
        "samplenew_00000004": {"labels": {"openset": ["nervous"]}, "dataset": "mer_caption_plus", "split": "train"},
        "samplenew3_00000009": {"mute": None, "text": "Go away.", "labels": None},
    },
    needed="track2_train_human.csv",
    twice="track2_train_mercaptionplus.csv",
    options={"track": "2"},
    left_out={"people named its emotions too": 1},
)

MER2026_PREFERENCES = DatasetFixture(
    importer="mer2026",
    files=MER2026_TABLES,
    media=("video/sample_00000001.mp4", "video/samplenew3_00000009.mp4", "video/samplenew_00000004.mp4"),
    num_clips=4,
    expected={
        "sample_00000001": {"labels": {"preference": "a1"}, "responses": {"a1": "She smiles.", "a2": "A frown."},
                            "dataset": "emoprefer", "split": "train", "text": "I see."},
        "samplenew_00000004": {"labels": {"preference": "same"}, "dialogue": "samplenew_00000004"},
        "samplenew_00000004#2": {"labels": {"preference": "a2"}, "video": "video/samplenew_00000004.mp4",
                                 "responses": {"a1": "Calm.", "a2": "Sad,\nand slow."}, "dataset": "emoprefer_v2"},
        "samplenew3_00000009": {"responses": {"a1": "Glad.", "a2": "Sad."}, "split": "candidate", "labels": None},
    },
    needed="track3_candidate.csv",
    bad_label=("track3_emopreferv2.csv", "same", "sane"),
    twice="track3_candidate.csv",
    options={"track": "3"},
    left_out={"a description is empty": 1},
)  # fmt: skip

EMOPREFER = DatasetFixture(
    importer="emoprefer",
    files={
        "preference_emoprefer.csv": MER2026_TABLES["track3_emoprefer.csv"],
        "preference_emoprefer_reverse.csv": MER2026_TABLES["track3_emoprefer.csv"],
        "preference_emopreferv2.csv": [["name", "a1", "a2", "preference"], ["sample_2", "Calm.", "Tense.", "same"]],
    },
    media=("video/sample_00000001.mp4", "video/sample_2.mp4"),
    num_clips=2,
    expected={
        "sample_00000001": {"labels": {"preference": "a1"}, "split": None, "dataset": "emoprefer"},
        "sample_2": {"labels": {"preference": "same"}, "dataset": "emoprefer_v2"},
    },
    needed="preference_emopreferv2.csv",
    bad_label=("preference_emopreferv2.csv", "same", "both"),
    twice="preference_emopreferv2.csv",
)
