"""Acted speech, labelled by file names: RAVDESS, CREMA-D, TESS, EmoDB, SAVEE."""

from __future__ import annotations

from dataset_fixture import DatasetFixture

RAVDESS = DatasetFixture(
    importer="ravdess",
    files={"Actor_12/README.txt": "about"},
    media=(
        "Audio_Speech_Actors_01-24/Actor_12/03-01-06-01-02-01-12.wav",
        "Video_Speech_Actor_12/Actor_12/01-01-06-01-02-01-12.mp4",
        "Video_Speech_Actor_12/Actor_12/02-01-06-01-02-01-12.mp4",
        "Audio_Speech_Actors_01-24/Actor_01/03-01-08-02-01-02-01.wav",
        "Audio_Song_Actors_01-24/Actor_01/03-02-03-01-01-01-01.wav",
    ),
    num_clips=2,
    expected={
        "01-06-01-02-01-12": {
            "video": "Video_Speech_Actor_12/Actor_12/01-01-06-01-02-01-12.mp4",
            "audio": "Audio_Speech_Actors_01-24/Actor_12/03-01-06-01-02-01-12.wav",
            "text": "Dogs are sitting by the door.", "labels": {"emotion": "fearful"}, "speaker": "12",
            "dataset": "ravdess", "split": None, "tags": None,
        },
        "01-08-02-01-02-01": {"labels": {"emotion": "surprised"}, "tags": ["strong"], "video": None},
    },
    needed="",
    clips_are_files=True,
    left_out={"another file of a recording": 1, "song (--option channel=…)": 1},
)  # fmt: skip

RAVDESS_SONGS = DatasetFixture(
    importer="ravdess",
    files={"README.txt": "about"},
    media=("Actor_01/03-02-03-01-01-01-01.wav", "Actor_02/01-02-04-02-02-01-02.mp4"),
    num_clips=2,
    expected={
        "02-03-01-01-01-01": {"audio": "Actor_01/03-02-03-01-01-01-01.wav", "tags": ["song"]},
        "02-04-02-02-01-02": {"labels": {"emotion": "sad"}, "tags": ["strong", "song"], "speaker": "02"},
    },
    needed="",
    clips_are_files=True,
    options={"channel": "song"},
)

CREMA_D = DatasetFixture(
    importer="crema-d",
    files={"README.md": "about"},
    media=("AudioWAV/1001_DFA_ANG_XX.wav", "AudioMP3/1001_DFA_ANG_XX.mp3", "VideoFlash/1001_DFA_ANG_XX.flv",
           "AudioWAV/1001_IEO_HAP_LO.wav", "AudioWAV/1040_ITH_SAD_X.wav"),
    num_clips=3,
    expected={
        "1001_DFA_ANG_XX": {"audio": "AudioWAV/1001_DFA_ANG_XX.wav", "video": "VideoFlash/1001_DFA_ANG_XX.flv",
                            "text": "Don't forget a jacket.", "labels": {"emotion": "anger"}, "speaker": "1001",
                            "dataset": "crema_d", "tags": None},
        "1001_IEO_HAP_LO": {"labels": {"emotion": "happy"}, "tags": ["low"], "text": "It's eleven o'clock."},
        "1040_ITH_SAD_X": {"labels": {"emotion": "sad"}, "tags": None},
    },
    needed="",
    clips_are_files=True,
    left_out={"another file of a recording": 1},
)  # fmt: skip

VOTES = [
    ["", "FileName", "VoiceVote", "VoiceLevel", "FaceVote", "FaceLevel", "MultiModalVote", "MultiModalLevel"],
    ["1", "1001_DFA_ANG_XX", "N", "69.1", "A", "92.22", "A", "64.78"],
    ["2", "1001_IEO_HAP_LO", "N", "71.67", "H", "57", "H:N", "57.38:50.00"],
    ["3", "1002_IEO_SAD_HI", "S", "71.67", "D", "57", "D", "57.38"],
]

CREMA_D_VOTES = DatasetFixture(
    importer="crema-d",
    files={"data/InfoAndStats/processedResults/summaryTable.csv": VOTES},
    media=("AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1001_IEO_HAP_LO.wav", "AudioWAV/1002_IEO_SAD_HI.wav",
           "AudioWAV/1003_IEO_SAD_HI.wav"),
    num_clips=2,
    expected={
        "1001_DFA_ANG_XX": {"labels": {"emotion": "anger"}},
        "1002_IEO_SAD_HI": {"labels": {"emotion": "disgust"}, "tags": ["high"]},
    },
    needed="data/InfoAndStats/processedResults/summaryTable.csv",
    clips_are_files=True,
    bad_label=("data/InfoAndStats/processedResults/summaryTable.csv", "D", "Q"),
    left_out={"the raters did not agree": 1, "no vote": 1},
    options={"labels": "both"},
)  # fmt: skip

TESS = DatasetFixture(
    importer="tess",
    files={"LICENCE.txt": "about"},
    media=("OAF_angry/OAF_back_angry.wav", "OAF_neutral/OA_bite_neutral.wav",
           "YAF_pleasant_surprised/YAF_food_ps.wav", "YAF_sad/notes.wav"),
    num_clips=3,
    expected={
        "OAF_back_angry": {"audio": "OAF_angry/OAF_back_angry.wav", "text": "Say the word back.", "speaker": "OAF",
                           "labels": {"emotion": "angry"}, "dataset": "tess"},
        "OA_bite_neutral": {"speaker": "OAF", "labels": {"emotion": "neutral"}},
        "YAF_food_ps": {"speaker": "YAF", "labels": {"emotion": "pleasant surprise"}},
    },
    needed="",
    clips_are_files=True,
    left_out={"no file name such as OAF_back_angry": 1},
)  # fmt: skip

EMODB = DatasetFixture(
    importer="emodb",
    files={"erkennung.txt": "about"},
    media=("wav/03a01Fa.wav", "wav/16b10Td.wav", "wav/08a05Nb.wav"),
    num_clips=3,
    expected={
        "03a01Fa": {"audio": "wav/03a01Fa.wav", "text": "Der Lappen liegt auf dem Eisschrank.", "speaker": "03",
                    "labels": {"emotion": "happiness"}, "dataset": "emodb"},
        "16b10Td": {"labels": {"emotion": "sadness"}, "speaker": "16"},
    },
    needed="",
    clips_are_files=True,
)  # fmt: skip

SAVEE = DatasetFixture(
    importer="savee",
    files={"Info.txt": "about"},
    media=("AudioData/DC/a01.wav", "AudioVisualClip/DC/a1.avi", "AudioData/KL/sa12.wav", "ALL/JE_su15.wav"),
    num_clips=3,
    expected={
        "DC_a01": {"audio": "AudioData/DC/a01.wav", "video": "AudioVisualClip/DC/a1.avi", "speaker": "DC",
                   "labels": {"emotion": "anger"}, "text": None, "dataset": "savee"},
        "KL_sa12": {"labels": {"emotion": "sadness"}, "speaker": "KL"},
        "JE_su15": {"labels": {"emotion": "surprise"}, "speaker": "JE"},
    },
    needed="",
    clips_are_files=True,
)  # fmt: skip
