"""Diverse verifier tree search (search-and-learn): several guided searches side by side that never look at each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..serving.engine import Engine
from ..types import Problem, Scorer
from .result import SearchResult
from .sampling import check
from .step_search import check_width, climb, split_settings


def dvts(
    problems: Sequence[Problem], policy: Engine, scorer: Scorer, *, n: int = 8, beam_width: int = 4, seed: int = 0, **settings: Any
) -> list[SearchResult]:
    """The best-scored of `n / beam_width` solutions for each problem, in order, each grown in a subtree of its own: every step is
    the best of `beam_width` samples.

    `settings` are those of `Growth` (40 rounds at most) and `Sampling`; `details` as in `guided_greedy`. The choice at the end and its
    ties are those of `best_of_n`; one solution a subtree is a candidate (search-and-learn also keeps the siblings of its last step).
    """
    check(problems, n)
    check_width(n, beam_width)
    growth, sampling = split_settings(settings, scorer)
    return climb(problems, policy, scorer, n // beam_width, beam_width, growth, sampling, seed, "dvts")
