"""The doubt beside a figure: bootstrap intervals, Wilson intervals and McNemar's exact test. numpy and scipy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..types import InputError

_CHUNK = 4_000_000  # resampled values held at once


def bootstrap_ci(values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979). `values` (N,): one figure for each problem, 0/1 for accuracy."""
    sample = _vector(values, "values")
    means = _resampled_means(sample, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `first - second` with its interval: (difference, low, high). Both (N,), the same problems in the same order."""
    difference = _paired(first, second)
    return float(difference.mean()), *bootstrap_ci(difference, level=level, resamples=resamples, seed=seed)


def cluster_bootstrap(
    values: Sequence[float], clusters: Sequence[Any], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float, float]:
    """(mean, low, high, p) of `values` (N,), resampling whole clusters (N labels): values of one cluster are not independent.

    The interval is the percentile bootstrap's; p is two-sided, that of a mean of 0: twice the smaller share of resampled means on one side
    of it, at least 1 / resamples. Hand it differences for a paired comparison.
    """
    sample = _vector(values, "values")
    if len(clusters) != len(sample):
        raise InputError(f"every value needs a cluster, got {len(sample)} values and {len(clusters)} clusters")
    places = {name: k for k, name in enumerate(dict.fromkeys(clusters))}
    index = np.array([places[name] for name in clusters])
    sums, sizes = np.bincount(index, sample), np.bincount(index).astype(float)
    rng, rows = np.random.default_rng(seed), max(1, _CHUNK // len(sums))
    means = []
    for done in range(0, resamples, rows):
        drawn = rng.integers(0, len(sums), (min(rows, resamples - done), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    resampled = np.concatenate(means)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    p = min(1.0, max(2 * min((resampled <= 0).mean(), (resampled >= 0).mean()), 1 / resamples))
    return float(sample.mean()), float(low), float(high), float(p)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided exact McNemar p: are `first` and `second`, right or wrong on the same problems, equally often right?

    Only problems that exactly one of them solves count; with none of those p is 1.
    """
    from scipy.stats import binomtest

    difference = _paired(np.asarray(first, dtype=bool), np.asarray(second, dtype=bool))
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def wilson(successes: int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    from scipy.stats import norm

    if count < 1 or not 0 <= successes <= count:
        raise InputError(f"a proportion needs 0 <= successes <= count and count >= 1, got {successes} of {count}")
    z = norm.ppf((1 + level) / 2)
    share, shrink = successes / count, 1 + z * z / count
    centre = (share + z * z / (2 * count)) / shrink
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / shrink
    # At the ends the bound is exact; rounding would put it a hair inside.
    return (0.0 if successes == 0 else float(centre - half)), (1.0 if successes == count else float(centre + half))


def accuracy_ci(right: Sequence[bool], *, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """(accuracy, low, high) of right-or-wrong outcomes, by bootstrap."""
    return float(_vector(right, "outcomes").mean()), *bootstrap_ci(right, level=level, seed=seed)


def _vector(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} must be a non-empty flat list of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be numbers; leave out what was not measured before asking for an interval")
    return array


def _paired(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    first, second = _vector(first, "the first list"), _vector(second, "the second list")
    if len(first) != len(second):
        raise InputError(f"a paired comparison needs the same problems on both sides, got {len(first)} and {len(second)}")
    return first - second


def _resampled_means(sample: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    rng, rows = np.random.default_rng(seed), max(1, _CHUNK // sample.size)
    parts = [
        sample[rng.integers(0, sample.size, (min(rows, resamples - done), sample.size))].mean(axis=1) for done in range(0, resamples, rows)
    ]
    return np.concatenate(parts)
