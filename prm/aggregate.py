"""Step scores to one solution score. Pure functions on numbers in [0, 1]; no steps give the floor 0.0.

Mean is GM-PRM's rule (arXiv 2508.04088): (1/T) * sum of P(Correct) over the T steps. The others serve comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..types import InputError


def mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores) if scores else 0.0


def minimum(scores: Sequence[float]) -> float:
    return min(scores, default=0.0)


def product(scores: Sequence[float]) -> float:
    return math.prod(scores) if scores else 0.0


def last(scores: Sequence[float]) -> float:
    return scores[-1] if scores else 0.0


def geometric_mean(scores: Sequence[float]) -> float:
    if not scores or min(scores) <= 0:
        return 0.0
    return math.exp(math.fsum(math.log(score) for score in scores) / len(scores))


AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": mean,
    "min": minimum,
    "product": product,
    "last": last,
    "geometric_mean": geometric_mean,
}


def aggregate(scores: Sequence[float], how: str = "mean") -> float:
    """The solution's score in [0, 1] from its step scores."""
    if how not in AGGREGATIONS:
        raise InputError(f"unknown aggregation {how!r}; choose one of {', '.join(AGGREGATIONS)}")
    return AGGREGATIONS[how](scores)
