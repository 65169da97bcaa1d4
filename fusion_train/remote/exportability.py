"""Whether a run can be exported, from the specs of its features and its fusion variant; said when training starts.

An export runs the encoders of the features on raw clips, so their classes have to be installed and exportable, and
their code has to be one that may be copied. This module is not copied into an exported folder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from featurecache.encoders import exportable_class
from featurecache.encoders.perturbation import SPEC_KEY
from featurecache.errors import EncoderError, FeatureCacheError
from featurecache.spec import Spec
from fusion_train.errors import ExportError
from fusion_train.remote.vendor import encoder_package, refuse_uncopied, refuse_uncopied_variant


def export_notices(specs: Mapping[str, Spec], fusions: Collection[str], normalise: str | None = None) -> list[str]:
    """Return one line per reason why a run cannot be exported, or only with an option; empty if it can.

    Args:
        specs: modality -> spec of the feature that the run reads.
        fusions: names of the fusion variants of the runs.
        normalise: their setting `features.normalise`.
    """
    problems: list[FeatureCacheError] = []
    try:
        refuse_speakers(normalise)
    except ExportError as error:
        problems.append(error)
    for modality, spec in specs.items():
        try:
            refuse_foreign_media(spec, modality)
            if not encoder_package(spec.encoder).is_ours:  # ours can be exported; loading them takes seconds
                exportable_class(spec.encoder)
                refuse_uncopied(spec.encoder)
        except FeatureCacheError as error:
            problems.append(error)
    for name in sorted(fusions):
        try:
            refuse_uncopied_variant(name)
        except ExportError as error:
            problems.append(error)
    return [f"note: this run can be trained, but not exported as it is: {problem}" for problem in problems]


def refuse_speakers(normalise: str | None) -> None:
    """Raise ExportError if the setting `features.normalise` needs all clips of a speaker to answer about one."""
    if normalise == "speaker":
        raise ExportError(
            "features.normalise",
            expected="training or null, to be exported",
            got="speaker, which needs other clips of the speaker",
            next_step="Train with --set features.normalise=training.",
        )


def refuse_foreign_media(spec: Spec, modality: str) -> None:
    """Raise EncoderError if no encoder makes this feature of unchanged media: a perturbed or imported one."""
    if spec.preprocessing.get("origin") == "unverified":
        raise EncoderError(
            f"{modality} feature",
            expected="a feature that an encoder made, to be exported",
            got="one that was imported from .npy files",
            next_step="Extract it with fcache extract and train on that.",
        )
    if SPEC_KEY in spec.preprocessing:
        raise EncoderError(
            f"{modality} feature",
            expected="a feature of unchanged media, to be exported",
            got=f"one that was perturbed by {spec.preprocessing[SPEC_KEY]}",
            next_step="Train on the feature without perturbation.",
        )
