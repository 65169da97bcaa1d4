"""Language models that answer a prompt: a server that speaks OpenAI's protocol, or a local causal LM; temperature 0.

`http://host:port/v1#MODEL` names a server and its model, anything else a folder or hub id for transformers. Replies are
kept as JSON lines with the model and the prompt's hash, and a prompt that was answered before is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fusion_train.errors import ModelError
from fusion_train.evaluation.append_only import AppendedLines, read_lines
from fusion_train.prompts.encoding_text import Words, encode_text

MAX_REPLY_TOKENS = 512
TIMEOUT_S = 300
PLACE_OF_PROMPT = "the-prompt-stands-here"


class TextModel(Protocol):
    """Answers one prompt; the same prompt gets the same reply as far as the model allows."""

    name: str

    def reply(self, prompt: str) -> str: ...


class ServedModel:
    """A model behind `/chat/completions`."""

    def __init__(self, address: str, model: str, key_file: Path | None = None) -> None:
        self.name = model
        self._url = address.rstrip("/") + "/chat/completions"
        self._key = key_file.read_text().strip() if key_file else None

    def reply(self, prompt: str) -> str:
        """Raises ModelError where the server cannot be reached, refuses, or answers in another form."""
        asked = {
            "model": self.name,
            "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
            "seed": 0,
            "messages": [{"role": "user", "content": prompt}],
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._url, json.dumps(asked).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                document = json.loads(response.read())
            return str(document["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace")
            raise ModelError(self._url, expected="an answer", got=f"{error.code} {error.reason}: {said}") from error
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
    """Token ids of one request; what the prompt quotes from clips and answers writes no control token.

    Raises:
        ModelError: a chat template that does not show what the user says.
    """
    if not getattr(tokenizer, "chat_template", None):
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return begin + encode_text(tokenizer, prompt)
    said = [{"role": "user", "content": PLACE_OF_PROMPT}]
    whole = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    before, place, after = whole.partition(PLACE_OF_PROMPT)
    if not place:
        raise ModelError("chat template", expected="the words of the user in it", got="a template without them")
    return encode_text(tokenizer, Words.own(before) + Words.outside(prompt) + Words.own(after))


def open_text_model(place: str, key_file: Path | None = None) -> TextModel:
    """Name a server's model (`http://host:port/v1#MODEL`) or a local one.

    Raises:
        ModelError: a server without a model's name.
    """
    if not place.startswith(("http://", "https://")):
        return LocalModel(place)
    address, _, model = place.partition("#")
    if not model:
        raise ModelError(place, expected="http://host:port/v1#MODEL", got="no model")
    return ServedModel(address, model, key_file)


class Replies:
    """A model whose raw replies are kept; use as a context manager."""

    def __init__(self, model: TextModel, path: Path) -> None:
        self.model, self.path = model, path
        self._lines = AppendedLines(path)
        self._known = {(row["model"], row["prompt_sha256"]): row["reply"] for row in read_lines(path, torn=True)}

    def ask(self, purpose: str, clip_id: str, prompt: str) -> str:
        """The reply to a prompt, from the file where it stands there."""
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
