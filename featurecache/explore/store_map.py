"""Map of a store: every clip is a point, coloured by dataset or label, as a PNG and as an interactive HTML page.

Shapes: N clips, R axes -> (N, 2), by PCA or UMAP.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurecache.clips.clip_list import ClipList
from featurecache.errors import StoreError
from featurecache.extras import require
from featurecache.files.publish import replace_bytes
from featurecache.outside_text import figure_text, script_json

TEMPLATE = Path(__file__).with_name("store_map.html")
PLACEHOLDER = "/*MAP*/null"
MAX_COLOURS = 20


def positions(vectors: np.ndarray, method: str, *, seed: int = 0) -> np.ndarray:
    """Reduce vectors (N, R) to points (N, 2) by `method`: pca or umap.

    Raises:
        StoreError: fewer than three clips, or umap-learn is not installed.
    """
    require("explore", "sklearn", "matplotlib", subject="fcache map")
    if len(vectors) < 3:
        raise StoreError("map", expected="at least 3 clips", got=str(len(vectors)), next_step="Extract more clips.")
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise StoreError(
                "--method umap", expected="umap-learn", got="none", next_step="pip install umap-learn, or use pca."
            ) from error
        neighbours = min(15, len(vectors) - 1)
        return UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1).fit_transform(vectors)
    from sklearn.decomposition import PCA

    return PCA(2, svd_solver="full" if len(vectors) < 5000 else "randomized", random_state=seed).fit_transform(vectors)


def groups_of(clips: ClipList, ids: Sequence[str], by: str) -> list[str]:
    """Return the group of each clip, which sets its colour: its dataset, split, speaker, or label of the task `by`."""
    groups = []
    for clip_id in ids:
        clip = clips.by_id(clip_id)
        value = getattr(clip, by) if by in ("dataset", "split", "speaker") else clip.labels.get(by)
        groups.append("(none)" if value is None else str(value))
    return groups


def draw_map(points: np.ndarray, groups: Sequence[str], by: str, title: str, path: Path) -> None:
    """Draw (N, 2) points as a PNG; the most frequent groups have their own colours."""
    from matplotlib.figure import Figure

    names = sorted(set(groups), key=lambda name: (-list(groups).count(name), name))
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots()
    groups_array = np.asarray(groups)
    for number, name in enumerate(names):
        x, y = points[groups_array == name].T
        colour = f"C{number}" if number < 10 else None
        axes.scatter(
            x,
            y,
            s=14,
            alpha=0.75,
            linewidths=0,
            color=colour if number < MAX_COLOURS else "lightgrey",
            label=f"{figure_text(name)} ({len(x)})" if number < MAX_COLOURS else None,
        )
    axes.set(xticks=[], yticks=[], title=figure_text(title))
    axes.legend(title=figure_text(by), loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    replace_bytes(path, png.getvalue())


def map_page(points: np.ndarray, clips: ClipList, ids: Sequence[str], title: str) -> str:
    """Return the HTML of the interactive map: the pointer shows a clip; colours by dataset, split, speaker or label."""
    labels = sorted(
        {task for clip_id in ids for task, value in clips.by_id(clip_id).labels.items() if isinstance(value, str)}
    )
    keys = [key for key in (*labels, "dataset", "split", "speaker") if len(set(groups_of(clips, ids, key))) > 1]
    scaled = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    document = {
        "title": title,
        "keys": keys or ["dataset"],
        "x": np.round(scaled[:, 0], 4).tolist(),
        "y": np.round(scaled[:, 1], 4).tolist(),
        "ids": list(ids),
        "texts": [clips.by_id(clip_id).text or "" for clip_id in ids],
        "groups": {key: groups_of(clips, ids, key) for key in keys or ["dataset"]},
    }
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACEHOLDER, script_json(document))
