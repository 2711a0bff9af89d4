"""How well a ranking agrees with the true one: ConsistencyRank's metrics (arXiv 2512.04784), in its convention and in the standard one.

Orders are lists of item indices, the best first; both name the same n >= 2 items. Pure Python.

The released code hands scipy the two index lists themselves ("list convention"), not the rank that each order gives to each item. The two
agree where the orders are equal or reversed; between, they often differ, even in sign: for [1, 2, 0] against [0, 1, 2] both give
-1/3, but for [1, 2, 0] against [0, 2, 1] the lists give 1/3 and the ranks -1. Published figures are those of the lists.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

from ..types import InputError

METRICS = ("accuracy", "t1b1", "kendall_list", "spearman_list", "kendall", "spearman", "footrule")


def predicted_order(scores: Sequence[float], seed: str | int | None = None) -> list[int]:
    """Items by falling score. Equal scores: in an order drawn from `seed`, or, with None, in that of the file, as the released code's
    argsort leaves them (a scorer that says the same of everything then gets the score of the file's order)."""
    items = list(range(len(scores)))
    if seed is not None:
        random.Random(seed).shuffle(items)
    return sorted(items, key=lambda item: -scores[item])


def ranks_of(order: Sequence[int]) -> list[int]:
    """The place of each item in an order."""
    places = [0] * len(order)
    for place, item in enumerate(order):
        places[item] = place
    return places


def position_accuracy(predicted: Sequence[int], truth: Sequence[int]) -> float:
    """The share of places that hold the true item."""
    _check(predicted, truth)
    return sum(p == t for p, t in zip(predicted, truth, strict=True)) / len(truth)


def t1b1(predicted: Sequence[int], truth: Sequence[int]) -> float:
    """([the best item is right] + [the worst is]) / 2."""
    _check(predicted, truth)
    return ((predicted[0] == truth[0]) + (predicted[-1] == truth[-1])) / 2


def kendall(first: Sequence[int], second: Sequence[int]) -> float:
    """Kendall's tau of two lists of n different numbers: (concordant - discordant) / C(n, 2)."""
    signs = [1 if (first[i] - first[j]) * (second[i] - second[j]) > 0 else -1 for i, j in combinations(range(len(first)), 2)]
    return sum(signs) / len(signs)


def spearman(first: Sequence[int], second: Sequence[int]) -> float:
    """Spearman's rho of two permutations of the same numbers 0 .. n-1: 1 - 6 sum d^2 / (n (n^2 - 1))."""
    n = len(first)
    return 1 - 6 * sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) / (n * (n * n - 1))


def footrule(predicted: Sequence[int], truth: Sequence[int]) -> float:
    """Spearman's footrule: how far items lie from their true places, summed, as a share of the most possible (floor(n^2 / 2)); 0 is best.
    The released code reports a footrule beside the paper's metrics; dividing by the most possible is ours."""
    _check(predicted, truth)
    moved = sum(abs(a - b) for a, b in zip(ranks_of(predicted), ranks_of(truth), strict=True))
    return moved / (len(truth) ** 2 // 2)


def rank_figures(predicted: Sequence[int], truth: Sequence[int]) -> dict[str, float]:
    """Every metric of one instance. `kendall_list` and `spearman_list` are of the index lists, as published; `kendall` and `spearman` of
    the items' ranks, the standard definition."""
    _check(predicted, truth)
    places, true_places = ranks_of(predicted), ranks_of(truth)
    return {
        "accuracy": position_accuracy(predicted, truth),
        "t1b1": t1b1(predicted, truth),
        "kendall_list": kendall(predicted, truth),
        "spearman_list": spearman(predicted, truth),
        "kendall": kendall(places, true_places),
        "spearman": spearman(places, true_places),
        "footrule": footrule(predicted, truth),
    }


def chance(n: int) -> dict[str, float]:
    """What a ranking at random is expected to get."""
    return {
        "accuracy": 1 / n,
        "t1b1": 1 / n,
        **dict.fromkeys(("kendall_list", "spearman_list", "kendall", "spearman"), 0.0),
        "footrule": (n * n - 1) / 3 / (n * n // 2),
    }


def _check(predicted: Sequence[int], truth: Sequence[int]) -> None:
    if len(truth) < 2 or sorted(predicted) != list(range(len(truth))) or sorted(truth) != list(range(len(truth))):
        raise InputError(f"orders must name the same items, at least two, each once, from 0; got {list(predicted)} and {list(truth)}")
