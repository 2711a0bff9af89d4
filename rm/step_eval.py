"""Every step metric with its interval, beside the baselines that anyone can have without a model. numpy, scipy and scikit-learn only.

Intervals are percentile bootstraps over solutions: the steps of one solution are not independent. All metrics but AUC and temperature are
functions of counts that add up over solutions, so a resample is one row of a matrix product. Legend: N solutions, C counts, R resamples.

Baselines: `random` calls a step right with the probability of a right step in the data (its figures are exact expectations of the counts);
`always_right` calls every step right; `length` calls a step wrong that has more words than a threshold, which is chosen for macro-F1
on the other folds of solutions (5 folds), and its AUC is that of the number of words itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..types import InputError
from .calibration import BINS, bin_index, cross_fitted, ece_of_sums, fit_temperature, folds, reliability_bins
from .step_metrics import Judged, first_error, first_error_right

Counts = dict[str, np.ndarray]
_CHUNK = 4_000_000  # values of resampling held at once


@dataclass(frozen=True)
class ScoredSolution:
    """A solution as a scorer sees it: `judged` holds verdicts and truth, `scores` (S,) P(right) of each step in [0, 1] (None: the scorer
    gives none), `lengths` (S,) the words of each step."""

    judged: Judged
    lengths: Sequence[int]
    scores: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, values in (("lengths", self.lengths), ("scores", self.scores)):
            if values is not None and len(values) != len(self.judged.truth):
                raise InputError(f"{len(values)} {name} for {len(self.judged.truth)} steps; give one for each step")


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(over, dtype=float) / np.where(under > 0, under, np.nan)


def _f1_right(c: Counts) -> np.ndarray:
    return np.nan_to_num(_ratio(2 * c["right_as_right"], 2 * c["right_as_right"] + c["wrong_as_right"] + c["right_as_wrong"]))


def _f1_wrong(c: Counts) -> np.ndarray:
    return np.nan_to_num(_ratio(2 * c["wrong_as_wrong"], 2 * c["wrong_as_wrong"] + c["wrong_as_right"] + c["right_as_wrong"]))


def _process_f1(c: Counts) -> np.ndarray:
    wrong, right = _ratio(c["located"], c["faulty"]), _ratio(c["cleared"], c["sound"])
    total = np.where(wrong + right == 0, 1.0, wrong + right)  # nan stays nan: not measurable without both sorts of solutions
    return 2 * wrong * right / total


# name -> function of the summed counts; each takes and gives arrays of any shape. nan: there was no case to measure it on.
METRICS: dict[str, Callable[[Counts], np.ndarray]] = {
    "macro_f1": lambda c: (_f1_right(c) + _f1_wrong(c)) / 2,  # VisualProcessBench (arXiv 2503.10291), neutral steps left out
    "f1_right": _f1_right,
    "f1_wrong": _f1_wrong,
    "process_f1": _process_f1,  # ProcessBench (arXiv 2412.06559): harmonic mean of the next two
    "accuracy_on_faulty": lambda c: _ratio(c["located"], c["faulty"]),
    "accuracy_on_sound": lambda c: _ratio(c["cleared"], c["sound"]),
    "first_error_accuracy": lambda c: _ratio(c["located"] + c["cleared"], c["faulty"] + c["sound"]),
    "perception_recall": lambda c: _ratio(c["perception_found"], c["perception"]),
    "reasoning_recall": lambda c: _ratio(c["reasoning_found"], c["reasoning"]),
    "parse_failure_rate": lambda c: _ratio(c["unread"], c["steps"]),
}


def counts_of(item: Judged) -> dict[str, float]:
    """What one solution adds to the counts. An unread verdict is a wrong one."""
    labelled = [
        (p, t, k) for p, t, k in zip(item.predicted, item.truth, item.kinds or [None] * len(item.truth), strict=True) if t is not None
    ]
    faulty = first_error(item.truth) is not None
    named = first_error_right(item)
    return {
        "right_as_right": sum(t and p is True for p, t, _ in labelled),
        "right_as_wrong": sum(t and p is not True for p, t, _ in labelled),
        "wrong_as_wrong": sum(not t and p is False for p, t, _ in labelled),
        "wrong_as_right": sum(not t and p is not False for p, t, _ in labelled),
        "faulty": faulty,
        "located": faulty and named,
        "sound": not faulty and bool(labelled),
        "cleared": not faulty and bool(labelled) and named,
        **{kind: sum(not t and k == kind for _, t, k in labelled) for kind in ("perception", "reasoning")},
        **{f"{kind}_found": sum(not t and k == kind and p is False for p, t, k in labelled) for kind in ("perception", "reasoning")},
        "unread": sum(p is None for p in item.predicted),
        "steps": len(item.truth),
    }


def expected_counts(item: Judged, p: float) -> dict[str, float]:
    """The mean of `counts_of` where every step is called right with probability p, independently."""
    counts = {name: float(value) for name, value in counts_of(replace(item, predicted=[True] * len(item.truth))).items()}
    right, wrong = counts["right_as_right"], counts["wrong_as_right"]
    before = sum(t is not None for t in item.truth[: first_error(item.truth)])
    return counts | {
        "right_as_right": p * right,
        "right_as_wrong": (1 - p) * right,
        "wrong_as_wrong": (1 - p) * wrong,
        "wrong_as_right": p * wrong,
        "located": counts["faulty"] * p**before * (1 - p),
        "cleared": counts["sound"] * p**before,
        "perception_found": (1 - p) * counts["perception"],
        "reasoning_found": (1 - p) * counts["reasoning"],
    }


def evaluate(
    items: Sequence[ScoredSolution], *, baselines_only: bool = False, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """The figures of the scorer and of every baseline: {"scorer": {metric: {"value", "ci95"}}, "random": ..., ...}.

    A metric without a case to measure it on is None. Also the numbers of solutions and steps, and under "reliability" the bins. AUC and
    calibration are measured where every solution has scores. A step that could not be read keeps its score in the AUC; it has no
    probability that could be well or badly calibrated, and is left out there (`parse_failure_rate` says how many are)."""
    if not items:
        raise InputError("there is no solution to evaluate")
    judged = [item.judged for item in items]
    truth = [t for item in judged for t in item.truth if t is not None]
    if not truth:
        raise InputError("no step of these solutions has a label; give data with labels, judge, critiques or mc_scores")
    rate = sum(truth) / len(truth)
    draws = list(_weights(len(items), resamples, seed))
    always = [replace(item, predicted=[True] * len(item.truth)) for item in judged]
    rivals = {
        "random": [expected_counts(item, rate) for item in judged],
        "always_right": [counts_of(item) for item in always],
        "length": [counts_of(item) for item in length_verdicts(items, seed=seed)],
    }
    tables = {name: _figures(rows, draws, level) for name, rows in rivals.items()}
    for name in tables:
        del tables[name]["parse_failure_rate"]
    tables["random"]["auc"] = tables["always_right"]["auc"] = {"value": 0.5, "ci95": [0.5, 0.5]} if 0 < rate < 1 else None
    tables["length"]["auc"] = _auc(items, [[-length for length in item.lengths] for item in items], draws, level)
    scorer, reliability = None, None
    if not baselines_only:
        scorer = _figures([counts_of(item) for item in judged], draws, level)
    if scorer and all(item.scores is not None for item in items):
        scorer["auc"] = _auc(items, [item.scores for item in items], draws, level)
        score, step_truth, owner = _labelled(items, [item.scores for item in items], read=True)
        if len(score):
            scorer |= _calibration(len(items), score, step_truth, owner, draws, level, seed)
            reliability = reliability_bins(score, step_truth)
    return {
        **({"scorer": scorer} if scorer else {}),
        **tables,
        "reliability": reliability,
        "solutions": len(items),
        "faulty": sum(first_error(item.truth) is not None for item in judged),
        "steps": len(truth),
        "wrong_steps": len(truth) - sum(truth),
        "neutral_steps": sum(len(item.truth) for item in judged) - len(truth),
        "errors_by_kind": {kind: int(sum(counts_of(item)[kind] for item in judged)) for kind in ("perception", "reasoning")},
        "resamples": resamples,
        "level": level,
    }


def length_verdicts(items: Sequence[ScoredSolution], seed: int = 0) -> list[Judged]:
    """The verdicts of the length baseline: wrong above the number of words that gives the best macro-F1 on the other folds."""
    fold = folds(len(items), seed=seed)
    result: list[Judged] = []
    limits = {k: _best_limit([item for item, at in zip(items, fold, strict=True) if at != k] or items) for k in set(fold.tolist())}
    for item, at in zip(items, fold.tolist(), strict=True):
        result.append(replace(item.judged, predicted=[length <= limits[at] for length in item.lengths]))
    return result


def _best_limit(items: Sequence[ScoredSolution]) -> float:
    """The length above which calling a step wrong gives the best macro-F1; -1 calls every step wrong."""
    pairs = sorted((n, t) for item in items for n, t in zip(item.lengths, item.judged.truth, strict=True) if t is not None)
    lengths, right = np.array([n for n, _ in pairs]), np.array([float(t) for _, t in pairs])
    if not len(lengths):
        return math.inf
    last = np.append(np.flatnonzero(np.diff(lengths)), len(lengths) - 1)  # ties lie on one side
    limits = np.append(-1, lengths[last])
    as_right, as_wrong = np.append(0, np.cumsum(right)[last]), np.append(0, np.cumsum(1 - right)[last])
    counts = {
        "right_as_right": as_right,
        "wrong_as_right": as_wrong,
        "right_as_wrong": right.sum() - as_right,
        "wrong_as_wrong": (1 - right).sum() - as_wrong,
    }
    return float(limits[np.argmax(METRICS["macro_f1"](counts))])


def _weights(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """(R', N) how often each solution is drawn, in chunks of resamples."""
    rng, size = np.random.default_rng(seed), max(1, _CHUNK // n)
    for start in range(0, resamples, size):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(size, resamples - start)).astype(np.float64)


def _figure(value: float, resampled: Sequence[np.ndarray], level: float) -> dict[str, Any] | None:
    if np.isnan(value):
        return None
    values = np.concatenate([np.atleast_1d(part) for part in resampled])
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2]) if not np.isnan(values).all() else (value, value)
    return {"value": float(value), "ci95": [float(low), float(high)]}


def _figures(rows: Sequence[dict[str, float]], draws: Sequence[np.ndarray], level: float) -> dict[str, Any]:
    names = list(rows[0])
    matrix_NC = np.array([[row[name] for name in names] for row in rows], dtype=float)
    whole = dict(zip(names, matrix_NC.sum(axis=0), strict=True))
    drawn = [dict(zip(names, (weights_RN @ matrix_NC).T, strict=True)) for weights_RN in draws]
    return {name: _figure(float(metric(whole)), [metric(part) for part in drawn], level) for name, metric in METRICS.items()}


def _labelled(
    items: Sequence[ScoredSolution], scores: Sequence[Sequence[float]], read: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, truth and solution index of every labelled step; with `read` only of those whose verdict could be read."""
    rows = [
        (s, t, i)
        for i, (item, own) in enumerate(zip(items, scores, strict=True))
        for s, t, p in zip(own, item.judged.truth, item.judged.predicted, strict=True)
        if t is not None and not (read and p is None)
    ]
    return (
        np.array([r[0] for r in rows], dtype=float),
        np.array([r[1] for r in rows], dtype=bool),
        np.array([r[2] for r in rows], dtype=int),
    )


def _auc(
    items: Sequence[ScoredSolution], scores: Sequence[Sequence[float]], draws: Sequence[np.ndarray], level: float
) -> dict[str, Any] | None:
    from sklearn.metrics import roc_auc_score

    score, truth, owner = _labelled(items, scores)
    if truth.all() or not truth.any():
        return None
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(score[order]) > 0))
    resampled = []
    for weights_RN in draws:
        for rows in np.array_split(weights_RN, max(1, len(weights_RN) * len(score) // _CHUNK)):
            resampled.append(weighted_auc(rows[:, owner[order]], truth[order], starts))
    return _figure(float(roc_auc_score(truth, score)), resampled, level)


def weighted_auc(weights: np.ndarray, truth: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(R,) the chance that a right step scores above a wrong one, ties counting half. `weights` (R, N) of steps in ascending order of
    score, `starts` where each run of equal scores begins."""
    right = np.add.reduceat(weights * truth, starts, axis=1)
    wrong = np.add.reduceat(weights * ~truth, starts, axis=1)
    below = np.cumsum(wrong, axis=1) - wrong
    return _ratio((right * (below + wrong / 2)).sum(axis=1), right.sum(axis=1) * wrong.sum(axis=1))


def _calibration(
    n: int, score: np.ndarray, truth: np.ndarray, owner: np.ndarray, draws: Sequence[np.ndarray], level: float, seed: int
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, values in (("ece", score), ("ece_after_temperature", cross_fitted(score, truth, owner, seed=seed))):
        sums = np.zeros((n, BINS, 3))
        np.add.at(sums, (owner, bin_index(values)), np.stack([np.ones_like(values), values, truth.astype(float)], axis=1))
        drawn = [(w @ sums.reshape(n, -1)).reshape(len(w), BINS, 3) for w in draws]
        figures[name] = _figure(
            float(ece_of_sums(*np.moveaxis(sums.sum(axis=0), -1, 0))), [ece_of_sums(*np.moveaxis(d, -1, 0)) for d in drawn], level
        )
    some = np.concatenate([w[: max(1, 200 * len(w) // sum(map(len, draws)))] for w in draws])  # a fit takes longer than a sum
    fits = [fit_temperature(score, truth, w[owner]) for w in some]
    figures["temperature"] = _figure(fit_temperature(score, truth), [np.array(fits)], level)
    return figures
