"""Flat Monte-Carlo labels: continuations of every prefix of a solution (Math-Shepherd, arXiv 2312.08935; VL-PRM, arXiv 2509.23250)."""

from __future__ import annotations

from collections.abc import Sequence

from .rollouts import Ask, Rollout, Search, Solution
from .rules import Counts, Estimate, hard_flags


def flat(solution: Solution, k: int = 8, *, threshold: float = 0.0, stop_at_zero: bool = False) -> Search[Estimate]:
    """An estimate of each step from `k` continuations of the prefix that ends with it.

    The whole solution needs none: its own answer is its count, 1 of 1 or 0 of 1. `stop_at_zero` goes step by step and ends at the first
    share at or below `threshold`, so that what follows costs nothing and stays unlabelled.
    """
    places = range(len(solution.steps) - 1)
    found: list[list[Rollout]] = []
    if stop_at_zero:
        for index in places:
            found += yield [Ask(solution.problem, solution.prefix(index), k)]
            if False in hard_flags([count(found[-1])], threshold):
                break
    elif places:
        found = yield [Ask(solution.problem, solution.prefix(index), k) for index in places]
    counts = [count(rollouts) for rollouts in found]
    counts += [None] * (len(places) - len(counts)) + [own_count(solution)]
    tokens = sum(rollout.tokens for rollouts in found for rollout in rollouts)
    return Estimate(tuple(counts), hard_flags(counts, threshold), tokens)


def count(rollouts: Sequence[Rollout]) -> Counts | None:
    """[right, all] of the continuations that count; None where none does."""
    known = [rollout.right for rollout in rollouts if rollout.right is not None]
    return (sum(known), len(known)) if known else None


def own_count(solution: Solution) -> Counts | None:
    return None if solution.right is None else (int(solution.right), 1)
