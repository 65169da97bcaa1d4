"""The sets of MMEVerse: folder, columns of labels and subtitles, vocabulary. They lie as the released
readers expect them.

Source: arXiv 2601.16449 and the released readers. MMEVerse keeps each dataset's own labels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from featurecache.importers import bold, caer, dfew, e3, iemocap, mafw, mc_eiu, meld, mer2023, mmsa
from featurecache.importers.findings import Vocabulary


@dataclass(frozen=True, eq=False)
class MmeverseSet:
    """One set of the packaging."""

    dataset: str
    folders: tuple[str, ...]
    labels: tuple[tuple[Vocabulary, tuple[str, ...]], ...]
    """(vocabulary, columns): the first column with a value counts."""
    text: str
    """Column of the subtitle."""
    text_of_tests: str = ""
    """The same where the split is not train."""
    scores: tuple[str, ...] = ()
    """Columns of a sentiment's number."""
    clip_column: str = ""
    """Column that is part of an id."""
    mode: str = "mode"
    """Column of the split; without a value there, a clip is of the test split."""
    dialogue: str = ""
    """Pattern of an id; its groups are what clips of one dialogue or one video have in common."""
    thinks: tuple[tuple[str, str], ...] = (("emotion", "gpt-4o-mini_Emotion"),)
    """(label task, column of the text that argues for it and concludes with it)."""
    reasons: tuple[str, ...] | None = None
    """Label tasks whose text is a reason too; None: those of `thinks`."""
    id_digits: int = 0
    """Digits that an id of digits alone is filled up to."""

    def dialogue_of(self, clip_id: str) -> str | None:
        match = re.match(self.dialogue, clip_id) if self.dialogue else None
        return None if match is None else "".join(group or "" for group in match.groups())

    @property
    def free_text(self) -> tuple[str, ...]:
        """Columns of texts that are taken byte for byte."""
        texts = (self.text, self.text_of_tests, *(column for _, column in self.thinks), *AUDIO, *IMAGE, PERSON)
        return tuple(name for name in texts if name)


AUDIO = ("response_AudioReasoner", "response_Qwen2Audio")
IMAGE = ("response_Qwen25vl_72B",)
PERSON = "person"
SENTIMENT = (("sentiment", "gpt-4o-mini_Sentiment"),)
OPENSET = Vocabulary("openset", ())
MULTI_LABEL_BOLD = Vocabulary("multi-label", bold.CATEGORIES)
IEMOCAP = Vocabulary(
    "emotion", tuple(iemocap.NAMES.values()), {"excitement": "excited", "frustrated": "frustration", **iemocap.NAMES}
)
SCORES = ("val", "label", "score", "sentiment_score")
UP_TO_LAST_PART = r"(.+)_[^_]+$"


def plain_name(name: str) -> str:
    """A folder's or dataset's name as it is compared: `CH-SIMS_v2_s` and `ch_sims_v2_s` are one."""
    return re.sub(r"[-_ .]", "", name.lower().replace("+", "plus"))


def _set(dataset: str, folders: str, text: str, *labels: tuple[Vocabulary, str], **rest: object) -> MmeverseSet:
    """A set; folders and columns are words of a text."""
    columns = tuple((vocabulary, tuple(names.split())) for vocabulary, names in labels)
    return MmeverseSet(dataset, tuple(folders.split()), columns, text, **rest)  # type: ignore[arg-type]


SETS = (
    _set("mer2023", "MER2023", "english", (mer2023.EMOTIONS, "emotion_label"), text_of_tests="chinese",
         mode="MER2023_mode"),
    _set("mer2024", "MER2024 MER2024-SEMI", "english", (mer2023.EMOTIONS, "emotion_label"), text_of_tests="chinese",
         mode="MER2024_mode"),
    _set("caer", "CAER", "text_whisper", (caer.EMOTIONS, "emotion_label")),
    _set("dfew", "DFEW", "sentence", (dfew.EMOTIONS, "label")),
    _set("mc_eiu", "MC-EIU", "Subtitle", (mc_eiu.EMOTIONS, "emotion"), (mc_eiu.INTENTS, "intent"),
         dialogue=r"(dia_\d+)_utt_\d+(_ch)?$", thinks=(("intent", "gpt-4o-mini_intent"),)),
    _set("mafw", "MAFW", "text_whisper", (mafw.EMOTIONS, "single_label"), (mafw.MULTIPLE, "multi_label"), id_digits=5,
         thinks=(("emotion", "gpt-4o-mini_Single"), ("multi-label", "gpt-4o-mini_Multi")), reasons=("emotion",)),
    _set("bold", "BOLD", "text_whisper", (MULTI_LABEL_BOLD, "Emotion_label"), dialogue=r"(.+)_\d+_\d+$",
         thinks=(("multi-label", "gpt-4o-mini_Emotion"),)),
    _set("e3", "E3", "conversation", (e3.EMOTIONS, "emotion"), dialogue=UP_TO_LAST_PART),
    _set("iemocap", "IEMOCAP", "text", (IEMOCAP, "official_label"), mode="session", dialogue=UP_TO_LAST_PART),
    _set("ch_sims_v2_s", "CH-SIMS_v2_s CH-SIMS-v2", "text", (mmsa.SENTIMENTS, "annotation"), scores=SCORES,
         dialogue=UP_TO_LAST_PART, thinks=SENTIMENT),
    _set("ch_sims", "CH-SIMS SIMS", "english", (mmsa.SENTIMENTS, "annotation val_label"), scores=SCORES,
         dialogue=UP_TO_LAST_PART, thinks=SENTIMENT),
    _set("cmu_mosei", "CMU-MOSEI", "text", (mmsa.SENTIMENTS, "sentiment_label"), scores=SCORES, clip_column="clip_id",
         dialogue=UP_TO_LAST_PART, thinks=SENTIMENT),
    _set("cmu_mosi", "CMU-MOSI", "text", (mmsa.SENTIMENTS, "sentiment_label"), scores=SCORES, dialogue=UP_TO_LAST_PART,
         thinks=SENTIMENT),
    _set("meld", "MELD", "text", (meld.EMOTIONS, "Emotion"), (meld.SENTIMENTS, "Sentiment"),
         dialogue=r"(.*dia_?\d+)_utt_?\d+$", thinks=(("emotion", "gpt-4o-mini_Emotion"), *SENTIMENT)),
    _set("ov_merd_plus", "OV-MERD+ OV-MERD-plus", "sentence", (OPENSET, "openset ovlabel")),
)  # fmt: skip
