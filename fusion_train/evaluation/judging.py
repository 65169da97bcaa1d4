"""What language models are asked about answers: how far they agree with a reference, which labels they name.

The prompts are the project's own; their hash stands in the judge's name, since another wording is another judge.
"""

from __future__ import annotations

import hashlib
import re

from fusion_train.evaluation.text_models import Replies
from fusion_train.metrics.negation import is_negated
from fusion_train.metrics.overlap import Kind

RATING_PROMPTS: dict[Kind, str] = {
    "clue": (
        "Two descriptions of the same video clip follow, each between three quotation marks.\n"
        'Reference: """{reference}"""\nDescription: """{prediction}"""\n'
        "How many of the clues to the person's emotion that the reference names (face, gesture, voice, words,"
        " situation) does the description name too? Rate from 1 (none) to 10 (all). Answer with the number alone."
    ),
    "label": (
        "Two descriptions of the same video clip follow, each between three quotation marks.\n"
        'Reference: """{reference}"""\nDescription: """{prediction}"""\n'
        "How far do the emotions that the two conclude agree? Rate from 1 (not at all) to 10 (the same emotions)."
        " Answer with the number alone."
    ),
}
EXTRACTION_PROMPT = (
    "Which emotions does the following text ascribe to the person? Name them as single words or short phrases, with"
    " commas between, and nothing else. Answer [] where it ascribes none.\n"
    'Text: """{prediction}"""'
)
_RATING = re.compile(r"(?<![\d.])(10|[1-9])(?:\s*/\s*10)?(?![\d.]\d|\d)")


class ModelJudge:
    """Rates from 1 to 10 by a language model."""

    highest = 10.0

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        digest = hashlib.sha256("".join(RATING_PROMPTS.values()).encode()).hexdigest()[:12]
        self.name = f"{replies.model.name} with prompts {digest}"

    def rate(self, kind: Kind, clip_id: str, reference: str, prediction: str) -> float | None:
        prompt = _fill(RATING_PROMPTS[kind], reference=reference, prediction=prediction)
        return read_rating(self._replies.ask(f"{kind} overlap", clip_id, prompt))


def read_rating(reply: str) -> float | None:
    """The number from 1 to 10 that a reply gives, not one that it negates; None for none or several."""
    found = {float(match[1]) for match in _RATING.finditer(reply) if not is_negated(reply, match.start())}
    return found.pop() if len(found) == 1 else None


def extract_labels(replies: Replies, clip_id: str, prediction: str) -> str:
    """The labels that a free text names, as a list that the list parser reads."""
    return replies.ask("labels", clip_id, _fill(EXTRACTION_PROMPT, prediction=prediction)).strip()


def _fill(template: str, **values: str) -> str:
    """Put texts into their places in one pass, so that braces inside them are text."""
    return re.sub(r"\{(\w+)\}", lambda place: values[place.group(1)], template)
