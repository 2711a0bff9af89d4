"""Binary search for the first error: O(k log S) continuations instead of O(k S) (OmegaPRM, arXiv 2406.06592; URSA's error localisation).

A solution that reaches the gold answer is itself a right continuation of each of its prefixes, so all of its steps are right by the
hard rule and nothing is sampled. In a wrong one, steps before which some continuation still succeeds are right; the first prefix from
which none does ends with the first error. The search takes it that no later prefix succeeds again.
"""

from __future__ import annotations

from .flat import count, own_count
from .rollouts import Ask, Search, Solution
from .rules import Counts, Estimate, hard_flags


def binary(solution: Solution, k: int = 8, *, threshold: float = 0.0) -> Search[Estimate]:
    """Right up to the first error, wrong at it, unknown after it; `counts` where the search looked.

    Unknown altogether where the solution's own answer could not be checked, or where no continuation of a prefix that it looked at counts.
    """
    size = len(solution.steps)
    counts: list[Counts | None] = [None] * (size - 1) + [own_count(solution)]
    if solution.right is not False:
        return Estimate(tuple(counts), (solution.right,) * size)
    low, high, tokens = 0, size - 1, 0  # the first error lies in [low, high]
    while low < high:
        middle = (low + high) // 2
        (rollouts,) = yield [Ask(solution.problem, solution.prefix(middle), k)]
        tokens += sum(rollout.tokens for rollout in rollouts)
        counts[middle] = count(rollouts)
        (reached,) = hard_flags([counts[middle]], threshold)
        if reached is None:
            return Estimate(tuple(counts), (None,) * size, tokens)
        low, high = (middle + 1, high) if reached else (low, middle)
    return Estimate(tuple(counts), (True,) * low + (False,) + (None,) * (size - low - 1), tokens)
