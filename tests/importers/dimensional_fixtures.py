"""Numbers for valence and arousal: OMG-Emotion, MSP-Podcast."""

from __future__ import annotations

from dataset_fixture import DatasetFixture, Rows

OMG_HEADER = ["link", "start", "end", "video", "utterance", "arousal", "valence", "EmotionMaxVote"]
LINK = "https://www.youtube.com/watch?v="


def _omg(*rows: tuple[object, ...]) -> Rows:
    return [OMG_HEADER, *([LINK + str(link), *cells] for link, *cells in rows)]


OMG_EMOTION = DatasetFixture(
    importer="omg-emotion",
    files={
        "omg_TrainVideos.csv": _omg(("CROcsl0lIec", 15.41, 19.68, "5b44393ed", "utterance_4.mp4", 0.17, -0.02, 4),
                                    ("CROcsl0lIec", 21.25, 36.79, "5b44393ed", "utterance_6.mp4", "0.41", 0.29, 3)),
        "omg_ValidationVideos.csv": _omg(("xf-vvbTlR38", 0.0, 4.5, "74de88564", "utterance_1.mp4", 0.3, 0.5, 6)),
        "omg_TestVideos_WithLabels.csv": _omg(("_bg0TrqHcBs", 1.5, 9.5, "1f61459b0", "utterance_1.mp4", 0.4, -0.6, 0),
                                              ("_bg0TrqHcBs", 9.5, 11, "1f61459b0", "utterance_2.mp4", 0.4, -0.6, "")),
        "omg_TrainTranscripts.csv": [["link", "video", "utterance", "transcript"],
                                     [LINK + "CROcsl0lIec", "5b44393ed", "utterance_4.mp4", "do it "],
                                     [LINK + "CROcsl0lIec", "5b44393ed", "utterance_6.mp4", ""]],
    },
    media=("clips/5b44393ed/utterance_4.mp4", "clips/5b44393ed/utterance_6.mp4", "clips/74de88564/utterance_1.mp4",
           "youtube/_bg0TrqHcBs.mp4"),
    num_clips=5,
    expected={
        "5b44393ed_utterance_4": {
            "video": "clips/5b44393ed/utterance_4.mp4", "text": "do it", "split": "train", "dataset": "omg_emotion",
            "labels": {"emotion": "neutral", "arousal_score": 0.17, "valence_score": -0.02},
            "speaker": "CROcsl0lIec", "dialogue": "5b44393ed", "start_s": None, "end_s": None,
        },
        "5b44393ed_utterance_6": {"text": None},
        "74de88564_utterance_1": {"split": "val", "speaker": "xf-vvbTlR38"},
        "1f61459b0_utterance_1": {"video": "youtube/_bg0TrqHcBs.mp4", "split": "test", "start_s": 1.5, "end_s": 9.5},
        "1f61459b0_utterance_2": {"labels": {"arousal_score": 0.4, "valence_score": -0.6}, "end_s": 11.0},
    },
    needed="omg_ValidationVideos.csv",
    bad_label=("omg_TrainVideos.csv", "0.41", "1.41"),
    twice="omg_TrainVideos.csv",
)  # fmt: skip

MSP_HEADER = ["FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set"]

MSP_PODCAST = DatasetFixture(
    importer="msp-podcast",
    files={
        "Labels/labels_consensus.csv": [
            MSP_HEADER,
            ["MSP-PODCAST_0001_0008.wav", "N", "2.2", "4.0", "2.6", "30", "Male", "Test1"],
            ["MSP-PODCAST_0001_0009.wav", "X", "3.777778", "3.555556", "3.777778", "39", "Male", "Train"],
            ["MSP-PODCAST_0002_0001.wav", "C", "5", "2", "5", "Unknown", "Unknown", "Development"],
        ],
        "Transcripts/MSP-PODCAST_0001_0008.txt": "Well, I never\nsaid that.\n",
    },
    media=("Audios/MSP-PODCAST_0001_0008.wav", "Audios/MSP-PODCAST_0001_0009.wav", "Audios/MSP-PODCAST_0002_0001.wav"),
    num_clips=3,
    expected={
        "MSP-PODCAST_0001_0008": {
            "audio": "Audios/MSP-PODCAST_0001_0008.wav", "text": "Well, I never said that.", "split": "test1",
            "labels": {"emotion": "neutral", "arousal_score": 2.2, "valence_score": 4.0, "dominance_score": 2.6},
            "speaker": "30", "dataset": "msp_podcast",
        },
        "MSP-PODCAST_0001_0009": {
            "labels": {"arousal_score": 3.777778, "valence_score": 3.555556, "dominance_score": 3.777778},
            "split": "train", "text": None,
        },
        "MSP-PODCAST_0002_0001": {"speaker": None, "split": "val"},
    },
    needed="Labels/labels_consensus.csv",
    bad_label=("Labels/labels_consensus.csv", "C", "Z"),
    twice="Labels/labels_consensus.csv",
)  # fmt: skip
