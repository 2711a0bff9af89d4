"""Do probabilities mean what they say? Reliability bins, expected calibration error, temperature. numpy and scipy only.

Throughout, `scores` (N,) are P(right) of steps in [0, 1] and `truth` (N,) says which are right. Legend: N steps, K bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10
_EDGE = 1e-6  # a probability of exactly 0 or 1 has no logit


def bin_index(scores: Sequence[float], bins: int = BINS) -> np.ndarray:
    """(N,) the bin of each score: equal widths, the last bin closed."""
    return np.minimum((np.asarray(scores, dtype=float) * bins).astype(int), bins - 1)


def reliability_bins(scores: Sequence[float], truth: Sequence[bool], bins: int = BINS) -> list[dict[str, Any]]:
    """For each bin its bounds, how many scores fall into it, their mean and the share of right steps among them (None where empty)."""
    scores, truth = np.asarray(scores, dtype=float), np.asarray(truth, dtype=float)
    index = bin_index(scores, bins)
    rows = []
    for k in range(bins):
        mine = index == k
        count = int(mine.sum())
        means = (float(scores[mine].mean()), float(truth[mine].mean())) if count else (None, None)
        rows.append({"low": k / bins, "high": (k + 1) / bins, "count": count, "score": means[0], "right": means[1]})
    return rows


def ece_of_sums(count_K: np.ndarray, score_K: np.ndarray, right_K: np.ndarray) -> np.ndarray:
    """Expected calibration error (Guo et al., arXiv 1706.04599) from the bins' sums (..., K): sum_k |score_k - right_k| / N."""
    total = count_K.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(score_K - right_K).sum(axis=-1) / np.where(total > 0, total, np.nan)


def ece(scores: Sequence[float], truth: Sequence[bool], bins: int = BINS) -> float:
    """Expected calibration error of P(right): the mean over steps of |mean score - share right| of the step's bin."""
    index, scores, truth = bin_index(scores, bins), np.asarray(scores, dtype=float), np.asarray(truth, dtype=float)
    sums = [np.bincount(index, weights, bins) for weights in (np.ones_like(scores), scores, truth)]
    return float(ece_of_sums(*sums))


def fit_temperature(scores: Sequence[float], truth: Sequence[bool], weights: Sequence[float] | None = None) -> float:
    """The T between 1/50 and 50 for which sigmoid(logit(score) / T) has the least negative log-likelihood (Guo et al.). Above 1: the scores
    were too sure."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit

    signed = _logit(scores) * np.where(np.asarray(truth, dtype=bool), 1.0, -1.0)
    weights = np.ones_like(signed) if weights is None else np.asarray(weights, dtype=float)
    bound = float(np.log(50))
    found = minimize_scalar(lambda t: -(weights * log_expit(signed * np.exp(-t))).sum(), bounds=(-bound, bound), method="bounded")
    return float(np.exp(found.x))


def with_temperature(scores: Sequence[float], temperature: float) -> np.ndarray:
    """(N,) the scores after division of their logits by the temperature."""
    from scipy.special import expit

    return expit(_logit(scores) / temperature)


def folds(groups: int, count: int = 5, seed: int = 0) -> np.ndarray:
    """(groups,) the fold of each group (solution), of nearly equal sizes, in random order."""
    return np.random.default_rng(seed).permutation(np.arange(groups) % max(1, min(count, groups)))


def cross_fitted(scores: Sequence[float], truth: Sequence[bool], group: Sequence[int], count: int = 5, seed: int = 0) -> np.ndarray:
    """(N,) the scores after a temperature that was fitted on the other folds. `group` (N,): the solution of each step, from 0."""
    scores, truth, group = np.asarray(scores, dtype=float), np.asarray(truth, dtype=bool), np.asarray(group)
    fold = folds(int(group.max()) + 1, count, seed)[group]
    result = scores.copy()
    for k in range(fold.max() + 1):
        inside = fold == k
        if inside.any() and not inside.all():
            result[inside] = with_temperature(scores[inside], fit_temperature(scores[~inside], truth[~inside]))
    return result


def _logit(scores: Sequence[float]) -> np.ndarray:
    from scipy.special import logit

    return logit(np.clip(np.asarray(scores, dtype=float), _EDGE, 1 - _EDGE))
