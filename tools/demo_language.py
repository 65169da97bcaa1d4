"""A tiny Llama that speaks the demo's prompts, and its tokenizer, in the checkpoint layout of Llama-2.

    llama/   LlamaForCausalLM: 2 blocks of 128, 4 heads, and its tokenizer: BPE, byte fallback, <unk> <s> </s> = 0 1 2

The real base has read what a trembling voice and knotted brows mean; this one reads it in half a minute: words for
looks and voices stand, buried in noise, at some places between <Vid> and </Vid>, and the answer follows from them.
What it has never met is a feature of any encoder: that is left to the demo's training.
Shapes: B texts, L text tokens with soft places included, H model width. This module knows no clip and no encoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from demo_cues import EMOTIONS, LOOK_OF, VOICE_OF, sentences
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusion_train.models.token_streams import SOFT_TOKEN
from fusion_train.prompts.prompt import PromptFormat, encode_answer, encode_prompt, find_task

HIDDEN = 128
NUM_BLOCKS = 2
NUM_HEADS = 4
VOCABULARY = 700
NUM_SOFT = 448
SOFT_GROUPS = (64, 256, 64, 64)
"""Soft tokens of fusion, image, video, audio, in the order of the prompt."""
BATCH = 16
SHOWN = 32
"""Soft places filled in a pre-training text; the others are left out, their positions are not."""
EMBEDDING_STD = 0.5  # about what a fresh projector gives for a normalised token
TASKS = ("emotion", "reason", "think")
LOOKS = tuple(dict.fromkeys(LOOK_OF.values()))  # in a fixed order: a set has another in every process
VOICES = tuple(dict.fromkeys(VOICE_OF.values()))


def make_language_model(folder: Path, seed: int, corpus: Sequence[str] = (), num_steps: int = 360) -> float:
    """Write tokenizer and pre-trained model to `folder`; return the last loss on answers, in nats a token."""
    rng = np.random.default_rng([seed, 3])
    tokenizer = make_tokenizer([*corpus, *_sample_texts(rng, 1500)])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=NUM_BLOCKS,
            num_attention_heads=NUM_HEADS,
            num_key_value_heads=NUM_HEADS,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
            tie_word_embeddings=False,
        )
    )
    nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
    loss = pretrain(model, tokenizer, rng, num_steps)
    model.eval().save_pretrained(folder)
    return loss


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train byte-fallback BPE that treats spaces, <s> and unknown characters as Llama-2's tokenizer does."""
    words = Tokenizer(models.BPE())
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # No token spans two words, or a word and its punctuation.
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[A-Za-z]+|▁?[^A-Za-z▁]|▁"), "isolated")
    special = ["<unk>", "<s>", "</s>"]
    octets = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(special) - len(octets), show_progress=False)
    words.train_from_iterator(texts, trainer)
    pairs = [tuple(pair) for pair in json.loads(words.to_str())["model"]["merges"]]
    pieces = sorted(words.get_vocab(), key=words.get_vocab().__getitem__)
    vocabulary = {piece: number for number, piece in enumerate([*special, *octets, *pieces])}
    llama = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    llama.normalizer = words.normalizer
    llama.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    llama.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=llama, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


@dataclass(frozen=True)
class Lesson:
    """One pre-training text: ids with SOFT_TOKEN at soft places, where the answer begins, and what the places show."""

    ids: list[int]
    answer_at: int
    look: str | None
    voice: str | None


def _sample_texts(rng: np.random.Generator, count: int) -> list[str]:
    texts = []
    for number in range(count):
        before, after, answer, *_ = _draw_text(rng, TASKS[number % len(TASKS)])
        texts += [before, after, answer]
    names = " ".join([*LOOKS, *VOICES, *EMOTIONS])
    return texts + [names] * count


def _draw_text(rng: np.random.Generator, task_name: str) -> tuple[str, str, str, str]:
    """Return what stands before the soft places, what stands after, the answer, and the emotion."""
    emotion = str(rng.choice(EMOTIONS))
    said = sentences(emotion, "train", rng)
    task = find_task(task_name)
    before, after = PromptFormat().render(said.subtitle, task, sorted(EMOTIONS))
    answer = {"emotion": emotion, "reason": said.reason, "think": said.think}[task_name]
    return before, after, answer, emotion


def draw_lesson(tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> Lesson:
    """Draw one text; sometimes the look or the voice is not shown, and the answer must guess."""
    before, after, answer, emotion = _draw_text(rng, str(rng.choice(TASKS, p=(0.5, 0.3, 0.2))))
    prompt = encode_prompt(tokenizer, before, SHOWN, after)
    look = LOOK_OF[emotion] if rng.random() > 0.08 else None
    voice = VOICE_OF[emotion] if rng.random() > 0.08 else None
    return Lesson([*prompt, *encode_answer(tokenizer, answer)], len(prompt), look, voice)


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, num_steps: int
) -> float:
    """Train in place; return the mean loss on answers over the last 20 steps, in nats a token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=num_steps, pct_start=0.1)
    cues = {name: tokenizer.encode(name, add_special_tokens=False) for name in (*LOOKS, *VOICES)}
    model.train()
    losses = []
    for _ in range(num_steps):
        lessons = [draw_lesson(tokenizer, rng) for _ in range(BATCH)]
        embeddings, positions, targets, is_answer = _collate(model, lessons, cues, rng)
        logits = model(inputs_embeds=embeddings, position_ids=positions).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), reduction="none")
        # Prompts teach the words, answers the task.
        weight = (targets[:, 1:] >= 0) * torch.where(is_answer[:, 1:], 1.0, 0.1)
        mean = (loss * weight.flatten()).sum() / weight.sum()
        optimizer.zero_grad(set_to_none=True)
        mean.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        answer = is_answer[:, 1:].flatten() & (targets[:, 1:].flatten() >= 0)
        losses.append(float(loss.detach()[answer].mean()))
    return float(np.mean(losses[-20:]))


def _collate(
    model: LlamaForCausalLM, lessons: Sequence[Lesson], cues: dict[str, list[int]], rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return embeddings (B, L, H), positions (B, L), targets (B, L; -100 where nothing is to be said), answer mask."""
    longest = max(len(lesson.ids) for lesson in lessons)
    ids = torch.full((len(lessons), longest), SOFT_TOKEN)
    positions = torch.zeros(len(lessons), longest, dtype=torch.long)
    is_answer = torch.zeros(len(lessons), longest, dtype=torch.bool)
    table = model.get_input_embeddings()
    names = list(cues)
    meanings = torch.stack([table(torch.tensor(cues[name])).mean(0) for name in names])  # [cues, h]
    shown_cue = torch.zeros(len(lessons), longest, dtype=torch.long)
    strength = torch.zeros(len(lessons), longest, 1)
    soft = torch.zeros(len(lessons), longest, 1)
    noise = torch.zeros(len(lessons), longest, HIDDEN)
    for row, lesson in enumerate(lessons):
        ids[row, : len(lesson.ids)] = torch.tensor(lesson.ids)
        is_answer[row, lesson.answer_at : len(lesson.ids)] = True
        first = lesson.ids.index(SOFT_TOKEN)
        shown = np.sort(rng.choice(NUM_SOFT, SHOWN, replace=False))
        place = np.concatenate([np.arange(first), first + shown, np.arange(longest - first - SHOWN) + first + NUM_SOFT])
        positions[row] = torch.from_numpy(place)
        soft[row, first : first + SHOWN] = 1
        spread = torch.from_numpy(rng.uniform(0.1, 1.0, (SHOWN, 1)) * rng.standard_normal((SHOWN, HIDDEN)))
        noise[row, first : first + SHOWN] = spread.float()
        fusion, _image, video, _all = np.cumsum(SOFT_GROUPS)
        density = rng.uniform(0.15, 1.0)
        for k in range(SHOWN):
            heard = shown[k] >= video or (shown[k] < fusion and rng.random() < 0.5)
            cue = lesson.voice if heard else lesson.look
            if cue and rng.random() < density:
                shown_cue[row, first + k] = names.index(cue)
                strength[row, first + k] = rng.uniform(0.3, 1.5)
    text = table(ids.clamp(min=0)) * (1 - soft)
    targets = torch.where(ids == SOFT_TOKEN, -100, ids)
    # Not meanings[shown_cue]: its gradient adds up in another order with every run, where there are several threads.
    shown_meanings = nn.functional.embedding(shown_cue, meanings)
    return text + strength * shown_meanings + noise, positions, targets, is_answer
