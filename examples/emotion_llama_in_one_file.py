"""Emotion-LLaMAv2 in one file: train on cached features in two stages, then answer.

    audio (b, 64, 1280) ──┬─────────────────────────── projector ─> 64 ──┐
    video (b, 64, 1408) ──┼─────────────────────────── projector ─> 64 ──┤
    image (b, 1025, 1408) ┼─ patches ───────────────── projector ─> 256 ─┼> [fusion][image][video][audio] (b, 448, 4096)
                          └─ CLS × 64 ─ Conv-Attention projector ─> 64 ──┘

  <s>[INST] <Vid>{448 soft tokens}</Vid> The person in video says: {text}.  [{task}] {instruction}  [/INST]{answer}</s>

The encoders are frozen and have run before: `fcache extract` keeps their tokens. The language model is frozen too.
Trained are Conv-Attention, four projectors, and LoRA on queries and values: 71,536,387 parameters for LLaMA2-7B.

    python emotion_llama_in_one_file.py clips.jsonl features.zarr LLAMA_FOLDER OUT_FOLDER [--steps 300 --lr 3e-3 …]

Shapes: b = 1 clip, k tokens of width d per modality, l tokens of the prompt, a of the answer, h width of the language
model, v vocabulary. Source: arXiv 2601.16449. Left out: datasets drawn by weight, samples packed into a row, resuming,
scores. A test trains this file and `fusion_train` side by side: in fp32 on a CPU, all weights are equal to the bit.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from featurecache import open_store


@dataclass(frozen=True)
class Settings:
    """The published recipe; every field is an option of the command line."""

    seed: int = 0
    steps: int = 50_000  # per stage
    batch_size: int = 4  # samples per step
    lr: float = 1e-4
    low_lr: float = 1e-6  # where the warm-up begins and the cosine ends
    warmup_steps: int = 1_000
    weight_decay: float = 0.05
    fusion_hidden: int = 512
    fusion_width: int = 128
    fusion_out: int = 256
    fusion_dropout: float = 0.1
    lora_r: int = 64
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    dtype: str = "float16" if torch.cuda.is_available() else "float32"  # of frozen weights; trained ones are float32


FEATURES = {"audio": "whisper", "image": "eva-global", "video": "eva-temporal"}  # modality -> name in the store
PATCHES = 4  # neighbours in raster order that become one soft token
MAX_TEXT_WORDS, MAX_ANSWER_TOKENS, MAX_NEW_TOKENS = 200, 1024, 200
TASKS = {  # task -> (instruction, modalities that the model is shown)
    "emotion": ("Which emotion does the person show? Answer with one of: {labels}.", tuple(FEATURES)),
    "audio": ("Describe how the voice sounds.", ("audio",)),
    "image": ("Describe the face in the picture.", ("image",)),
    "reason": ("Which emotion does the person show, and what in face, voice and words tells it?", tuple(FEATURES)),
    "think": ("Weigh face, voice and words step by step, then name the emotion, one of: {labels}.", tuple(FEATURES)),
}
STAGES = {  # stage -> (tasks, sentence about the subtitle)
    "perception": (("emotion", "audio", "image"), " The person in video says: {text}."),
    "cognition": (("emotion", "audio", "image", "reason", "think"), " The person in video says: {text}"),
}


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """Return the 63-bit seed of one random choice. Each has its own: no step depends on how many came before."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def shuffled(count: int, seed: int, purpose: str, number: int) -> np.ndarray:
    """Return the numbers 0 … count - 1 in a random order."""
    return np.random.Generator(np.random.Philox(key=derive(seed, purpose, number))).permutation(count)


def answer_of(clip: dict[str, Any], task: str) -> str:
    """Return the answer that the clip list gives to a task; "" where it gives none."""
    label, response = clip["labels"]["emotion"], clip.get("responses", {}).get(task, "").strip()
    if task == "think" and response and "<answer>" not in response:
        return f"<think>{response}</think><answer>{label}</answer>"
    return label if task == "emotion" else response


class Sample(NamedTuple):
    before: Tensor  # [b, l1] token ids of the prompt before the soft tokens
    after: Tensor  # [b, l2] token ids of the prompt after them
    answer: Tensor  # [b, a] token ids of the answer and of its end
    features: dict[str, Tensor]  # modality -> [b, k, d]; zeros where the modality is not present
    present: dict[str, bool]


class Data:
    """Clips of one dataset and their features."""

    def __init__(self, clips: Sequence[dict[str, Any]], store: Any, tokenizer: Any) -> None:
        self.clips, self.store, self.tokenizer = clips, store, tokenizer
        self.labels = ", ".join(sorted({clip["labels"]["emotion"] for clip in clips}))
        self.answered = {task for task in TASKS if any(answer_of(clip, task) for clip in clips)}

    def draw(self, stage: str, seed: int, index: int) -> Sample:
        """Return training sample number `index`: every clip comes once per epoch, and one task is drawn uniformly."""
        epoch, place = divmod(index, len(self.clips))
        clip = self.clips[shuffled(len(self.clips), seed, "epoch", epoch)[place]]
        tasks = [task for task in STAGES[stage][0] if task in self.answered]
        task = tasks[shuffled(len(tasks), seed, "sample", index)[0]]
        if not 0 < len(self.ids(answer_of(clip, task))) < MAX_ANSWER_TOKENS:
            task = "emotion"  # stands in for an answer that is missing or very long
        return self.sample(stage, clip, task)

    def sample(self, stage: str, clip: dict[str, Any], task: str) -> Sample:
        words = " ".join(clip.get("text", "").split()[:MAX_TEXT_WORDS]).lower()
        words = words.translate(str.maketrans("", "", '.!"()*#:;~')).strip()
        said = STAGES[stage][1].format(text=words) if words else ""
        before = [self.tokenizer.bos_token_id, *self.ids("[INST] <Vid>")]
        after = self.ids(f"</Vid>{said}  [{task}] {TASKS[task][0].format(labels=self.labels)}  [/INST]")
        answer = [*self.ids(answer_of(clip, task)), self.tokenizer.eos_token_id]
        features, present = {}, {}
        for modality, name in FEATURES.items():
            record = self.store[name].record(clip["id"])  # None: never extracted; reading its tokens is refused
            present[modality] = modality in TASKS[task][1] and not (record and record.status.name == "ABSENT")
            tokens = self.store[name][clip["id"]] if present[modality] else np.zeros(self.store[name].shape)
            features[modality] = torch.tensor(tokens.astype("float32"))[None]
        return Sample(*(torch.tensor([ids]) for ids in (before, after, answer)), features, present)

    def ids(self, text: str) -> list[int]:
        # split_special_tokens: where a subtitle says "</s>", this is text and not the end token.
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


class LoraLinear(nn.Module):
    """A frozen linear layer W plus a trained product of low rank: W x + B A dropout(x) · alpha / r."""

    def __init__(self, frozen: nn.Linear, s: Settings) -> None:
        super().__init__()
        self.frozen = frozen
        self.dropout = nn.Dropout(s.lora_dropout)
        self.lora_A = nn.Linear(frozen.in_features, s.lora_r, bias=False)
        self.lora_B = nn.Linear(s.lora_r, frozen.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)  # training starts from what the frozen model computes
        self.scaling = s.lora_alpha / s.lora_r

    def forward(self, x: Tensor) -> Tensor:
        # [b, l, in] -> [b, l, out]
        return (self.frozen(x) + self.lora_B(self.lora_A(self.dropout(x.float()))) * self.scaling).to(x.dtype)


def mlp(width: int, s: Settings) -> nn.Sequential:
    first = (nn.Linear(width, s.fusion_hidden), nn.ReLU(), nn.Dropout(s.fusion_dropout))
    return nn.Sequential(*first, nn.Linear(s.fusion_hidden, s.fusion_width), nn.ReLU(), nn.Dropout(s.fusion_dropout))


class ConvAttention(nn.Module):
    """Fuse three modalities: by weights per token and modality, plus convolution over the token axis."""

    def __init__(self, widths: Sequence[int], s: Settings) -> None:
        super().__init__()
        joined, width = len(widths) * s.fusion_width, s.fusion_width
        self.prepare = nn.ModuleList([mlp(d, s) for d in widths])
        self.attention_mlp = mlp(joined, s)
        self.attention_weights = nn.Linear(width, len(widths))
        self.conv_entry = nn.Conv1d(joined, width, kernel_size=1)
        self.conv_blocks = nn.ModuleList([nn.Conv1d(width, width, kernel_size=3, padding=1) for _ in range(4)])
        self.output = nn.Linear(width, s.fusion_out)

    def forward(self, features: Sequence[Tensor], present: Sequence[bool]) -> Tensor:
        """Three tensors [b, k, d], one per modality -> [b, k, 256]."""
        prepared = [mlp(tokens) for mlp, tokens in zip(self.prepare, features, strict=True)]  # [b, k, 128] each
        # An absent modality is blanked here and not before its MLP, whose biases would turn zeros into a constant.
        prepared = [x if here else torch.zeros_like(x) for x, here in zip(prepared, present, strict=True)]
        joined = torch.cat(prepared, dim=-1)  # [b, k, 384]
        weights = self.attention_weights(self.attention_mlp(joined))  # [b, k, 3], without softmax
        attended = (torch.stack(prepared, dim=-1) @ weights.unsqueeze(-1)).squeeze(-1)  # [b, k, 128]
        x = self.conv_entry(joined.transpose(1, 2))  # [b, 128, k]
        for conv in self.conv_blocks:
            x = x + nn.functional.silu(conv(x))
        return self.output(attended + x.transpose(1, 2))  # [b, k, 256]


class EmotionLlama(nn.Module):
    """Conv-Attention and projectors before a frozen language model with LoRA."""

    def __init__(self, llm: nn.Module, widths: Sequence[int], s: Settings) -> None:
        super().__init__()
        torch.manual_seed(derive(s.seed, "initial weights"))
        self.llm = llm.requires_grad_(False)
        for layer in llm.model.layers:
            layer.self_attn.q_proj = LoraLinear(layer.self_attn.q_proj, s)
            layer.self_attn.v_proj = LoraLinear(layer.self_attn.v_proj, s)
        self.fusion = ConvAttention(widths, s)
        audio, image, video = widths
        inputs = {"fusion": s.fusion_out, "image": PATCHES * image, "video": video, "audio": audio}
        self.projectors = nn.ModuleDict({name: nn.Linear(d, llm.config.hidden_size) for name, d in inputs.items()})
        self.words = llm.get_input_embeddings()

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def prompt(self, sample: Sample) -> Tensor:
        """Return the embedded prompt [b, l, h], soft tokens in place; an absent modality has no place in it."""
        audio, image, video = (sample.features[modality] for modality in FEATURES)  # [b, k, d] each
        cls = image[:, :1].expand(-1, audio.shape[1], -1)  # [b, 64, d]
        fused = self.fusion([audio, cls, video], list(sample.present.values()))
        joined = image[:, 1:].unflatten(1, (-1, PATCHES)).flatten(2)  # [b, 1024, d] -> [b, 256, 4 d]
        streams = {"fusion": fused, "image": joined, "video": video, "audio": audio}
        shown = {**sample.present, "fusion": any(sample.present.values())}
        soft = [self.projectors[name](stream).to(self.llm.dtype) for name, stream in streams.items() if shown[name]]
        return torch.cat([self.words(sample.before), *soft, self.words(sample.after)], dim=1)

    def loss(self, sample: Sample) -> Tensor:
        """Return the mean loss over the tokens of the answer, the end token included."""
        prompt = self.prompt(sample)
        inputs = torch.cat([prompt, self.words(sample.answer)], dim=1)  # [b, l + a, h]
        places = torch.arange(prompt.shape[1] - 1, inputs.shape[1] - 1)  # a token is predicted at the place before it
        logits = self.llm(inputs_embeds=inputs, logits_to_keep=places, use_cache=False).logits  # [b, a, v]
        return nn.functional.cross_entropy(logits[0].float(), sample.answer[0])

    @torch.inference_mode()
    def answer(self, sample: Sample) -> list[int]:
        """Return the token ids of the greedy answer: at every place the most probable token, up to the end token."""
        self.eval()
        inputs, ids, end = self.prompt(sample), [], int(sample.answer[0, -1])
        for _ in range(MAX_NEW_TOKENS):
            token = self.llm(inputs_embeds=inputs, logits_to_keep=1, use_cache=False).logits[:, -1].argmax(dim=-1)
            if int(token) == end:
                break
            ids.append(int(token))
            inputs = torch.cat([inputs, self.words(token)[:, None]], dim=1)
        return ids


def learning_rate(step: int, s: Settings) -> float:
    """Return the rate of a step: linear warm-up, then a cosine down again."""
    if step < s.warmup_steps:
        return s.low_lr + (s.lr - s.low_lr) * step / s.warmup_steps
    progress = (step - s.warmup_steps) / (s.steps - s.warmup_steps)
    return s.low_lr + (s.lr - s.low_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def train(model: EmotionLlama, data: Data, stage: str, s: Settings) -> Iterator[float]:
    """Train one stage, with an optimizer and a schedule of its own; yields the loss of every step."""
    trained = list(model.trained().values())
    matrices, biases = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": s.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    scaler = torch.amp.GradScaler(trained[0].device.type, enabled=s.dtype == "float16")
    model.train()
    for step in range(s.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, s)
        for parameter in trained:  # zeros and not None: AdamW also decays what no sample of this step uses
            parameter.grad = torch.zeros_like(parameter)
        torch.manual_seed(derive(s.seed, "dropout", step, 0))
        mean = 0.0
        for number in range(s.batch_size):
            with torch.autocast(trained[0].device.type, torch.float16, enabled=s.dtype == "float16"):
                loss = model.loss(data.draw(stage, s.seed, step * s.batch_size + number))
            scaler.scale(loss / s.batch_size).backward()  # gradients add up; every sample weighs alike
            mean += loss.item() / s.batch_size
        scaler.step(optimizer)
        scaler.update()
        yield mean


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    for name in ("clips", "store", "llm", "out"):
        parser.add_argument(name, type=Path)
    for field in fields(Settings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = parser.parse_args()
    s = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    clips = [json.loads(line) for line in options.clips.read_text().splitlines()]
    store, tokenizer = open_store(options.store), AutoTokenizer.from_pretrained(options.llm)
    data = Data([clip for clip in clips if clip["split"] == "train"], store, tokenizer)
    llm = AutoModelForCausalLM.from_pretrained(options.llm, dtype=s.dtype).to(torch.get_default_device())
    model = EmotionLlama(llm, [store[name].shape[1] for name in FEATURES.values()], s)
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:  # cognition goes on from the weights of perception
        for step, loss in enumerate(train(model, data, stage, s)):
            print(f"{stage}, step {step + 1} of {s.steps}: loss {loss:.4f}", flush=True)
        save_file(model.trained(), options.out / f"{stage}.safetensors")
    for clip in (clip for clip in clips if clip["split"] == "val"):
        answer = tokenizer.decode(model.answer(data.sample("cognition", clip, "emotion")), skip_special_tokens=True)
        print(f"{clip['id']}, labelled {clip['labels']['emotion']}: {answer}")


if __name__ == "__main__":
    main()
