"""Best-of-N, plain and weighted: sample N solutions, let a scorer choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..serving.engine import Engine
from ..types import Problem, Scorer
from .result import SearchResult
from .sampling import Pool, answer_groups, best_index, count_unscored, finish, known, sample_pool, score_pools


def best_of_n(
    problems: Sequence[Problem],
    policy: Engine,
    scorer: Scorer,
    *,
    n: int = 8,
    seed: int = 0,
    pool: Sequence[Pool] | None = None,
    **sampling: Any,
) -> list[SearchResult]:
    """The highest-scored of `n` samples for each problem, in order.

    A score of None ranks below every number. Ties: fewer Incorrect verdicts, then the answer that more candidates give,
    then the lowest index. `pool` and `sampling` are as in `sample_pool`; pool candidates that carry a score keep it.
    `details["unscored"]` counts the candidates without a score.
    """
    pools = score_pools(problems, sample_pool(problems, policy, n=n, seed=seed, pool=pool, **sampling), scorer)
    return [
        finish(problem, candidates, best_index(candidates), method="best_of_n", unscored=count_unscored(candidates))
        for problem, candidates in zip(problems, pools, strict=True)
    ]


def weighted_best_of_n(
    problems: Sequence[Problem],
    policy: Engine,
    scorer: Scorer,
    *,
    n: int = 8,
    seed: int = 0,
    pool: Sequence[Pool] | None = None,
    **sampling: Any,
) -> list[SearchResult]:
    """The answer with the largest sum of scores over the candidates that give it (arXiv 2206.02336), for each problem in order.

    Unscored candidates and those without an answer add nothing. Where no answer has a score, the best-of-n choice stands. The
    chosen candidate is the best-scored of the winning answer. Ties: more votes, then the first answer. Arguments as in `best_of_n`.
    """
    pools = score_pools(problems, sample_pool(problems, policy, n=n, seed=seed, pool=pool, **sampling), scorer)
    return [
        finish(problem, candidates, _weighted_index(candidates), method="weighted_best_of_n", unscored=count_unscored(candidates))
        for problem, candidates in zip(problems, pools, strict=True)
    ]


def _weighted_index(candidates: Pool) -> int:
    groups = [group for group in answer_groups(candidates) if any(known(candidates[i].value) for i in group)]
    if not groups:
        return best_index(candidates)

    def weight(group: list[int]) -> tuple[float, int, int]:
        return sum(candidates[i].value for i in group if known(candidates[i].value)), len(group), -group[0]

    winner = max(groups, key=weight)
    return winner[best_index([candidates[i] for i in winner])]
