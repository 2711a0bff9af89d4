"""A process reward model as an outcome model (VL-PRM, arXiv 2509.23250): the whole solution judged as a single step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..serving.engine import Engine
from ..types import InputError, Problem, Sample, Score, Scorer, Usage
from .best_of_n import best_of_n
from .result import SearchResult
from .sampling import Pool


def one_shot(
    problems: Sequence[Problem],
    policy: Engine,
    scorer: Scorer,
    *,
    n: int = 8,
    seed: int = 0,
    pool: Sequence[Pool] | None = None,
    **sampling: Any,
) -> list[SearchResult]:
    """Best-of-N whose scorer sees each solution as one step. Arguments as in `best_of_n`; `scorer` must have `max_steps`, as VLPRM and
    GMPRM do."""
    found = best_of_n(problems, policy, Whole(scorer), n=n, seed=seed, pool=pool, **sampling)
    return [replace(result, details={**result.details, "method": "one_shot"}) for result in found]


class Whole:
    """A scorer that judges every text as one step; what it spends is the other's too."""

    def __init__(self, scorer: Scorer):
        self.whole, self.scorer, self.usage = copy.copy(scorer), scorer, Usage()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        if not hasattr(self.whole, "max_steps"):
            raise InputError(f"one_shot needs a scorer that can judge a text as one step (max_steps), got {type(self.scorer).__name__}")
        self.whole.max_steps, self.whole.usage = 1, Usage()
        scores = self.whole(samples)
        self.usage += self.whole.usage
        self.scorer.usage += self.whole.usage
        return scores
