"""Metrics by name, as benches ask for them. A new metric is a function in `metric_functions` and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featurecache.errors import suggest
from fusion_train.errors import ConfigError, refuse_unknown
from fusion_train.metrics import metric_functions as entries
from fusion_train.metrics.scored import Scored, Settings


@dataclass(frozen=True)
class Metric:
    """How it is computed, and its figures; the first stands for a set unless the bench says otherwise."""

    compute: Callable[[Mapping[str, Any], Mapping[str, str], Settings, str], Scored]
    figures: tuple[str, ...]


METRICS: dict[str, Metric] = {
    "hit": Metric(entries.hit, ("HIT",)),
    "open-vocabulary": Metric(entries.open_vocabulary, ("F", "precision", "recall")),
    "waf": Metric(entries.waf, ("weighted F1", "accuracy")),
    "waf-released": Metric(entries.waf_released, ("weighted F1", "accuracy")),
    "sentiment-three-way": Metric(entries.three_way, ("weighted F1", "accuracy")),
    "sentiment-three-way-released": Metric(entries.three_way_released, ("weighted F1", "accuracy")),
    "classification": Metric(entries.classification, ("accuracy", "weighted F1", "UAR", "WAR", "macro F1")),
    "multi-label": Metric(entries.multi_label, ("mAP", "F1 micro", "F1 samples", "Jaccard")),
    "overlap": Metric(entries.overlap, ("clue", "label")),
}


def find_metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        ConfigError: no such metric; the near one is suggested.
    """
    refuse_unknown("metric", name, METRICS)
    return METRICS[name]


def main_figure(name: str, main: str | None = None) -> str:
    """The figure named, if the metric has it; None gives the metric's own.

    Raises:
        ConfigError: no such metric, or no such figure of it; the near one is suggested.
    """
    figures = find_metric(name).figures
    if main is not None and main not in figures:
        raise ConfigError(
            f'main figure of metric "{name}"',
            expected="one of " + ", ".join(figures),
            got=repr(main),
            next_step=suggest(main, figures).strip() or None,
        )
    return main or figures[0]


def score(
    name: str,
    references: Mapping[str, Any],
    predictions: Mapping[str, str],
    settings: Settings | None = None,
    main: str | None = None,
) -> Scored:
    """Score by a metric of the registry.

    Args:
        references, predictions: clip id -> value; answers are texts as they were given.
        main: the figure that stands for the set; None for the metric's own.

    Raises:
        ConfigError: no such metric, or no such figure of it.
        DataError: see the metric.
    """
    chosen = main_figure(name, main)
    return METRICS[name].compute(references, predictions, settings or Settings(), chosen)
