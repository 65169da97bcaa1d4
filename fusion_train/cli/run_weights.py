"""Find the checkpoints of a run's encoders among those of the project file, by the sha256 of their weights."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from featurecache.console import note
from featurecache.console_project import project

if TYPE_CHECKING:
    from fusion_train.run import Run


def project_weights(run: Run, store: str | None) -> dict[str, str]:
    """Return the checkpoints of the project file that made the features of a run.

    A folder is recognised by the sha256 of its files. The key is the encoder's name, or the modality where two
    modalities have the same encoder.
    """
    project_file = project()
    if project_file is None or not project_file.weights:
        return {}
    import featurecache
    from featurecache.encoders.checkpoint import holds_weights
    from fusion_train.run import absolute

    opened = featurecache.open_store(store or absolute(run.record().store, run.folder))
    features = run.config().features.used
    specs = {modality: opened[name].spec for modality, name in features.items() if name in opened}
    count = Counter(spec.encoder for spec in specs.values())
    places = {}
    for modality, spec in specs.items():
        named = [key for key in project_file.weights if key in (spec.encoder, features[modality])]
        candidates = dict.fromkeys(project_file.weights[key] for key in (*named, *project_file.weights))
        place = next((place for place in candidates if holds_weights(place, spec.weights)), None)
        if place is not None:
            places[spec.encoder if count[spec.encoder] == 1 else modality] = place
            note(f"weights of {spec.encoder}: {place}, by their sha256")
    return places
