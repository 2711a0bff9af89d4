"""Test-time search: plain functions over (problems, policy engine, scorer), one per file."""

from __future__ import annotations

from .beam_search import beam_search
from .best_of_n import best_of_n, weighted_best_of_n
from .dvts import dvts
from .guided_greedy import guided_greedy
from .one_shot import one_shot
from .refined_best_of_n import refined_best_of_n
from .result import Candidate, SearchResult
from .sampling import sample_pool
from .self_consistency import self_consistency

SEARCH = {
    "self_consistency": self_consistency,  # the one that takes no scorer
    "best_of_n": best_of_n,
    "weighted_best_of_n": weighted_best_of_n,
    "refined_best_of_n": refined_best_of_n,
    "one_shot": one_shot,
    "guided_greedy": guided_greedy,
    "beam_search": beam_search,
    "dvts": dvts,
}

__all__ = [
    "SEARCH", "Candidate", "SearchResult", "best_of_n", "refined_best_of_n", "sample_pool", "self_consistency", "weighted_best_of_n",
]  # fmt: skip
