"""Self-consistency: the answer that most samples agree on (Wang et al., arXiv 2203.11171). No scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..serving.engine import Engine
from ..types import Problem
from .result import SearchResult
from .sampling import Pool, answer_groups, finish, sample_pool


def self_consistency(
    problems: Sequence[Problem], policy: Engine, *, n: int = 8, seed: int = 0, pool: Sequence[Pool] | None = None, **sampling: Any
) -> list[SearchResult]:
    """The majority answer of `n` samples for each problem, in order.

    Answers are compared by `vlrm.rm.answers.same_answer`; a tie goes to the answer that came first; solutions without an answer do not
    vote. `pool` and `sampling` are as in `sample_pool`. `details["votes"]`: how many candidates gave the chosen answer.
    """
    results = []
    for problem, candidates in zip(problems, sample_pool(problems, policy, n=n, seed=seed, pool=pool, **sampling), strict=True):
        majority = max(answer_groups(candidates), key=len, default=[0])
        votes = len(majority) if candidates[majority[0]].answer is not None else 0
        results.append(finish(problem, candidates, majority[0], method="self_consistency", votes=votes))
    return results
