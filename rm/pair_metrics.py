"""How good are a scorer's preferences? Every figure with its interval. numpy only; nothing here needs a model.

Three conventions stand side by side, because published numbers differ by more than methods do:

    published   VL-RewardBench (arXiv 2411.17451): agree / (agree + reject); ties and judgements that could not be read are left out, and
                `excluded` says how many. `macro` is the mean over groups.
    strict      what was not decided counts as wrong
    half        what was not decided counts as half

Legend: N pairs, G groups, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import InputError
from .calibration import cross_fitted, ece, fit_temperature, reliability_bins
from .compare import Comparison
from .judgement import majority

CONVENTIONS = ("published", "strict", "half")


@dataclass(frozen=True)
class JudgedPair:
    """A pair whose better answer is known, and what was said of it. `lengths`: words of the better and of the worse answer; `comparison`
    names the better one "first"."""

    id: str
    group: str
    lengths: tuple[int, int]
    comparison: Comparison

    @property
    def right(self) -> bool | None:
        """Whether the better answer won; None for a tie and where nothing could be read."""
        return {"first": True, "second": False}.get(self.comparison.said)


def evaluate_pairs(pairs: Sequence[JudgedPair], *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, Any]:
    """{figure: {"value", "ci95"}} over all pairs, and under "groups", "reliability", "by_votes" what belongs there. A figure without a
    case to measure it on is None.

    - accuracies by convention, `macro_...` their means over groups, `excluded` the share that "published" leaves out, `ties`, `unparsed`;
    - position: `order_agreement`, how often the verdicts in the two orders agree, over pairs whose answers were decided in both;
      `first_share`, how often the answer shown first wins, 0.5 without bias;
    - length: `longer_wins`, the accuracy of always taking the longer answer (equal lengths count half); `length_correlation`, Pearson's
      between log-odds and difference in words, both towards the better answer: what is left of length's influence once the truth is
      held fixed, so a partial correlation;
    - `ece` of P(better answer) and what it is after a temperature fitted on other folds;
    - `parse_rate`: judgements that could be read.
    """
    if not pairs:
        raise InputError("there is no pair to evaluate")
    weights_RN = np.random.default_rng(seed).multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=resamples)
    weights_RN = np.vstack([np.ones(len(pairs)), weights_RN]).astype(float)  # row 0: the data themselves
    names = sorted({pair.group for pair in pairs})
    members_GN = np.array([[pair.group == name for pair in pairs] for name in names], dtype=float)
    figures: dict[str, Any] = {}
    for convention in CONVENTIONS:
        value_N, counts_N = _outcomes(pairs, convention)
        figures[f"accuracy_{convention}"] = _mean(weights_RN, value_N, counts_N, level)
        by_group_GR = np.stack([_ratio(weights_RN @ (value_N * counts_N * m), weights_RN @ (counts_N * m)) for m in members_GN])
        figures[f"macro_{convention}"] = _figure(_over_groups(by_group_GR), level) if len(names) > 1 else None
    said = [pair.comparison.said for pair in pairs]
    everything = np.ones(len(pairs))
    figures["excluded"] = _mean(weights_RN, np.array([pair.right is None for pair in pairs], dtype=float), everything, level)
    figures["ties"] = _mean(weights_RN, np.array([word == "tie" for word in said], dtype=float), everything, level)
    figures["unparsed"] = _mean(weights_RN, np.array([word == "unparsed" for word in said], dtype=float), everything, level)
    figures |= {name: _mean(weights_RN, *pair_values(pairs, name), level) for name in ("order_agreement", "first_share", "longer_wins")}
    figures["parse_rate"] = _mean(weights_RN, *pair_values(pairs, "parse_rate"), level)
    figures["length_correlation"] = _correlation(pairs, weights_RN, level)
    calibration, bins = _calibration(pairs, weights_RN[: 1 + min(200, resamples)], level, seed)
    return {
        "pairs": len(pairs),
        "figures": figures | calibration,
        "groups": {name: _group([pair for pair in pairs if pair.group == name], seed, level) for name in names if len(names) > 1},
        "by_votes": by_votes(pairs),
        "reliability": bins,
        "resamples": resamples,
        "level": level,
    }


def pair_values(pairs: Sequence[JudgedPair], name: str) -> tuple[np.ndarray, np.ndarray]:
    """((N,) mean of a pair's cases, (N,) how many cases it has) of order_agreement, first_share, longer_wins or parse_rate."""
    rows = [_CASES[name](pair) for pair in pairs]
    counts = np.array([len(row) for row in rows], dtype=float)
    return np.array([sum(row) / len(row) if row else 0.0 for row in rows]), counts


def by_votes(pairs: Sequence[JudgedPair]) -> list[dict[str, Any]]:
    """Accuracies when only the first K votes of each pair count, for odd K: VL-RewardBench's curve. Empty for scorers without votes."""
    most = min((len(pair.comparison.votes) for pair in pairs), default=0)
    rows = []
    for k in range(1, most + 1, 2):
        said = [majority([vote.said for vote in pair.comparison.votes[:k]]) for pair in pairs]
        agree, reject = said.count("first"), said.count("second")
        published = agree / (agree + reject) if agree + reject else None
        rows.append({"votes": k, "published": published, "strict": agree / len(said), "excluded": 1 - (agree + reject) / len(said)})
    return rows if most > 1 else []


def _outcomes(pairs: Sequence[JudgedPair], convention: str) -> tuple[np.ndarray, np.ndarray]:
    undecided = {"published": 0.0, "strict": 0.0, "half": 0.5}[convention]
    value = np.array([undecided if pair.right is None else float(pair.right) for pair in pairs])
    counts = np.array([float(pair.right is not None or convention != "published") for pair in pairs])
    return value, counts


def _order_agreement(pair: JudgedPair) -> list[float]:
    sides = [majority([vote.said for vote in pair.comparison.votes if vote.swapped == swapped]) for swapped in (False, True)]
    return [float(sides[0] == sides[1])] if all(side in ("first", "second") for side in sides) else []


_CASES: dict[str, Any] = {
    "order_agreement": _order_agreement,
    "first_share": lambda pair: [float(vote.shown_first) for vote in pair.comparison.votes if vote.shown_first is not None],
    "longer_wins": lambda pair: [0.5 + 0.5 * np.sign(pair.lengths[0] - pair.lengths[1])],
    "parse_rate": lambda pair: (
        [float(vote.said != "unparsed") for vote in pair.comparison.votes] or [float(pair.comparison.said != "unparsed")]
    ),
}


def _correlation(pairs: Sequence[JudgedPair], weights_RN: np.ndarray, level: float) -> dict[str, Any] | None:
    known = [i for i, pair in enumerate(pairs) if pair.comparison.logit is not None]
    if len(known) < 3:
        return None
    odds = np.array([pairs[i].comparison.logit for i in known], dtype=float)
    words = np.array([pairs[i].lengths[0] - pairs[i].lengths[1] for i in known], dtype=float)
    w = weights_RN[:, known] / np.maximum(weights_RN[:, known].sum(axis=1, keepdims=True), 1)
    mean_o, mean_w = w @ odds, w @ words
    covariance = w @ (odds * words) - mean_o * mean_w
    spread = np.sqrt(np.maximum(w @ odds**2 - mean_o**2, 0) * np.maximum(w @ words**2 - mean_w**2, 0))
    return _figure(_ratio(covariance, np.where(spread > 1e-12, spread, 0)), level)


def _calibration(
    pairs: Sequence[JudgedPair], weights_RN: np.ndarray, level: float, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """Each pair counts in both orientations, so that the bins are symmetric and the truth is not always the same."""
    known = [pair for pair in pairs if pair.comparison.logit is not None]
    none = {"ece": None, "ece_after_temperature": None, "temperature": None}
    if not known:
        return none, None
    odds = np.clip(np.array([pair.comparison.logit for pair in known], dtype=float), -30, 30)
    p = 1 / (1 + np.exp(-np.concatenate([odds, -odds])))
    truth, owner = np.repeat([True, False], len(known)), np.tile(np.arange(len(known)), 2)
    after = cross_fitted(p, truth, owner, seed=seed)
    mine = np.array([pair.comparison.logit is not None for pair in pairs])
    rows = weights_RN[:, mine].astype(int)
    drawn = [np.repeat(np.arange(2 * len(known)), np.tile(row, 2)) for row in rows]
    figures = {
        name: _figure(np.array([ece(values[at], truth[at]) if len(at) else np.nan for at in drawn]), level)
        for name, values in (("ece", p), ("ece_after_temperature", after))
    }
    return figures | {"temperature": {"value": fit_temperature(p, truth), "ci95": None}}, reliability_bins(p, truth)


def _group(pairs: Sequence[JudgedPair], seed: int, level: float) -> dict[str, Any]:
    weights = np.random.default_rng(seed).multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=500)
    weights = np.vstack([np.ones(len(pairs)), weights]).astype(float)
    accuracies: Mapping[str, Any] = {c: _mean(weights, *_outcomes(pairs, c), level) for c in CONVENTIONS}
    longer = _mean(weights, *pair_values(pairs, "longer_wins"), level)
    return {"pairs": len(pairs), **accuracies, "longer_wins": longer}


def _mean(weights_RN: np.ndarray, value_N: np.ndarray, counts_N: np.ndarray, level: float) -> dict[str, Any] | None:
    return _figure(_ratio(weights_RN @ (value_N * counts_N), weights_RN @ counts_N), level)


def _over_groups(values_GR: np.ndarray) -> np.ndarray:
    """(R,) the mean over the groups that have a value."""
    return _ratio(np.nansum(values_GR, axis=0), (~np.isnan(values_GR)).sum(axis=0))


def _figure(values_R: np.ndarray, level: float) -> dict[str, Any] | None:
    """Row 0 is the figure, the others its resamples."""
    if np.isnan(values_R[0]):
        return None
    low, high = np.nanquantile(values_R[1:], [(1 - level) / 2, (1 + level) / 2]) if len(values_R) > 1 else (values_R[0],) * 2
    return {"value": float(values_R[0]), "ci95": [float(low), float(high)]}


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return over / np.where(under != 0, under, np.nan)
