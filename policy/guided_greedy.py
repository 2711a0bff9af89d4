"""Guided greedy step search (VL-PRM, arXiv 2509.23250): sample some next steps, keep the best-judged, go on from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..serving.engine import Engine
from ..types import Problem, Scorer
from .result import SearchResult
from .sampling import check
from .step_search import climb, split_settings


def guided_greedy(
    problems: Sequence[Problem], policy: Engine, scorer: Scorer, *, n: int = 16, seed: int = 0, **settings: Any
) -> list[SearchResult]:
    """One solution for each problem, in order: every step is the best of `n` samples, until the turn ends, an answer stands, or
    `max_rounds` (100, as in the paper's code) is reached.

    `settings` are those of `Growth` (rank, step_stop, dedupe, max_policy_tokens) and `Sampling`. With a VLPRM whose score is "reward",
    `rank="score"` is the paper's choice; with probabilities `rank="last"` compares p(+) of the new step. `details` tells the rounds, the
    duplicates and why the search stopped: "ended", "rounds" or "budget".
    """
    check(problems, n)
    growth, sampling = split_settings(settings, scorer, max_rounds=100)
    return climb(problems, policy, scorer, 1, n, growth, sampling, seed, "guided_greedy")
