"""The figures of a quickstart: every arm with its interval and cost, paired tests, and the critic's steps held against the truth."""

from __future__ import annotations

import platform
import random
from collections.abc import Mapping, Sequence
from typing import Any

from ..data_synth import blind_accuracy, judge_steps
from ..rm.answers import same_answer
from ..rm.stats import bootstrap_ci, mcnemar, paired_bootstrap
from ..rm.step_metrics import Judged, step_report
from ..types import Problem
from .result import Candidate, SearchResult

Arms = Mapping[str, Sequence[SearchResult]]
# (arm that should be better, arm it is held against)
TESTS = [
    ("best_of_n", "majority"),
    ("refined_best_of_n", "best_of_n"),
    ("refined_best_of_n", "no_fix"),
    ("refined_best_of_n", "greedy"),
    ("refined_best_of_n", "critic_greedy"),
    ("best_of_n", "critic_greedy"),
    ("refined_best_of_n", "self_critic"),
]


def right(problem: Problem, answer: str | None) -> bool:
    return answer is not None and same_answer(answer, problem.answer or "")


def outcomes(problems: Sequence[Problem], arms: Arms, seed: int) -> dict[str, list[float]]:
    """For each arm and problem 1 or 0; `single` is the mean over the pool, what one sample is right on average."""
    table: dict[str, list[float]] = {}
    pools = [[float(right(p, c.answer)) for c in r.candidates] for p, r in zip(problems, arms["majority"], strict=True)]
    table["single"] = [sum(pool) / len(pool) for pool in pools]
    searched = {name: [float(right(p, r.answer)) for p, r in zip(problems, results, strict=True)] for name, results in arms.items()}
    table["greedy"], table["majority"] = searched.pop("greedy"), searched.pop("majority")
    table["random"] = [random.Random(f"{seed} {p.id}").choice(pool) for p, pool in zip(problems, pools, strict=True)]
    for name in ("best_of_n", "weighted_best_of_n", "refined_best_of_n", "no_fix", "self_critic", "critic_greedy"):
        table[name] = searched[name]
    table["oracle"] = [max(pool) for pool in pools]
    return table


def arm_costs(arms: Arms, n: int) -> dict[str, dict[str, float]]:
    """Policy tokens, scorer tokens and seconds of each arm over all problems. Arms that only pick from the pool cost the pool."""
    costs = {}
    for name, results in arms.items():
        policy, scorer = [r.cost.policy for r in results], [r.cost.scorer for r in results]
        costs[name] = {
            "policy_tokens": sum(u.completion_tokens for u in policy),
            "scorer_tokens": sum(u.completion_tokens for u in scorer),
            "seconds": round(sum(u.seconds for u in policy) + sum(u.seconds for u in scorer), 1),
        }
    pool = costs["majority"]
    costs["single"] = costs["random"] = {
        "policy_tokens": round(pool["policy_tokens"] / n),
        "scorer_tokens": 0,
        "seconds": round(pool["seconds"] / n, 1),
    }
    costs["oracle"] = dict(pool)
    # The critic's own answers are written by the critic.
    asked = costs["critic_greedy"]
    costs["critic_greedy"] = {"policy_tokens": 0, "scorer_tokens": asked["policy_tokens"], "seconds": asked["seconds"]}
    return costs


def judged(problem: Problem, candidate: Candidate) -> Judged | None:
    """The critic's verdicts on a candidate beside the truth; None where there is nothing to judge."""
    score = candidate.score
    if score is None or not score.verdicts:
        return None
    truths = judge_steps(problem, [step.text for step in candidate.steps])
    first = next((i for i, truth in enumerate(truths) if not truth.right), None)
    image = logic = correction = None
    if first is not None and first < len(score.verdicts):
        verdict, truth = score.verdicts[first], truths[first]
        image, logic = (verdict.image, truth.image_right), (verdict.logic, truth.logic_right)
        if score.first_error == first and score.correction is not None:
            correction = score.correction.split() == truth.corrected.split()
    flags = [verdict.correct for verdict in score.verdicts]
    return Judged(flags, [truth.right for truth in truths], [truth.error for truth in truths], image, logic, correction)


def steps_of(problems: Sequence[Problem], results: Sequence[SearchResult]) -> tuple[dict[str, Any], float]:
    """Step figures of all scored candidates, and the share of steps whose critique could not be read."""
    rows = [judged(p, c) for p, r in zip(problems, results, strict=True) for c in r.candidates]
    report = step_report([row for row in rows if row is not None])
    total = sum(len(c.steps) for r in results for c in r.candidates)
    failed = sum(v.correct is None for r in results for c in r.candidates if c.score for v in c.score.verdicts)
    failed += sum(len(c.steps) for r in results for c in r.candidates if c.score is None or not c.score.verdicts)
    return report, failed / max(1, total)


def summarise(problems: Sequence[Problem], arms: Arms, settings: Mapping[str, Any], clock: Mapping[str, float]) -> dict[str, Any]:
    """The contents of results.json."""
    table, costs = outcomes(problems, arms, settings["seed"]), arm_costs(arms, settings["n"])
    rows = {}
    for name, values in table.items():
        low, high = bootstrap_ci(values)
        rows[name] = {"accuracy": sum(values) / len(values), "ci95": [low, high], **costs[name]}
    tests = {}
    for better, base in TESTS:
        difference, low, high = paired_bootstrap(table[better], table[base])
        p = mcnemar([v > 0 for v in table[better]], [v > 0 for v in table[base]])
        tests[f"{better} vs {base}"] = {"difference": difference, "ci95": [low, high], "mcnemar_p": p}
    steps, failed = steps_of(problems, arms["best_of_n"])
    worlds = {}
    for world in sorted({p.meta["world"] for p in problems}):
        mine = [i for i, p in enumerate(problems) if p.meta["world"] == world]
        own_steps, own_failed = steps_of([problems[i] for i in mine], [arms["best_of_n"][i] for i in mine])
        accuracy = {name: sum(values[i] for i in mine) / len(mine) for name, values in table.items()}
        worlds[world] = {
            "problems": len(mine),
            "accuracy": accuracy,
            "steps": own_steps,
            "parse_failure_rate": own_failed,
            "blind": blind_accuracy([problems[i] for i in mine]),
        }
    return {
        "problems": len(problems),
        "seed": settings["seed"],
        "arms": rows,
        "tests": tests,
        "steps": steps,
        "parse_failure_rate": failed,
        "seconds": round(sum(clock.values()), 1),
        "worlds": worlds,
        "stages": dict(clock),
        "settings": dict(settings),
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
    }
