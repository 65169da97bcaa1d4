"""Whether the Hugging Face hub answers: asked once per process, since its library retries for half a minute.

Without an answer, files that were fetched earlier are read from the hub's cache, and others are an error at once.
"""

from __future__ import annotations

import functools
import http.client
import ssl
import threading
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

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
