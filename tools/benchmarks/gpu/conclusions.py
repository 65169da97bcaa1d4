"""What the figures of several cases say together: ratios, predictions, hours by extrapolation, and the goals for them.

A conclusion is left out while a figure that it needs is missing. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DRAWS = 400_000
"""Samples of the published schedule: 100,000 steps of 4."""
CLIPS = 130_000
"""Clips of the published corpus, each with three views."""
SIZES = ("0.5k", "2k", "8k", "32k")
"""Parts of the case `trials`: tokens per step."""
Figures = Mapping[str, float]
"""`case.figure` or `case.part.figure` -> number."""


@dataclass(frozen=True)
class Conclusion:
    """One number from the figures of a device."""

    of: Callable[[Figures], float]
    """Raises KeyError where a figure is missing."""
    least: float | None = None
    """Goal."""
    most: float | None = None
    """Goal."""


def _over(first: str, second: str, figure: str = "samples_per_s") -> Callable[[Figures], float]:
    return lambda figures: figures[f"{first}.{figure}"] / figures[f"{second}.{figure}"]


def _hours(num: float, rate: str) -> Callable[[Figures], float]:
    return lambda figures: num / figures[rate] / 3600


def _sharing_predicted(figures: Figures) -> float:
    """A sample's tokens without and with a shared prefix, by which sharing should be quicker."""
    return figures["packed.tokens_per_sample"] / figures["shared_by_4.tokens_per_sample"]


def _bare_encoders(figures: Figures) -> float:
    """Clips per second of all three encoders one after another."""
    return 1 / sum(1 / figures[f"encoders.{name}.clips_per_s"] for name in ("whisper", "eva-global", "eva-temporal"))


CONCLUSIONS: dict[str, Conclusion] = {
    "packed_utilisation": Conclusion(lambda figures: figures["packed.utilisation"], least=0.60),
    "packed_over_released": Conclusion(_over("packed", "released"), least=3.0),
    "shared_by_4_over_released": Conclusion(_over("shared_by_4", "released"), least=5.0),
    "one_at_a_time_over_released": Conclusion(_over("one_at_a_time", "released")),
    "packed_over_one_at_a_time": Conclusion(_over("packed", "one_at_a_time")),
    "shared_by_4_over_packed": Conclusion(_over("shared_by_4", "packed")),
    "sharing_over_its_prediction": Conclusion(
        lambda figures: _over("shared_by_4", "packed")(figures) / _sharing_predicted(figures), least=0.9
    ),
    "hours_of_400k_draws": Conclusion(_hours(DRAWS, "packed.samples_per_s"), most=4.0),
    "hours_of_400k_draws_4_questions_per_clip": Conclusion(_hours(DRAWS, "shared_by_4.samples_per_s"), most=2.0),
    "packed_over_operators": Conclusion(_over("packed", "packed_operators")),
    "fp8_over_packed": Conclusion(_over("packed_fp8", "packed"), least=1.2),
    **{
        f"trials_{size}_stacked_over_in_turn": Conclusion(
            lambda figures, size=size: figures[f"trials.{size}.stacked_over_in_turn"]
        )
        for size in SIZES
    },
    "trials_best_stacked_over_in_turn": Conclusion(
        lambda figures: max(
            figures[key] for key in (f"trials.{size}.stacked_over_in_turn" for size in SIZES) if key in figures
        ),
        least=1.3,
    ),
    "pipeline_over_bare_encoders": Conclusion(
        lambda figures: figures["pipeline.processes.clips_per_s"] / _bare_encoders(figures), least=0.95
    ),
    "hours_of_130k_clips_three_views": Conclusion(_hours(CLIPS, "pipeline.processes.clips_per_s"), most=1.5),
    "four_bit_memory_over_packed": Conclusion(_over("four_bit", "packed", "peak_memory_GiB")),
}


def conclusions(figures: Figures) -> dict[str, dict[str, Any]]:
    """Name -> value, and the goal where there is one."""
    found: dict[str, dict[str, Any]] = {}
    for name, conclusion in CONCLUSIONS.items():
        try:
            value = conclusion.of(figures)
        except (KeyError, ValueError, ZeroDivisionError):  # ValueError: the largest of none
            continue
        found[name] = {"value": round(value, 3), **_goal(conclusion, value)}
    return found


def _goal(conclusion: Conclusion, value: float) -> dict[str, Any]:
    if conclusion.least is not None:
        return {"goal": f"at least {conclusion.least:g}", "met": value >= conclusion.least}
    if conclusion.most is not None:
        return {"goal": f"at most {conclusion.most:g}", "met": value <= conclusion.most}
    return {}


def figures_of(lines: Iterable[Mapping[str, Any]], device: str | None) -> dict[str, float]:
    """The newest figures of a device, by `case.figure` or `case.part.figure`."""
    found: dict[str, float] = {}
    for line in lines:
        if line.get("device") == device and isinstance(line.get("figures"), dict):
            place = ".".join(filter(None, (line["case"], line.get("part"))))
            found |= {f"{place}.{key}": value for key, value in line["figures"].items()}
    return found
