"""One table of many datasets: MMEVerse, and any table."""

from __future__ import annotations

from dataset_fixture import DatasetFixture

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
            "responses": {"audio": ["", "A bright voice."], "image": "A smile.", "reason": "Lips are raised.",
                          "think": "Lips are raised."},
        },
        "mer2023/sample_00000002": {"text": "不", "split": "test1"},
        "meld/train_dia0_utt0": {
            "labels": {"emotion": "joy", "sentiment": "positive"}, "dialogue": "train_dia0",
            "responses": {"reason": {"emotion": "A laugh.", "sentiment": "Warm words."},
                          "think": {"emotion": "A laugh.", "sentiment": "Warm words."}},
        },
        "cmu_mosei/-3g5yACwYnA_10": {"labels": {"sentiment": "positive", "sentiment_score": 1.0}, "split": "test",
                                     "dialogue": "-3g5yACwYnA"},
        "mafw/00007": {"labels": {"emotion": "anger", "multi-label": ["anger", "disgust"]}},
        "e3/0a1b_3": {"labels": {"emotion": "happy"}, "speaker": "0a1b: a woman", "person": "a woman"},
        "e3/0a1b_3#2": {"labels": {"emotion": "shy"}, "video": "E3/video/0a1b_3.mp4", "dialogue": "0a1b"},
        "iemocap/Ses05F_impro01_F000": {"split": "test", "dialogue": "Ses05F_impro01"},
    },
    needed="MAFW/MAFW_merged.csv",
    bad_label=("MER2023/MER2023_merged.csv", "sad", "saad"),
    twice="MELD/MELD_merged.csv",
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
