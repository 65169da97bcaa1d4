"""Choose the encoders of a quick run: one of the sound and one of the pictures, as large as the machine carries.

Where the user names no weights: openai/whisper-base and facebook/dinov2-small on a CPU, openai/whisper-large-v3 and
facebook/dinov2-large on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.clips.media_files import media_kind
from featurecache.errors import WriteError
from featurecache.extract.forecast import estimate_features, free_bytes, total_bytes
from featurecache.extract.job import EncoderSettings
from fusion_train.errors import ConfigError

SOUND, PICTURES = "sound", "pictures"
MODALITIES = {SOUND: "audio", PICTURES: "image"}
ENCODERS = {SOUND: ("whisper", "hf-audio"), PICTURES: ("hf-image", "eva-global")}
"""Encoders for which weights may be named, by what they read; the first is the default."""
DEFAULT_WEIGHTS = {
    (SOUND, "cpu"): "openai/whisper-base",
    (SOUND, "cuda"): "openai/whisper-large-v3",
    (PICTURES, "cpu"): "facebook/dinov2-small",
    (PICTURES, "cuda"): "facebook/dinov2-large",
}
SPARE = 1.1
"""Free disk space that is asked for, as a multiple of the bytes to write."""
STORED_DTYPE = "float16"


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder, its weights, and why it was chosen."""

    encoder: str
    weights: str
    reads: str
    """`sound` or `pictures`."""
    why: str


def choose_encoders(files: Sequence[Path], weights: Mapping[str, str], device: str) -> list[EncoderChoice]:
    """Return an encoder of the sound and one of the pictures, as far as the files can have them.

    Args:
        weights: encoder name -> checkpoint, of the user.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: weights of an encoder that is none of `ENCODERS`.
    """
    known = [name for names in ENCODERS.values() for name in names]
    other = [name for name in weights if name not in known]
    if other:
        raise ConfigError(f"--weights {other[0]}=…", expected="an encoder of " + ", ".join(known), got="another")
    kinds = {media_kind(path) for path in files}
    wanted = ([SOUND] if kinds & {"audio", "video"} else []) + ([PICTURES] if kinds & {"image", "video"} else [])
    choices = []
    for reads in wanted:
        named = next((name for name in ENCODERS[reads] if name in weights), None)
        name = named or ENCODERS[reads][0]
        default = DEFAULT_WEIGHTS[reads, device]
        why = "as named" if named else f"what {'a GPU' if device == 'cuda' else 'a CPU'} carries"
        choices.append(EncoderChoice(name, weights[named] if named else default, reads, why))
    return choices


def check_room(choices: Sequence[EncoderChoice], num_clips: int, store: Path) -> None:
    """Read the sizes of the encoders and compare the bytes of their features with the free space.

    Raises:
        WeightsError: weights that cannot be reached, or of another family.
        WriteError: too little space.
    """
    settings = {choice.encoder: EncoderSettings(choice.encoder, choice.weights) for choice in choices}
    needed = total_bytes(estimate_features(settings, num_clips, {}, stored_dtype=STORED_DTYPE))
    free = free_bytes(str(store))
    if free is not None and needed * SPARE > free:
        raise WriteError(
            str(store),
            expected=f"{needed * SPARE / 1e9:.1f} GB of free space for the features of {num_clips} clips",
            got=f"{free / 1e9:.1f} GB",
            next_step="Free some, or name a folder on another disk: --out DIR.",
        )
