"""Problems with gold answers in, step-labelled records out: sampling, estimating, judging and ruling for one batch of problems.

    labelled = label_problems(problems, load_engine("tiny-policy"), method="binary", rule="hard", k=8)

Everything that yields no label is counted by its reason in `Labelled.counts`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...prm.records import StepRecord
from ...rm.checkers import Checker
from ...serving.engine import Engine
from ...types import InputError, Problem
from ..problems import of_world
from ..step_records import judge_steps
from .binary import binary
from .flat import flat
from .insert import insert_into_text, insert_into_world
from .judge import Judge
from .omega import omega
from .rollouts import Rollouts, Solution, Unfinished, lockstep, sample_solutions
from .rules import (
    Advantage,
    AfterError,
    Consistency,
    Counts,
    Estimate,
    Judgement,
    Rule,
    after_first_error,
    agreement,
    apply_rule,
    first_wrong,
    located,
)  # fmt: skip

Method = Literal["flat", "binary", "omega", "judge"]
TREE = ("alpha", "beta", "length", "c_puct", "searches", "budget")


@dataclass(frozen=True)
class Labelled:
    """The records of a batch of problems, and what became of everything else."""

    records: tuple[StepRecord, ...]
    counts: Counter[str]


@dataclass(frozen=True)
class _Case:
    """A solution and what is known of it."""

    solution: Solution
    root: Counts | None
    estimate: Estimate | None = None
    weak: Estimate | None = None
    judgement: Judgement | None = None


def check_settings(method: str, rule: str, judged: bool) -> None:
    """Raises InputError where a rule lacks what it looks at."""
    if method not in ("flat", "binary", "omega", "judge"):
        raise InputError(f"method must be flat, binary, omega or judge, got {method!r}")
    if rule in ("judge", "hybrid", "consensus") and not judged:
        raise InputError(f"rule {rule} needs a judge: give --judge ENGINE, or choose hard, soft or advantage")
    if method == "judge" and rule != "judge":
        raise InputError(f"method judge makes no rollouts, so rule {rule} cannot be applied; give --rule judge, or another method")
    if method != "judge" and rule == "judge":
        raise InputError(f"rule judge looks at no rollouts, so method {method} would spend them for nothing; give --method judge")
    if method in ("binary", "omega") and rule == "advantage":
        raise InputError(f"rule {rule} wants the share of every prefix and method {method} does not look at every one; give --method flat")


def label_problems(
    problems: Sequence[Problem],
    policy: Engine,
    *,
    method: Method = "flat",
    rule: Rule = "hard",
    samples: int = 1,
    k: int = 8,
    judge: Judge | None = None,
    completer: Engine | None = None,
    weak: Engine | None = None,
    checker: Checker | None = None,
    seed: int = 0,
    max_steps: int = 12,
    threshold: float = 0.0,
    stop_at_zero: bool = False,
    siblings: bool = True,
    tree: dict[str, Any] | None = None,
    consistency: Consistency = "first_error",
    after_error: AfterError = "null",
    advantage: Advantage = "linear",
    insertions: int = 0,
    world_kinds: bool = True,
    unfinished: Unfinished = "drop",
    **sampling: Any,
) -> Labelled:
    """Labels `samples` sampled solutions of each problem. `sampling`: temperature, top_p, top_k, max_tokens, instruction.

    - `method`: how steps are estimated. `flat`, `binary` and `omega` are the functions of these names (`tree` holds further settings of
      `omega`; there `samples` are the root's continuations and should be at least 8); `judge` samples nothing.
    - `siblings`: `binary` takes steps that are shared with a right solution of the problem as right, unless a completer is asked instead.
    - `completer` makes the continuations in the policy's place. With `weak`, a second completer, a step is labelled where both agree.
    - `judge` is asked about every solution that the rule needs it for. `hybrid` looks at rollouts only where the judge finds no error,
      so none are made elsewhere.
    - `insertions` of each right solution are added with one error put in; a problem of a world has it written by the world.
    - `world_kinds`: a solution without sections to a problem of a world gets the kinds of what its steps claim, with `meta["kinds_by"]`
      "world", so that a VL-PRM can be trained on labels of one kind. A step that claims both kinds has none.
    - A problem without a gold answer is counted and left out, unless `method` is "judge".
    """
    check_settings(method, rule, judge is not None)
    for name, number in (("samples", samples), ("k", k)):
        if number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")
    if unknown := [name for name in tree or () if name not in TREE]:
        raise InputError(f"tree has no setting {unknown[0]!r}; there are {', '.join(TREE)}")
    options = {"seed": seed, "unfinished": unfinished, **sampling}
    sampler = Rollouts(policy, checker, **options)
    makers = [Rollouts(engine, checker, **options) for engine in (completer or policy, weak) if engine is not None]
    counts: Counter[str] = Counter(problems=len(problems))
    with_gold = [problem for problem in problems if problem.answer is not None or method == "judge"]
    counts["no_gold_answer"] = len(problems) - len(with_gold)
    pools, sampled = sample_solutions(with_gold, sampler, samples, max_steps)
    counts.update(sampled)
    counts.update({"solution_tokens": sampler.counts["tokens"]})
    counts.update({name: sampler.counts[name] for name in ("checker_failed", "unclear")})

    cases = [_Case(solution, _root(pool)) for pool in pools for solution in pool]
    if rule == "hybrid" and method != "omega":
        cases = _judged(cases, judge, counts)
    near = pools if siblings and completer is None else []
    searches = {
        "flat": lambda solution: flat(solution, k, threshold=threshold, stop_at_zero=stop_at_zero),
        "binary": lambda solution: binary(solution, k, threshold=threshold),
        "first": lambda solution: binary(solution, k, threshold=threshold, siblings=family.get(solution.problem.id, ())),
        "omega": lambda pool: omega(pool[0].problem, pool, k, max_steps=max_steps, **(tree or {})),
    }
    family = {pool[0].problem.id: pool for pool in near if pool}
    cases = _estimated(cases, pools, makers, method, rule, searches)
    if rule in ("judge", "consensus") or (rule == "hybrid" and method == "omega"):
        cases = _judged(cases, judge, counts)
    for maker, prefix in zip(makers, ("", "weak_"), strict=False):
        counts.update({prefix + name: number for name, number in maker.counts.items() if name not in ("checker_failed", "unclear")})
        counts.update({name: maker.counts[name] for name in ("checker_failed", "unclear")})

    names = {"policy": policy.name, "completer": makers[0].engine.name, "weak": weak and weak.name}
    shared = {**names, "method": method, "rule": rule, "k": k, "seed": seed, "temperature": sampler.sampling["temperature"]}
    records = []
    for case in cases:
        record = _record(case, shared, rule, consistency, after_error, advantage, counts)
        made = [] if record is None else [record]
        made += _with_errors(case.solution, shared, insertions, seed, after_error, counts)
        records += [_with_world_kinds(record, case.solution.problem) for record in made] if world_kinds else made
    for record in records:
        for label in record.labels or ():
            counts["labels_null" if label is None else "labels_positive" if label > 0.5 else "labels_negative"] += 1
    counts["records"] = len(records)
    return Labelled(tuple(records), +counts)


def _root(pool: Sequence[Solution]) -> Counts | None:
    """[right, all] of a problem's sampled solutions: the root's share."""
    known = [solution.right for solution in pool if solution.right is not None]
    return (sum(known), len(known)) if known else None


def _judged(cases: list[_Case], judge: Judge | None, counts: Counter[str]) -> list[_Case]:
    judgements, judged = judge([case.solution for case in cases])
    counts.update(judged)
    return [replace(case, judgement=judgement) for case, judgement in zip(cases, judgements, strict=True)]


def _estimated(
    cases: list[_Case],
    pools: Sequence[Sequence[Solution]],
    makers: Sequence[Rollouts],
    method: Method,
    rule: Rule,
    searches: Mapping[str, Callable[[Any], Any]],
) -> list[_Case]:
    """The cases with what the completers' rollouts say of them; `omega` has cases of its own."""
    if method == "judge":
        return cases
    if method == "omega":
        solved = [pool for pool in pools if pool]
        grown = lockstep([searches["omega"](pool) for pool in solved], makers[0])
        known = {case.solution.id: case for case in cases}
        cases = [
            replace(known.get(solution.id, _Case(solution, _root(pool))), estimate=estimate)
            for pool, found in zip(solved, grown, strict=True)
            for solution, estimate in found
        ]
    else:
        wanted = [case for case in cases if rule != "hybrid" or _needs_rollouts(case.judgement)]
        search = searches["first" if method == "binary" else method]
        estimates = lockstep([search(case.solution) for case in wanted], makers[0])
        found = {case.solution.id: estimate for case, estimate in zip(wanted, estimates, strict=True)}
        cases = [replace(case, estimate=found.get(case.solution.id)) for case in cases]
    if len(makers) > 1:
        wanted = [case for case in cases if case.estimate is not None]
        search = searches["flat" if method == "flat" else "binary"]
        weak = lockstep([search(case.solution) for case in wanted], makers[1])
        found = {case.solution.id: estimate for case, estimate in zip(wanted, weak, strict=True)}
        cases = [replace(case, weak=found.get(case.solution.id)) for case in cases]
    return cases


def _needs_rollouts(judgement: Judgement | None) -> bool:
    return judgement is not None and not judgement.unread and False not in judgement.verdicts


def _record(
    case: _Case,
    shared: dict[str, Any],
    rule: Rule,
    consistency: Consistency,
    after_error: AfterError,
    advantage: Advantage,
    counts: Counter[str],
) -> StepRecord | None:
    """The record of a solution, or None where the rule drops it, which is counted."""
    solution, judgement, estimate = case.solution, case.judgement, case.estimate
    if estimate is not None and case.weak is not None:
        estimate = agreement(estimate, case.weak)
        counts["completers_disagree"] += sum(a != b for a, b in zip(case.estimate.hard, case.weak.hard, strict=True))
    ruled = apply_rule(rule, estimate, judgement, root=case.root, consistency=consistency, after_error=after_error, advantage=advantage)
    if ruled.labels is None:
        counts[f"dropped: {ruled.dropped}"] += 1
        return None
    trusted = judgement is not None and judgement.critiques is not None
    verdicts = judgement.verdicts if judgement is not None and not judgement.unread else None
    hard = verdicts if verdicts is not None else estimate.hard
    measured = case.estimate.counts if case.estimate else None
    complete = measured is not None and all(pair is not None for pair in measured)
    meta = {
        **shared,
        "problem": solution.problem.id,
        "root": case.root and list(case.root),
        "right": solution.right,
        "solution_tokens": solution.tokens,
        "rollout_tokens": estimate.tokens if estimate else 0,
    }
    if case.weak is not None:
        meta["weak_counts"] = [pair and list(pair) for pair in case.weak.counts]
    if judgement is not None:
        meta["judge_first_error"] = first_wrong(judgement.verdicts)
        meta["judge_tokens"] = judgement.tokens
    return StepRecord(
        id=solution.id,
        question=solution.problem.question,
        steps=tuple(step.text for step in solution.steps),
        images=tuple(solution.problem.images),
        answer=solution.problem.answer,
        source=f"labels/{shared['method']}/{rule}",
        mc_scores=tuple(right / total for right, total in measured) if complete else None,
        judge=tuple(verdicts) if verdicts is not None and None not in verdicts else None,
        critiques=judgement.critiques if trusted else None,
        first_error=first_wrong(hard) if located(hard) else None,
        correction=judgement.correction if trusted else None,
        kinds=_kinds(solution),
        mc_counts=measured,
        labels=ruled.labels,
        meta=meta,
    )


def _with_world_kinds(record: StepRecord, problem: Problem) -> StepRecord:
    """The record with the kinds that a world knows of its steps; as it is where it has sections or is of no world."""
    if record.kinds is not None or not of_world(problem):
        return record
    kinds = tuple(truth.kind for truth in judge_steps(problem, record.steps))
    return replace(record, kinds=kinds, meta={**record.meta, "kinds_by": "world"}) if any(kinds) else record


def _kinds(solution: Solution) -> tuple[Any, ...] | None:
    kinds = tuple(step.kind for step in solution.steps)
    return kinds if any(kinds) else None


def _with_errors(
    solution: Solution, shared: dict[str, Any], insertions: int, seed: int, after_error: AfterError, counts: Counter[str]
) -> list[StepRecord]:
    """Records of a right solution with one error put in; where nothing can be swapped, that is counted."""
    records = []
    for number in range(insertions if solution.right else 0):
        rng, problem = random.Random(f"{seed} {solution.id} insertion {number}"), solution.problem
        world = of_world(problem)
        texts = [step.text for step in solution.steps]
        kinds = [step.kind for step in solution.steps]
        found = insert_into_world(problem, rng) if world else insert_into_text(texts, rng, kinds if any(kinds) else ())
        if found is None:
            counts["insertion: nothing to swap"] += 1
            continue
        counts[f"inserted_{found.kind}"] += 1
        wrong = 1 + found.step
        labels = (1.0,) * found.step + (0.0,) + (None,) * (len(found.steps) - wrong)
        swap = {"step": found.step, "kind": found.kind, "from": found.original, "to": found.swapped, "by": found.rule}
        records.append(
            StepRecord(
                id=f"{solution.id}-e{number}",
                question=problem.question,
                steps=found.steps,
                images=tuple(problem.images),
                answer=problem.answer,
                source=f"labels/inserted/{found.kind}",
                first_error=found.step,
                kinds=None if world else _kinds(solution),
                labels=after_first_error(labels, found.step, "wrong" if after_error == "wrong" else "null"),
                meta={**{name: shared[name] for name in ("policy", "seed")}, "problem": problem.id, "inserted": swap},
            )
        )
    return records
