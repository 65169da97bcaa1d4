"""Language models that rate or read answers: a server with OpenAI's protocol, or a local causal LM; temperature 0.

`http://host:port/v1#MODEL` names a server and its model; anything else is a folder or hub id for transformers. Replies
are kept as JSON Lines with the model and the hash of the prompt; a prompt that was answered before is not asked again.
`ModelJudge` rates how far a description agrees with its reference; `extract_labels` reads labels out of free text. The
prompts are this project's own. The name of a judge contains their hash, because another prompt is another judge.
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
import urllib.request
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fusion_train.errors import ModelError
from fusion_train.evaluation.append_only import AppendedLines, read_lines
from fusion_train.metrics.negation import is_negated
from fusion_train.metrics.overlap import Kind
from fusion_train.prompts.encoding_text import PromptText, encode_text

MAX_REPLY_TOKENS = 512
TIMEOUT_S = 300
PROMPT_PLACEHOLDER = "the-prompt-stands-here"
"""Stands for the prompt while a chat template is filled in."""


class TextModel(Protocol):
    """A language model that replies to one prompt, deterministically as far as the model allows."""

    name: str

    def reply(self, prompt: str) -> str: ...


class ServedModel:
    """A model served at `/chat/completions`."""

    def __init__(self, address: str, model: str, key_file: Path | None = None) -> None:
        self.name = model
        self._url = address.rstrip("/") + "/chat/completions"
        self._key = key_file.read_text().strip() if key_file else None

    def reply(self, prompt: str) -> str:
        """Return the reply of the server.

        Raises:
            ModelError: the server cannot be reached, refuses, or replies in another form.
        """
        body = {
            "model": self.name,
            "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
            "seed": 0,
            "messages": [{"role": "user", "content": prompt}],
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                document = json.loads(response.read())
            return str(document["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            detail = error.read(300).decode(errors="replace")
            raise ModelError(self._url, expected="an answer", got=f"{error.code} {error.reason}: {detail}") from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise ModelError(self._url, expected="a server", got=str(error)) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ModelError(self._url, expected="a chat completion", got=f"{type(error).__name__}: {error}") from error


class LocalModel:
    """A causal language model of transformers, decoding greedily."""

    def __init__(self, place: str) -> None:
        self._place = place
        self.name = Path(place).name if Path(place).exists() else place

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from fusion_train.llm.loading import load_llm, load_tokenizer
        from fusion_train.processes import this_process

        device = this_process().device
        model = load_llm(self._place, "float32" if device.type == "cpu" else "bfloat16")
        return load_tokenizer(self._place), model.to(device).eval()

    def reply(self, prompt: str) -> str:
        """Return the greedy continuation of the prompt."""
        import torch

        tokenizer, model = self._loaded
        ids = torch.tensor([chat_ids(tokenizer, prompt)], device=model.device)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=MAX_REPLY_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the token ids of one request; text that the prompt quotes from clips and answers gives no control tokens.

    Raises:
        ModelError: a chat template that leaves out the message of the user.
    """
    if not getattr(tokenizer, "chat_template", None):
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return begin + encode_text(tokenizer, prompt)
    messages = [{"role": "user", "content": PROMPT_PLACEHOLDER}]
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    before, placeholder, after = whole.partition(PROMPT_PLACEHOLDER)
    if not placeholder:
        raise ModelError("chat template", expected="the words of the user in it", got="a template without them")
    text = PromptText.template(before) + PromptText.external(prompt) + PromptText.template(after)
    return encode_text(tokenizer, text)


def open_text_model(place: str, key_file: Path | None = None) -> TextModel:
    """Open the model of a server (`http://host:port/v1#MODEL`) or a local one.

    Raises:
        ModelError: the address of a server without the name of a model.
    """
    if not place.startswith(("http://", "https://")):
        return LocalModel(place)
    address, _, model = place.partition("#")
    if not model:
        raise ModelError(place, expected="http://host:port/v1#MODEL", got="no model")
    return ServedModel(address, model, key_file)


class Replies:
    """A language model with a file of its raw replies; use it as a context manager."""

    def __init__(self, model: TextModel, path: Path) -> None:
        self.model, self.path = model, path
        self._lines = AppendedLines(path)
        self._known = {(row["model"], row["prompt_sha256"]): row["reply"] for row in read_lines(path, torn=True)}

    def ask(self, purpose: str, clip_id: str, prompt: str) -> str:
        """Return the reply to a prompt, from the file if it is there.

        Args:
            purpose, clip_id: recorded with the reply.
        """
        digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        key = (self.model.name, digest)
        if key not in self._known:
            reply = self.model.reply(prompt)
            row = {
                "purpose": purpose,
                "id": clip_id,
                "model": self.model.name,
                "temperature": 0,
                "prompt_sha256": digest,
                "reply": reply,
            }
            self._lines.append([row])
            self._known[key] = reply
        return self._known[key]

    def __enter__(self) -> Replies:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.__exit__(*error)


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
    """A language model as a judge; it rates from 1 to 10."""

    highest = 10.0
    """The best rating."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        digest = hashlib.sha256("".join(RATING_PROMPTS.values()).encode()).hexdigest()[:12]
        self.name = f"{replies.model.name} with prompts {digest}"

    def rate(self, kind: Kind, clip_id: str, reference: str, prediction: str) -> float | None:
        """Return the rating of a description; None if the reply does not give exactly one."""
        prompt = _fill(RATING_PROMPTS[kind], reference=reference, prediction=prediction)
        return read_rating(self._replies.ask(f"{kind} overlap", clip_id, prompt))


def read_rating(reply: str) -> float | None:
    """Return the number from 1 to 10 in a reply, ignoring negated ones; None if there is no number or several."""
    ratings = {float(match[1]) for match in _RATING.finditer(reply) if not is_negated(reply, match.start())}
    return ratings.pop() if len(ratings) == 1 else None


def extract_labels(replies: Replies, clip_id: str, prediction: str) -> str:
    """Return the labels that a free text names, as a list that the list parser can read."""
    return replies.ask("labels", clip_id, _fill(EXTRACTION_PROMPT, prediction=prediction)).strip()


def _fill(template: str, **values: str) -> str:
    """Fill in all values in one pass, so that braces inside a value stay text."""
    return re.sub(r"\{(\w+)\}", lambda place: values[place.group(1)], template)
