"""PS-GRPO (URSA, arXiv 2501.04686): a process reward model as a brake on the outcome reward, so that it cannot be hacked itself.

drop = max_j (r_j - r_(j+1)) / r_j over a solution's step scores. Reward 1 where the answer is right and drop <= rho, 1 - gamma where it is
right and drop > rho, 0 where it is wrong. The paper's gamma is 0.5, its rho 0.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ...rm.checkers import load_checker
from ...types import InputError, Sample, Score, Scorer, Usage


def relative_drop(steps: Sequence[float]) -> float:
    """The largest relative fall from a step to the next one, at least 0. A step of score 0 has nothing left to fall."""
    return max([0.0, *((now - later) / now for now, later in pairwise(steps) if now > 0)])


def ps_grpo(right: bool, steps: Sequence[float], gamma: float = 0.5, rho: float = 0.3) -> float:
    """The reward of one solution; its step scores lie in [0, 1]."""
    if not right:
        return 0.0
    return 1.0 if relative_drop(steps) <= rho + 1e-9 else 1.0 - gamma


class PSGRPO:
    """The reward as a scorer around a scorer with steps. None where the answer cannot be checked, or is right and has no step scores."""

    columns = ("answer",)

    def __init__(self, scorer: Scorer, *, gamma: float = 0.5, rho: float = 0.3, checker: str = "auto"):
        if not 0 <= gamma <= 1 or rho < 0:
            raise InputError(f"gamma must lie in [0, 1] and rho be at least 0, got {gamma} and {rho}")
        self.scorer, self.gamma, self.rho, self.check = scorer, gamma, rho, load_checker(checker)

    @property
    def usage(self) -> Usage:
        return self.scorer.usage

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        return [self._score(sample, score) for sample, score in zip(samples, self.scorer(samples), strict=True)]

    def _score(self, sample: Sample, score: Score) -> Score:
        right = self.check(sample.solution, sample.problem)
        details = {**score.details, "value": score.value, "drop": relative_drop(score.steps)}
        if right is None:
            return replace(score, value=None, details=details, error="the answer could not be checked")
        if right and (score.value is None or not score.steps):
            return replace(score, value=None, details=details, error=score.error or "the scorer gave no step scores")
        return replace(score, value=ps_grpo(right, score.steps, self.gamma, self.rho), details=details, error=None)
