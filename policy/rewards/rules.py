"""Weights, gates, caps and schedules of several rewards. Pure functions; NaN stands for "not scored", as in TRL.

Legend: N completions, K rewards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ...types import InputError

if TYPE_CHECKING:
    import torch

Schedule = float | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Rules:
    """How a reward enters the sum.

    `weight` is a number, or points [[progress, weight], ...] with straight lines between them (progress 0 is the beginning of the run, 1
    its end). The value is held between `floor` and `cap`. With `gate`, the name of another reward, it counts only where that one is at
    least `gate_at`, and is `closed` elsewhere (None: not scored); where that one is not scored, neither is this. Inferred: that the
    gate reads the other reward before its own caps and gates.
    """

    weight: Schedule = 1.0
    cap: float | None = None
    floor: float | None = None
    gate: str | None = None
    gate_at: float = 0.5
    closed: float | None = 0.0

    def __post_init__(self) -> None:
        points = self.weight if isinstance(self.weight, (list, tuple)) else [(0.0, self.weight)]
        numbers = [value for point in points if isinstance(point, (list, tuple)) and len(point) == 2 for value in point]
        if not points or len(numbers) != 2 * len(points) or not all(_number(value) for value in numbers):
            raise InputError(f"weight must be a number, or a list of [progress, weight] points, got {self.weight!r}")
        if [p for p, _ in points] != sorted({p for p, _ in points}) or not all(0 <= p <= 1 for p, _ in points):
            raise InputError(f"weight: the progress of its points must rise from 0 to 1, got {self.weight!r}")
        for name in ("cap", "floor", "closed"):
            if getattr(self, name) is not None and not _number(getattr(self, name)):
                raise InputError(f"{name} must be a number, got {getattr(self, name)!r}")
        if self.cap is not None and self.floor is not None and self.cap < self.floor:
            raise InputError(f"cap {self.cap} is below floor {self.floor}")


def weight_at(weight: Schedule, progress: float) -> float:
    """The weight at a share of the run; before the first point the first weight, after the last the last."""
    if not isinstance(weight, (list, tuple)):
        return float(weight)
    for (p0, w0), (p1, w1) in pairwise(weight):
        if p0 <= progress <= p1:
            return w0 + (w1 - w0) * (progress - p0) / (p1 - p0)
    return float(weight[0][1] if progress < weight[0][0] else weight[-1][1])


def apply_rules(values_NK: torch.Tensor, names: Sequence[str], rules: Sequence[Rules]) -> torch.Tensor:
    """The values (N, K) after caps and gates; weights are not in it."""
    import torch

    columns = []
    for k, rule in enumerate(rules):
        value_N = values_NK[:, k]
        if rule.cap is not None or rule.floor is not None:
            value_N = torch.where(value_N.isnan(), value_N, value_N.clamp(min=rule.floor, max=rule.cap))
        if rule.gate is not None:
            gate_N = values_NK[:, names.index(rule.gate)]
            closed = math.nan if rule.closed is None else rule.closed
            value_N = torch.where(gate_N >= rule.gate_at, value_N, torch.where(gate_N.isnan(), gate_N, torch.full_like(value_N, closed)))
        columns.append(value_N)
    return torch.stack(columns, dim=1)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
