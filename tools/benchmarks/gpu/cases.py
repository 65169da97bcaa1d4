"""The cases of `bench.py gpu`, in order of worth: a run that is cut short loses the last ones.

A case is measured by the module of this package that it names. That module offers
`measure(material, case) -> Iterator[(part, figures)]` and yields the figures of each part as soon as they are known;
a case of one part yields it as "". Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LIMIT_S = 90.0


@dataclass(frozen=True)
class Case:
    """What is measured in a process of its own."""

    module: str
    """Of this package."""
    needs: tuple[Literal["training", "recordings"], ...] = ()
    """Material that is made before the case begins, while the case before it is measured."""
    limit_s: float = LIMIT_S
    """Longest time from the beginning of the case to its last figure."""
    least_s: float = 15.0
    """With less time left than this, the case is skipped."""


class Skipped(Exception):  # noqa: N818 -- not an error
    """This machine or this installation cannot run the case; the message says why."""


CASES: dict[str, Case] = {
    "environment": Case("environment"),
    "packed": Case("training", ("training",)),
    "released": Case("training", ("training",)),
    "shared_by_4": Case("training", ("training",)),
    "one_at_a_time": Case("training", ("training",)),
    "encoders": Case("extraction"),
    "pipeline": Case("extraction", ("recordings",)),
    "packed_operators": Case("training", ("training",)),
    "packed_fp8": Case("training", ("training",)),
    "trials": Case("trials", ("training",)),
    "resume": Case("resume", ("training",)),
    "reading": Case("reading", ("training",)),
    "four_bit": Case("training", ("training",)),
}
