"""The OmegaPRM tree (arXiv 2406.06592; in pictures MM-PRM, arXiv 2505.13427): which wrong continuation to search next, and where.

A state is a prefix with its continuations; the root's are the sampled solutions. Each search takes the wrong continuation r of a
state s with the greatest Q(s, r) + U(s), finds its first error by binary search, and makes a state of every prefix that it looked at.

    Q(s, r) = alpha^(1 - MC(s)) * beta^(len(r) / L)      U(s) = c_puct * sqrt(sum of N) / (1 + N(s))

MC is the share of right continuations, N how often a state was taken, len the words of r. Only states with 0 < MC < 1 are taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...prm.sections import solution_steps
from ...types import Problem
from .flat import count, own_count
from .rollouts import Ask, Rollout, Search, Solution
from .rules import Counts, Estimate, hard_flags


@dataclass
class State:
    """A prefix, the counts of its continuations, the wrong ones not yet searched, and how often it was taken."""

    prefix: str
    counts: Counts | None
    wrong: list[str]
    visits: int = field(default=0)

    @property
    def open(self) -> bool:
        return bool(self.wrong) and self.counts is not None and 0 < self.counts[0] < self.counts[1]


def value(share: float, words: int, *, alpha: float = 0.5, beta: float = 0.9, length: int = 500) -> float:
    """Q of a continuation of `words` words from a state with this share of right ones."""
    return alpha ** (1 - share) * beta ** (words / length)


def bonus(visits: int, total: int, c_puct: float = 0.125) -> float:
    """U of a state that was taken `visits` of `total` times."""
    return c_puct * math.sqrt(total) / (1 + visits)


def omega(
    problem: Problem,
    solutions: Sequence[Solution],
    k: int = 8,
    *,
    alpha: float = 0.5,
    beta: float = 0.9,
    length: int = 500,
    c_puct: float = 0.125,
    searches: int = 200,
    budget: int = 1000,
    max_steps: int = 12,
) -> Search[list[tuple[Solution, Estimate]]]:
    """The labelled solutions of one problem: those of `solutions` that are right or were searched, then the tree's own continuations.

    `searches`: at most so many; `budget`: no search begins once so many continuations were sampled. The defaults are OmegaPRM's
    (alpha, beta, length, c_puct, k) and MM-PRM's (searches, budget). Empty where all solutions are right or all are wrong, as
    MM-PRM keeps trees with 0 < MC(root) < 1 alone.
    """
    judged = [solution for solution in solutions if solution.right is not None]
    wrong = list(dict.fromkeys(solution.text for solution in judged if not solution.right))
    root = State("", (sum(solution.right for solution in judged), len(judged)), wrong)
    if not root.open:
        return []
    states, sampled = {"": root}, 0
    searched: dict[str, tuple[Solution, Estimate]] = {}
    for number in range(searches):
        choice = _best(list(states.values()), alpha, beta, length, c_puct)
        if choice is None or sampled >= budget:
            break
        state, text = choice
        state.visits += 1
        state.wrong.remove(text)
        whole = state.prefix + text
        if whole in searched:
            continue
        steps = tuple(solution_steps(whole, max_steps))
        solution = Solution(f"{problem.id}-t{number}", problem, whole, steps, False)
        low = next((i for i, step in enumerate(steps) if step.end > len(state.prefix)), len(steps) - 1)
        high, tokens, known = len(steps) - 1, 0, True
        while low < high and known:
            middle = (low + high) // 2
            prefix = solution.prefix(middle)
            if prefix not in states:
                (rollouts,) = yield [Ask(problem, prefix, k)]
                sampled += k
                tokens += sum(rollout.tokens for rollout in rollouts)
                states[prefix] = State(prefix, count(rollouts), _wrong(rollouts))
            (reached,) = hard_flags([states[prefix].counts])
            known = reached is not None
            low, high = (middle + 1, high) if reached else (low, middle)
        hard = (True,) * low + (False,) + (None,) * (len(steps) - low - 1) if known else (None,) * len(steps)
        searched[whole] = (solution, Estimate((), hard, tokens))
    labelled = []
    for solution in judged:
        if solution.right:
            labelled.append((solution, Estimate((), (True,) * len(solution.steps))))
        elif solution.text in searched:
            labelled.append((solution, searched[solution.text][1]))
            searched[solution.text] = (solution, replace(searched[solution.text][1], tokens=0))
    given = {solution.text for solution in judged}
    labelled += [pair for text, pair in searched.items() if text not in given]
    return [(solution, replace(estimate, counts=_counts(solution, states))) for solution, estimate in labelled]


def _counts(solution: Solution, states: Mapping[str, State]) -> tuple[Counts | None, ...]:
    """What the tree knows of a solution's prefixes."""
    found = [states.get(solution.prefix(index)) for index in range(len(solution.steps) - 1)]
    return (*(state and state.counts for state in found), own_count(solution))


def _wrong(rollouts: Sequence[Rollout]) -> list[str]:
    return list(dict.fromkeys(rollout.text for rollout in rollouts if rollout.right is False and rollout.text.strip()))


def _best(states: Sequence[State], alpha: float, beta: float, length: int, c_puct: float) -> tuple[State, str] | None:
    """The state and continuation with the greatest Q + U, the first of equals; None where none is left."""
    total = sum(state.visits for state in states)
    best, choice = -math.inf, None
    for state in states:
        if state.open:
            share, extra = state.counts[0] / state.counts[1], bonus(state.visits, total, c_puct)
            for text in state.wrong:
                score = value(share, len(text.split()), alpha=alpha, beta=beta, length=length) + extra
                if score > best:
                    best, choice = score, (state, text)
    return choice
