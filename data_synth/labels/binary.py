"""Binary search for the first error: O(k log S) continuations instead of O(k S) (OmegaPRM, arXiv 2406.06592; URSA's error localisation).

A solution that reaches the gold answer is itself a right continuation of each of its prefixes, so all of its steps are right by the
hard rule and nothing is sampled. In a wrong one, steps before which some continuation still succeeds are right; the first prefix from
which none does ends with the first error. The search takes it that no later prefix succeeds again. By the same rule the steps that a wrong
solution shares with a right one of the same problem, word for word from the start, are right and need no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

from .flat import count, own_count
from .rollouts import Ask, Search, Solution
from .rules import Counts, Estimate, hard_flags


def binary(solution: Solution, k: int = 8, *, threshold: float = 0.0, siblings: Sequence[Solution] = ()) -> Search[Estimate]:
    """Right up to the first error, wrong at it, unknown after it; `counts` where the search looked.

    `siblings`: other solutions of the problem; the search begins behind what is shared with a right one. With a threshold above 0 one
    success shows nothing, and they are not looked at.

    Unknown altogether where the solution's own answer could not be checked, or where no continuation of a prefix that it looked at counts.
    """
    size = len(solution.steps)
    counts: list[Counts | None] = [None] * (size - 1) + [own_count(solution)]
    if solution.right is not False:
        return Estimate(tuple(counts), (solution.right,) * size)
    low = 0 if threshold > 0 else max((shared_steps(solution, other) for other in siblings if other.right), default=0)
    low, high, tokens = min(low, size - 1), size - 1, 0  # the first error lies in [low, high]
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


def shared_steps(solution: Solution, other: Solution) -> int:
    """How many steps from the start two solutions share, to the letter."""
    same = [solution.text[: a.end] == other.text[: b.end] for a, b in zip(solution.steps, other.steps, strict=False)]
    return sum(same[: same.index(False)] if False in same else same)
