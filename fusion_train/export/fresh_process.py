"""Script for a fresh process: load an exported folder without this package and answer questions.

    python -I fresh_process.py REQUEST

REQUEST is a folder. It holds `request.json` and, for each question n, `n.in.safetensors` with the cached features and
the token ids of the reference answer. The script writes `n.out.safetensors`, and `done.json` last. It imports nothing
of this project, and hides the packages of the project, those of copied encoders, and peft, from everything it loads.
An encoder whose package the folder names is found where it is installed, with `featurecache`, which it needs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HIDDEN = ("featurecache", "fusion_train", "peft", "zarr", "webdataset", "pydantic")


class HidingFinder:
    """Module finder that wraps another finder and does not find the hidden packages."""

    def __init__(self, finder, hidden) -> None:
        self._finder, self._hidden = finder, hidden

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self._hidden else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def main(folder: Path) -> None:
    """Answer every question of a request."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    needed = {"peft": bool(request["places"]), "featurecache": request["needs_featurecache"]}
    hidden = [name for name in HIDDEN if not needed.get(name)] + request["hidden"]
    sys.path[:0] = request["found"]
    sys.meta_path[:] = [HidingFinder(finder, hidden) for finder in sys.meta_path]
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(request["threads"])
    processor = AutoProcessor.from_pretrained(request["model"], trust_remote_code=True)
    kind = AutoModel if request["probe"] else AutoModelForCausalLM
    model = kind.from_pretrained(request["model"], trust_remote_code=True, **request["places"])
    model = model.to(request["device"]).eval()
    for number, question in enumerate(request["questions"]):
        if request["probe"]:
            classify(processor, model, folder / str(number), question)
        else:
            answer(processor, model, folder / str(number), question, request["max_new_tokens"])
    loaded = sorted({name.partition(".")[0] for name in sys.modules} & set(hidden))
    (folder / "done.json").write_text(json.dumps({"hidden_but_loaded": loaded}))


def answer(processor, model, place: Path, question: dict, max_new_tokens: int) -> None:
    """Answer one question; write prompt ids, features, logits on raw and on cached features, text, probabilities.

    Args:
        place: path of the question's files without `.in.safetensors`.
    """
    import torch
    from safetensors.torch import load_file, save_file

    reference = load_file(f"{place}.in.safetensors")
    cached = cached_features(reference, model.device)
    argument_names = ("text", "task", "dataset", "peak_frame", "start_s", "end_s", "crop", "person")
    inputs = processor(**question["media"], **{name: question[name] for name in argument_names})
    inputs = inputs.to(model.device)
    prompt = {name: inputs.pop(name) for name in ("input_ids", "attention_mask", "present")}
    for modality in question["withheld"]:
        prompt = model.leave_out(modality, **prompt)
    with torch.inference_mode():
        raw = model.encode(prompt["present"], **inputs)
        filled = model.fill_recall(prompt["input_ids"], prompt["attention_mask"], raw, prompt["present"])
        prompt |= dict(zip(("input_ids", "attention_mask"), filled, strict=True))
    out = {"input_ids": prompt["input_ids"], "present": prompt["present"]}
    out |= {f"features.{name}": tensor for name, tensor in model.seen(raw, prompt["present"])[0].items()}
    answer_ids = reference["answer_ids"].to(model.device)[None]
    forced = prompt | {
        "input_ids": torch.cat([prompt["input_ids"], answer_ids[:, :-1]], dim=1),
        "attention_mask": torch.ones(
            1, prompt["input_ids"].shape[1] + answer_ids.shape[1] - 1, dtype=torch.long, device=model.device
        ),
    }
    for kind, features in (("raw", raw), ("cached", cached)):
        with torch.inference_mode():
            logits = model(**forced, features=features, logits_to_keep=answer_ids.shape[1]).logits
        out[f"logits.{kind}"] = logits[0].float()
    out["text"] = model.generate(**prompt, features=raw, max_new_tokens=max_new_tokens)[0]
    labels = processor.labels(question["task"], question["dataset"])
    if labels and question["closed"]:
        out["probabilities"] = model.label_probabilities(processor.label_ids(labels), **prompt, features=raw)[0]
    save_file({name: tensor.cpu().contiguous() for name, tensor in out.items()}, f"{place}.out.safetensors")


def classify(processor, model, place: Path, question: dict) -> None:
    """Ask a probe one question; write classes, features, logits on raw and on cached features, probabilities.

    Args:
        place: path of the question's files without `.in.safetensors`.
    """
    import torch
    from safetensors.torch import load_file, save_file

    cached = cached_features(load_file(f"{place}.in.safetensors"), model.device)
    argument_names = ("text", "task", "dataset", "peak_frame", "start_s", "end_s", "crop")
    inputs = processor(**question["media"], **{name: question[name] for name in argument_names}).to(model.device)
    label_inputs = {name: inputs.pop(name) for name in ("present", "classes")}
    for modality in question["withheld"]:
        label_inputs = model.leave_out(modality, **label_inputs)
    with torch.inference_mode():
        raw = model.encode(label_inputs["present"], **inputs)
        out = label_inputs | {f"features.{name}": tensor for name, tensor in raw.items()}
        for kind, features in (("raw", raw), ("cached", cached)):
            out[f"logits.{kind}"] = model(**label_inputs, features=features).logits
    out["probabilities"] = model.label_probabilities(**label_inputs, features=raw)
    save_file({name: tensor.cpu().contiguous() for name, tensor in out.items()}, f"{place}.out.safetensors")


def cached_features(tensors: dict, device) -> dict:
    """Return modality -> features from the store, on the device."""
    prefix = "features."
    return {name.removeprefix(prefix): tensor.to(device) for name, tensor in tensors.items() if name.startswith(prefix)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
