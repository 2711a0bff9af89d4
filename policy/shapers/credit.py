"""Credit by steps: from the step scores of any PRM to advantages of tokens.

`outcome` gives every token its completion's advantage, as GRPO does. The others need a reward with step scores.

Published: with `horizon="rest"` and `outcome_weight=0`, `step_value` is the process supervision of GRPO (DeepSeekMath, arXiv 2402.03300,
section 4.1.3): r~ = (r - mean R) / std R over all step scores of the group, and a token's advantage is the sum of r~ over its own and all
later steps. Inferred: that a step's own value alone stands beside the completion's advantage (`horizon="step"`, `outcome_weight=1`);
and that an advantage of a step is the change of a prefix's value, with the value being the product (or minimum) of the step scores so far,
1 before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

import torch

from ...types import InputError, Score
from .batch import Batch, per_token, spread

Part = Literal["score", "image", "logic"]
EPS = 1e-4  # as in TRL's normalising of rewards


def outcome(advantages: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The advantages as they are."""
    return advantages


def step_value(
    advantages: torch.Tensor,
    batch: Batch,
    *,
    reward: str | None = None,
    part: Part = "score",
    horizon: Literal["step", "rest"] = "step",
    weight: float = 1.0,
    outcome_weight: float = 1.0,
    max_steps: int = 12,
) -> torch.Tensor:
    """outcome_weight * A + weight * (the step's score, normalised in its group). Where steps are not known, A alone. (B, T).

    `part`: "score" are the step scores; "image" and "logic" take GM-PRM's verdicts of one kind (1 right, 0 wrong; the score where the
    critic gave none). `horizon`: "step" is the step's own value, "rest" the sum of it and all later ones.
    """
    scores = batch.of(reward)
    values = [step_values(score, part) for score in scores]
    return _with_steps(advantages, batch, scores, values, horizon, weight, outcome_weight, max_steps)


def step_advantage(
    advantages: torch.Tensor,
    batch: Batch,
    *,
    reward: str | None = None,
    part: Part = "score",
    prefix: Literal["product", "min", "last"] = "product",
    horizon: Literal["step", "rest"] = "step",
    weight: float = 1.0,
    outcome_weight: float = 1.0,
    max_steps: int = 12,
) -> torch.Tensor:
    """outcome_weight * A + weight * (the change that the step makes to its prefix's value, normalised in its group). (B, T).

    `prefix` says what a prefix is worth: the product or the minimum of its step scores, or its last one. The other settings are
    those of `step_value`. With `horizon="rest"` the changes add up to the final value minus the value before the step.
    """
    scores = batch.of(reward)
    values = [step_changes(step_values(score, part), prefix) for score in scores]
    return _with_steps(advantages, batch, scores, values, horizon, weight, outcome_weight, max_steps)


def first_error(
    advantages: torch.Tensor,
    batch: Batch,
    *,
    reward: str | None = None,
    threshold: float = 0.5,
    after: float = 0.0,
    before: float = 1.0,
    max_steps: int = 12,
) -> torch.Tensor:
    """The advantage times a factor: 1 at the first wrong step, `after` at later ones, `before` at earlier ones where the advantage is
    negative. (B, T). A completion without an error, or whose steps are not known, keeps its advantage.

    The first wrong step is the scorer's own `first_error`, else the first step with a score below `threshold`. Inferred: `before` (1
    blames right steps with the rest of a wrong solution, as plain GRPO does; 0 spares them).
    """
    scores = batch.of(reward)
    index_BT = batch.steps_BT(scores, max_steps)
    advantages_BT = per_token(advantages, batch.mask_BT)
    factors = [error_factors(score, threshold, after) for score in scores]
    shaped_BT = advantages_BT * spread(factors, index_BT, torch.ones_like(advantages_BT))
    if before != 1.0:
        early = [error_factors(score, threshold, 1.0, before) for score in scores]
        early_BT = spread(early, index_BT, torch.ones_like(advantages_BT))
        shaped_BT = torch.where(advantages_BT < 0, shaped_BT * early_BT, shaped_BT)
    return shaped_BT


def step_values(score: Score, part: Part = "score") -> list[float]:
    """A number in [0, 1] for each step; none where the sample was not scored."""
    if part not in ("score", "image", "logic"):
        raise InputError(f"part must be score, image or logic, got {part!r}")
    if score.value is None:
        return []
    if part == "score":
        return list(score.steps)
    said = {verdict.step: getattr(verdict, part) for verdict in score.verdicts}
    return [own if said.get(k) is None else float(said[k]) for k, own in enumerate(score.steps)]


def step_changes(values: Sequence[float], prefix: str = "product") -> list[float]:
    """V_k - V_(k-1) for each step, V_0 = 1."""
    worth = {"product": lambda a, b: a * b, "min": min, "last": lambda a, b: b}
    if prefix not in worth:
        raise InputError(f"prefix must be one of {', '.join(worth)}, got {prefix!r}")
    along = list(accumulate(values, worth[prefix], initial=1.0))
    return [after - before for before, after in pairwise(along)]


def error_factors(score: Score, threshold: float, after: float, before: float = 1.0) -> list[float]:
    error = score.first_error
    if error is None:
        error = next((k for k, value in enumerate(score.steps) if value < threshold), None)
    if error is None:
        return [1.0] * len(score.steps)
    return [before if k < error else 1.0 if k == error else after for k in range(len(score.steps))]


def normalised(values: Sequence[Sequence[float]], group_size: int) -> list[list[float]]:
    """Step values minus the mean of all steps of the group, over their standard deviation (of a sample, as TRL's); 0 for a single step."""
    result: list[list[float]] = []
    for start in range(0, len(values), group_size):
        group = values[start : start + group_size]
        flat = torch.tensor([value for own in group for value in own], dtype=torch.float64)
        mean = float(flat.mean()) if len(flat) else 0.0
        std = float(flat.std()) if len(flat) > 1 else 0.0
        result += [[(value - mean) / (std + EPS) for value in own] for own in group]
    return result


def _with_steps(
    advantages: torch.Tensor,
    batch: Batch,
    scores: Sequence[Score],
    values: Sequence[Sequence[float]],
    horizon: str,
    weight: float,
    outcome_weight: float,
    max_steps: int,
) -> torch.Tensor:
    if horizon not in ("step", "rest"):
        raise InputError(f"horizon must be step or rest, got {horizon!r}")
    credit = normalised(values, batch.group_size)
    if horizon == "rest":
        credit = [list(accumulate(reversed(own)))[::-1] for own in credit]
    index_BT = batch.steps_BT(scores, max_steps)
    advantages_BT = per_token(advantages, batch.mask_BT)
    shaped_BT = outcome_weight * advantages_BT + weight * spread(credit, index_BT, torch.zeros_like(advantages_BT))
    return torch.where(index_BT >= 0, shaped_BT, advantages_BT)
