"""Whether the Hugging Face hub answers: asked once per process, since its library retries for half a minute.

Without an answer, files that were fetched earlier are read from the hub's cache, and others are an error at once. This
module imports neither torch nor transformers, so that an unreachable hub is reported before these are imported.
"""

from __future__ import annotations

import functools
import http.client
import ssl
import threading
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from featurecache.errors import WeightsError

PUBLISHED = {
    "whisper": "openai/whisper-large-v3",
    "eva-global": "Salesforce/blip2-opt-2.7b",
    "eva-temporal": "Salesforce/blip2-opt-2.7b",
    "hf-audio": "facebook/hubert-large-ls960-ft",
    "hf-image": "openai/clip-vit-large-patch14",
    "hf-video": "MCG-NJU/videomae-large",
}
"""Encoder -> hub id that it loads if the user names no weights."""
ANSWER_S = 4.0
"""Time for an answer to the first request, name resolution and proxy included."""


def hub_answers() -> bool:
    """Return whether the hub answers within `ANSWER_S`; False where the user set HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


def way_out(option: str) -> str:
    """Return the next step of an error about weights that cannot be fetched; `option` names them, up to the value."""
    return (
        f"Name a local copy with config.json and *.safetensors ({option}FOLDER) or another model ({option}OWNER/NAME),"
        " or connect and, if the model is gated, log in with `hf auth login`."
    )


def is_hub_id(place: str) -> bool:
    """Return whether a checkpoint is meant as OWNER/NAME of the hub, and not as a path; a folder of that name wins."""
    return not looks_local(place) and not Path(place).expanduser().exists()


def looks_local(place: str) -> bool:
    """Return whether a checkpoint is named as a path."""
    return place.startswith((".", "/", "~")) or place.count("/") != 1


def within_reach(hub_id: str) -> bool:
    """Return whether a model was fetched before, or the hub answers."""
    from huggingface_hub import try_to_load_from_cache

    try:
        fetched = isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
    except ValueError:  # no valid id; transformers says why
        return True
    return fetched or hub_answers()


def refuse_unreachable(encoder: str, weights: str | None) -> None:
    """Check that the weights of one of `PUBLISHED` can be read, before seconds of imports.

    Raises:
        WeightsError: they are on a hub that does not answer, and were not fetched before.
    """
    place = weights or PUBLISHED.get(encoder)
    if encoder in PUBLISHED and place is not None and is_hub_id(place) and not within_reach(place):
        raise unfetched(encoder, place, no_answer())


def unfetched(encoder: str, weights: str, got: str) -> WeightsError:
    """Return the error about an encoder's weights that the hub does not give."""
    return WeightsError(
        f'{encoder}: weights "{weights}"',
        expected="a folder, or a model of the hub that can be fetched",
        got=got,
        next_step=way_out(f"--weights {encoder}="),
    )


def no_answer() -> str:
    """Return the words for a hub that did not answer."""
    from huggingface_hub import constants

    place = constants.ENDPOINT.partition("://")[2]
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"no answer from {place} in {ANSWER_S:g} s"


@functools.cache
def _answers(endpoint: str) -> bool:
    answered = []

    def ask() -> None:
        try:
            urlopen(Request(endpoint, method="HEAD"), timeout=ANSWER_S).close()
        except (HTTPError, http.client.HTTPException):
            pass  # an answer, although one of another kind
        except URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # the hub's library may trust other certificates
                return
        except OSError:
            return
        answered.append(True)

    # Name resolution has no time limit of its own, so a thread waits for it.
    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return bool(answered)
