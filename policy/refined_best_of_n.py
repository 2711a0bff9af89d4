"""Refined Best-of-N of GM-PRM (arXiv 2508.04088): half of the budget is sampled, the other half goes on from corrected prefixes.

The critic reads the first half, names each solution's first wrong step and rewrites it. The policy then continues from
the steps before it and the rewritten step. All N candidates are scored and the best is chosen. The paper does not
say what happens where there is nothing to correct; each such case is a named setting below.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from ..prm.steps import prefix_before, prefix_with
from ..serving.engine import Engine
from ..types import InputError, Problem, Scorer, Usage
from .result import Candidate, SearchResult
from .sampling import Draw, Pool, Sampling, best_index, check, count_unscored, draw, finish, request_seed, sample_pool, score_pools

NoError = Literal["resample", "keep", "random_prefix"]
NoCorrection = Literal["resample", "resample_step"]


def refined_best_of_n(
    problems: Sequence[Problem],
    policy: Engine,
    scorer: Scorer,
    *,
    n: int = 8,
    seed: int = 0,
    no_error: NoError = "resample",
    no_correction: NoCorrection = "resample",
    fix: bool = True,
    reuse_scores: bool = True,
    rounds: int = 1,
    pool: Sequence[Pool] | None = None,
    **sampling: Any,
) -> list[SearchResult]:
    """The highest-scored of exactly `n` candidates for each problem, in order: ceil(n/2) sampled, floor(n/2) regenerated.

    Slot ceil(n/2) + j is regenerated from initial candidate j. Its assistant turn is opened with the steps before the first
    error and the corrected step (`vlrm.prm.steps.prefix_with`); the wrong step and all that followed are gone.

    - `no_error`, where the critic finds no wrong step: "resample" the slot from scratch; "keep" the parent once more (no policy
      cost); "random_prefix": go on from a random number of the parent's steps.
    - `no_correction`, where a critique could not be read, or its correction is missing, is empty, repeats the original step or points
      outside the solution: "resample" from scratch; "resample_step": go on from before the wrong step, if one was named.
    - `fix=False` is the control that tells correction from localisation: the same prefixes without the corrected step.
    - `reuse_scores=False` scores the initial half again together with the rest.
    - `rounds`: how often a slot may be corrected; from the second round on a regenerated candidate that still holds a correctable error is
      replaced by its own correction's continuation. The pool stays `n`; the replaced versions stay in the cost.

    The choice and its ties are those of `best_of_n`. `pool`, as in `sample_pool`, may hold up to `n` candidates: the first half are
    the initial ones, and a slot that is resampled from scratch takes the pool's candidate in that slot. `details["origins"]`
    counts the candidates by origin (see `Candidate`), `details["unscored"]` those without a score.
    """
    check(problems, n)
    for name, value, choices in (("no_error", no_error, get_args(NoError)), ("no_correction", no_correction, get_args(NoCorrection))):
        if value not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, got {rounds}")
    sampling.setdefault("max_steps", getattr(scorer, "max_steps", Sampling.max_steps))  # the critic's step numbers must mean our steps
    settings, initial = Sampling(**sampling), (n + 1) // 2
    given = [[] for _ in problems] if pool is None else [list(have) for have in pool]
    pools = sample_pool(problems, policy, n=initial, seed=seed, pool=given, **sampling)
    if n > initial:
        pools = score_pools(problems, pools, scorer)
        cases = no_error, no_correction, fix
        plans = [
            [_plan(problem, candidates[slot - initial], slot, slot - initial, seed, *cases) for slot in range(initial, n)]
            for problem, candidates in zip(problems, pools, strict=True)
        ]
        fill = _regenerate(plans, given, policy, settings, seed)
        pools = [candidates + second for candidates, second in zip(pools, fill, strict=True)]
        if not reuse_scores:
            pools = [[replace(candidate, score=None) for candidate in candidates] for candidates in pools]
    pools = score_pools(problems, pools, scorer)
    for round in range(1, rounds):
        pools = _correct_again(problems, pools, initial, round, policy, settings, seed, fix)
        pools = score_pools(problems, pools, scorer)
    return [
        finish(
            problem,
            candidates,
            best_index(candidates),
            method="refined_best_of_n" if fix else "no_fix",
            origins=dict(Counter(candidate.origin for candidate in candidates)),
            unscored=count_unscored(candidates),
        )
        for problem, candidates in zip(problems, pools, strict=True)
    ]


def _corrected(problem: Problem, candidate: Candidate, slot: int, parent: int, fix: bool, round: int = 0) -> Draw | None:
    """The request that goes on from the candidate's first wrong step, rewritten; None where its critique gives nothing to go on from."""
    step, correction = candidate.score.first_error, (candidate.score.correction or "").strip()
    if step is None or not 0 <= step < len(candidate.steps) or not correction:
        return None
    if correction.split() == candidate.steps[step].text.split():
        return None
    if not fix:
        return Draw(problem, slot, prefix_before(candidate.text, candidate.steps, step), round, "no_fix", parent, step)
    prefix = prefix_with(candidate.text, candidate.steps, step, correction)
    return Draw(problem, slot, prefix, round, "refined", parent, step, correction)


def _plan(
    problem: Problem, parent: Candidate, slot: int, index: int, seed: int, no_error: NoError, no_correction: NoCorrection, fix: bool
) -> Draw | Candidate:
    """What fills one slot of the second half: a request to the policy, or the parent itself where it is kept."""
    if corrected := _corrected(problem, parent, slot, index, fix):
        return corrected
    score, steps = parent.score, parent.steps
    read = score.value is not None and all(verdict.correct is not None for verdict in score.verdicts)
    if score.first_error is None and read:
        if no_error == "keep":
            return replace(parent, origin="kept", parent=index, policy_usage=Usage(), scorer_usage=Usage())
        if no_error == "random_prefix" and len(steps) > 1:
            cut = random.Random(request_seed(seed, problem.id, slot)).randrange(1, len(steps))
            return Draw(problem, slot, prefix_before(parent.text, steps, cut), origin="random_prefix", parent=index, step=cut)
    elif no_correction == "resample_step" and score.first_error is not None and 0 <= score.first_error < len(steps):
        step = score.first_error
        return Draw(problem, slot, prefix_before(parent.text, steps, step), origin="no_fix", parent=index, step=step)
    return Draw(problem, slot, origin="resampled")


def _regenerate(
    plans: list[list[Draw | Candidate]], given: list[Pool], policy: Engine, settings: Sampling, seed: int
) -> list[list[Candidate]]:
    """The second half of every pool, from one call of the policy. A fresh sample that the given pool already holds is taken from there."""

    def ready(plan: Draw | Candidate, have: Pool) -> Candidate | None:
        if isinstance(plan, Candidate):
            return plan
        return replace(have[plan.slot], origin="resampled") if plan.origin == "resampled" and plan.slot < len(have) else None

    filled = [[ready(plan, have) for plan in row] for row, have in zip(plans, given, strict=True)]
    wanted = [(p, s) for p, row in enumerate(filled) for s, candidate in enumerate(row) if candidate is None]
    for (p, s), candidate in zip(wanted, draw([plans[p][s] for p, s in wanted], policy, settings, seed), strict=True):
        filled[p][s] = candidate
    return filled


def _correct_again(
    problems: Sequence[Problem], pools: list[Pool], initial: int, round: int, policy: Engine, settings: Sampling, seed: int, fix: bool
) -> list[Pool]:
    """Pools whose regenerated candidates with a correctable error are replaced by that correction's continuation, still unscored."""
    draws = [
        (p, _corrected(problem, candidates[slot], slot, candidates[slot].parent, fix, round))
        for p, (problem, candidates) in enumerate(zip(problems, pools, strict=True))
        for slot in range(initial, len(candidates))
    ]
    draws = [(p, item) for p, item in draws if item is not None]
    pools = [list(candidates) for candidates in pools]
    for (p, item), new in zip(draws, draw([item for _, item in draws], policy, settings, seed), strict=True):
        old = pools[p][item.slot]
        pools[p][item.slot] = replace(new, policy_usage=old.policy_usage + new.policy_usage, scorer_usage=old.scorer_usage)
    return pools
