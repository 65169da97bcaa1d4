"""Compare the measurements of an export with their bounds; write certificate.json and CERTIFICATE.md.

Every bound has its reason. u is the unit roundoff of a dtype: half the distance from 1 to the next number (2^-24,
2^-11, 2^-8 for float32, float16, bfloat16). KL divergence is in nats per token; the worst token of the worst clip
counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurecache.files.publish import replace_bytes
from featurecache.outside_text import markdown_text
from featurecache.spec import Spec
from fusion_train.documents import write_document
from fusion_train.remote.configuration_emotion_llama import CERTIFICATE
from fusion_train.remote.integrity import PAGE_NAME

FORMAT = 1
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
QUANTISED = {"int8": 1 / 127, "float8": 2.0**-4}
"""Stored dtype -> one quantisation step, relative to the largest value of its channel."""
LOGIT_SCALE = 32.0
"""Approximate size of the logits of a trained model; converts relative errors into errors in nats."""
LEAST_KL, LEAST_MARGIN = 1e-8, 1e-3
"""Smallest bounds: another order of summation moves the logits of a deep float32 network by up to 1e-4."""
MAX_RAW_KL = 0.05
"""Largest bound on the KL divergence from raw media; beyond it, answers would begin to change."""


@dataclass(frozen=True)
class ParityCheck:
    """One measured quantity over all clips, and its bound."""

    name: str
    measured: float
    bound: float
    reason: str

    @property
    def passed(self) -> bool:
        return self.measured <= self.bound  # NaN does not pass


def judge(
    rows: Sequence[Mapping[str, Any]], specs: Mapping[str, Spec], *, llm_dtype: str, device: str, merged: bool = True
) -> list[ParityCheck]:
    """Compare the rows of `parity.compare` with their bounds.

    Args:
        specs: modality -> spec of the features.
        llm_dtype: dtype of the exported language model.
        device: device of all computations.
        merged: whether the adapters of the folder are merged; otherwise merging costs nothing and is not measured.
    """
    u = ROUNDOFF[llm_dtype]
    figures = [
        ParityCheck("questions whose prompt differs", _count(rows, "prompt_equal"), 0, "One tokenisation serves both."),
        ParityCheck(
            "questions whose modalities differ", _count(rows, "present_equal"), 0, "Absence is decided by the media."
        ),
    ]
    if any(row["stand_ins"] for row in rows):
        figures.append(
            ParityCheck(
                "questions whose constants for absent modalities differ",
                sum(not all(row["stand_ins"].values()) for row in rows),
                0,
                "The exported model carries them.",
            )
        )
    figures += [_feature_check(modality, spec, rows) for modality, spec in specs.items()]
    merge_bound = max(LEAST_KL, 4 * (LOGIT_SCALE * u) ** 2)
    if merged:
        figures.append(
            ParityCheck(
                "merged against unmerged adapters, KL",
                _worst(rows, "merge_kl"),
                merge_bound,
                f"Every merged weight is rounded once to {llm_dtype} (u = {u:.1e}); logits of about {LOGIT_SCALE:g} "
                "move by a few u times that, and KL grows with the square of it.",
            )
        )
    figures += _answer_checks(rows, specs, u, device, "raw and merged")
    figures.append(
        ParityCheck(
            "greedy text: nats between the first tokens that differ",
            _worst(rows, "text_margin"),
            max(LEAST_MARGIN, 2 * LOGIT_SCALE * u),
            f"Texts are equal, except where two tokens are tied within the rounding of {llm_dtype}.",
        )
    )
    return figures


def judge_probe(rows: Sequence[Mapping[str, Any]], specs: Mapping[str, Spec], *, device: str) -> list[ParityCheck]:
    """Compare the rows of `probe_parity.compare_probe` with their bounds; other arguments as of `judge`."""
    return [
        ParityCheck("questions whose labels differ", _count(rows, "classes_equal"), 0, "One numbering serves both."),
        ParityCheck(
            "questions whose modalities differ", _count(rows, "present_equal"), 0, "Absence is decided by the media."
        ),
        *(_feature_check(modality, spec, rows) for modality, spec in specs.items()),
        *_answer_checks(rows, specs, ROUNDOFF["float32"], device, "raw"),
        ParityCheck(
            "labels: difference of the scores of two labels where the answers differ",
            _worst(rows, "text_margin"),
            max(LEAST_MARGIN, 2 * LOGIT_SCALE * max(_feature_bound(spec)[0] for spec in specs.values())),
            "Labels are equal, except where two are tied within the rounding of the features.",
        ),
    ]


def _answer_checks(
    rows: Sequence[Mapping[str, Any]], specs: Mapping[str, Spec], u: float, device: str, compared: str
) -> list[ParityCheck]:
    """Return the checks of logits and probabilities, which exports with and without a language model share.

    Args:
        u: unit roundoff of the dtype in which the logits are computed.
        compared: which probabilities are compared with those of training, in words.
    """
    on_gpu = device.startswith("cuda")
    figures: list[ParityCheck] = []
    reload_bound = LOGIT_SCALE * u * 4 if on_gpu else 0.0
    figures.append(
        ParityCheck(
            "loaded in a fresh process against in memory, logits",
            _worst(rows, "reload_logits"),
            reload_bound,
            "Same weights, same code, same features; on a GPU kernels may be chosen anew in each process."
            if on_gpu
            else "Same weights, same code, same features: the same bits.",
        )
    )
    equal_features = [row["raw_logits"] for row in rows if all(f["equal"] for f in row["features"].values())]
    if equal_features:
        figures.append(
            ParityCheck(
                f"raw media against cached features, logits of {len(equal_features)} questions with equal features",
                max(equal_features),
                0.0,
                "Equal features give equal logits, to the bit.",
            )
        )
    raw_u = max([u, *(_feature_bound(spec)[0] for spec in specs.values())])
    raw_bound = min(MAX_RAW_KL, max(LEAST_KL, 4 * (LOGIT_SCALE * raw_u) ** 2))
    figures.append(
        ParityCheck(
            "raw media against cached features, KL",
            _worst(rows, "raw_kl"),
            raw_bound,
            "Features differ by at most the bounds above; logits move in proportion, KL with the square of it; never "
            f"more than {MAX_RAW_KL} nats.",
        )
    )
    probabilities = [row["probabilities"] for row in rows if row["probabilities"] is not None]
    if probabilities:
        figures.append(
            ParityCheck(
                f"label probabilities, {compared} against trained",
                max(probabilities),
                max(1e-4, raw_bound**0.5),
                "A probability moves by less than the root of the KL divergence (Pinsker).",
            )
        )
    return figures


def _feature_check(modality: str, spec: Spec, rows: Sequence[Mapping[str, Any]]) -> ParityCheck:
    bound, reason = _feature_bound(spec)
    values = [row["features"][modality]["rms"] for row in rows if modality in row["features"]]
    return ParityCheck(
        f"{modality} features ({spec.encoder}), re-encoded against cached, relative RMS",
        max(values, default=0.0),
        bound,
        reason,
    )


def _feature_bound(spec: Spec) -> tuple[float, str]:
    """Return the bound on the relative RMS error of a clip's features, and its reason."""
    computed = ROUNDOFF[spec.compute_dtype]
    if spec.stored_dtype in QUANTISED:
        step = QUANTISED[spec.stored_dtype]
        return max(step, 32 * computed), (
            f"Both are quantised to {spec.stored_dtype}, one step being at most {step:.1e} of the largest value of its "
            "channel; on another device a value may fall on the next step. On the device of the extraction the "
            "difference is 0."
        )
    stored = ROUNDOFF[spec.stored_dtype]
    # Kernels may sum in another order on another device: some tens of roundings over 40 blocks.
    return max(stored, 32 * computed), (
        f"Both are rounded to {spec.stored_dtype} (u = {stored:.1e}); {spec.compute_dtype} kernels of another device "
        "may differ by some tens of roundings. On the device of the extraction the difference is 0."
    )


def _count(rows: Sequence[Mapping[str, Any]], key: str) -> int:
    return sum(not row[key] for row in rows)


def _worst(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    values = [float(row[key]) for row in rows]
    return float("nan") if any(value != value for value in values) else max(values)


def write_certificate(
    folder: Path, about: Mapping[str, Any], figures: Sequence[ParityCheck], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write both files; the JSON file contains the rows of every clip."""
    document = {
        "format": FORMAT,
        "passed": all(figure.passed for figure in figures),
        **about,
        "figures": [asdict(figure) | {"passed": figure.passed} for figure in figures],
        "clips": list(rows),
    }
    write_document(folder / CERTIFICATE, document)
    replace_bytes(folder / PAGE_NAME, page(document).encode())


def page(document: Mapping[str, Any]) -> str:
    """Return the certificate as Markdown."""
    rows = document["clips"]
    probe = document.get("form") == "probe"
    clips = len({row["id"] for row in rows})
    texts = sum(row["text_equal"] for row in rows)
    equal = sum(all(f["equal"] for f in row["features"].values()) for row in rows)
    lines = [
        "# Does this model compute what was trained?",
        "",
        f"**{'Yes' if document['passed'] else 'No'}**, by {len(rows)} questions on {clips} raw clips"
        f" of the split {markdown_text(document['split'])}, on {document['device']}; "
        f"{document['asked']} clips were requested.",
        "",
        f"{'Label' if probe else 'Greedy text'} equal on {texts} of {len(rows)} questions, features equal to the last "
        f"bit on {equal}" + (". Nothing is merged in a probe." if probe else f"; {_merging(rows)}."),
        "",
        _absence(rows),
        "",
        "| what | measured | bound | holds | why this bound |",
        "|---|---:|---:|---|---|",
    ]
    for figure in document["figures"]:
        holds = "yes" if figure["passed"] else "**no**"
        lines.append(
            f"| {figure['name']} | {figure['measured']:.2e} | {figure['bound']:.2e} | {holds} | {figure['reason']} |"
        )
    run = document["run"]
    lines += ["", f"Run {markdown_text(run['name'])}, step {run['step']}, configuration {run['config_hash']}."]
    if "weights" in run:  # earlier releases did not write it
        lines += ["", f"Weights: {markdown_text(run['weights'])}."]
    lines += ["", "| feature | fingerprint |", "|---|---|"]
    lines += [f"| {modality} | `{value}` |" for modality, value in document["fingerprints"].items()]
    lines += ["", "| file | sha256 |", "|---|---|"]
    lines += [f"| {name} | `{value}` |" for name, value in document["files"].items()]
    return "\n".join(lines) + "\n"


def _merging(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"merging moved no logit by more than {max(row['merge_logits'] for row in rows):.1e}"


def _absence(rows: Sequence[Mapping[str, Any]]) -> str:
    """Describe how often each modality was absent, and what the model sees instead."""
    counts: dict[str, int] = {}
    for modality in (modality for row in rows for modality in row["absent"]):
        counts[modality] = counts.get(modality, 0) + 1
    absent = ", ".join(f"{modality} in {count}" for modality, count in sorted(counts.items())) or "none"
    withheld = sum(bool(row["withheld"]) for row in rows)
    visible = any(row["stand_ins"] for row in rows)
    return (
        f"Absent modalities: {absent} of these questions; in {withheld} of them a modality of the clip was withheld. "
        + ("The model sees a constant in place of each." if visible else "The model sees nothing in their place.")
    )
