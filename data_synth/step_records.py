"""Step records with exact critiques: what a GM-PRM is trained on, made from the worlds. `vlrm synth --what steps`.

Each problem gives a corrupted solution from the world's own writer and, where a policy is at hand, solutions sampled from
it. Every step is judged by the world; the exact teacher writes the critique and, at the first wrong step, the correction.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

from ..prm.critique import Critique, StepCritique
from ..prm.record_files import write_records
from ..prm.records import StepRecord
from ..prm.steps import split_steps
from ..rm.problems import policy_messages
from ..serving.engine import Engine, Request
from ..types import InputError, Problem
from .corrupt import corrupted
from .problems import make_problems, truth_of
from .teacher import analysis
from .worlds.base import StepTruth, format_solution


def judge_steps(problem: Problem, steps: Sequence[str]) -> list[StepTruth]:
    """The truth about each step of a solution to a world's problem."""
    world, scene = truth_of(problem)
    return world.check(scene, list(steps))


def exact_critique(truths: Sequence[StepTruth]) -> Critique:
    """The critique that is right by construction: both verdicts of every step, and the first wrong step corrected."""
    steps = tuple(
        StepCritique(t.intent, analysis(t, "perception"), t.image_right, analysis(t, "reasoning"), t.logic_right, t.right) for t in truths
    )
    first = next((i for i, truth in enumerate(truths) if not truth.right), None)
    return Critique(steps, first, None if first is None else truths[first].corrected)


def step_record(problem: Problem, solution: str, name: str, source: str) -> StepRecord | None:
    """The judged record of one solution; None where the text holds no step."""
    steps = [step.text for step in split_steps(solution)]
    if not steps:
        return None
    critique = exact_critique(judge_steps(problem, steps))
    return StepRecord(
        id=name,
        question=problem.question,
        steps=tuple(steps),
        images=tuple(problem.images),
        answer=problem.answer,
        source=source,
        critiques=critique.steps,
        first_error=critique.first_error,
        correction=critique.correction,
    )


def policy_solutions(problems: Sequence[Problem], policy: Engine, k: int, seed: int, temperature: float) -> list[list[str]]:
    """`k` sampled solutions of each problem, batched across problems."""
    requests = [
        Request(
            messages=policy_messages(p),
            images=p.images,
            n=k,
            max_tokens=160,
            temperature=temperature,
            seed=random.Random(f"{seed} {p.id}").randrange(2**31),
        )
        for p in problems
    ]
    return [[completion.text for completion in completions] for completions in policy.generate(requests)]


def make_step_records(
    worlds: str | Sequence[str],
    split: str,
    n: int,
    seed: int,
    output: str | os.PathLike[str],
    policy: Engine | None = None,
    samples: int = 1,
    corruptions: int = 1,
    temperature: float = 1.0,
    problems: Sequence[Problem] | None = None,
) -> list[StepRecord]:
    """Writes records for `n` problems to the JSONL file `output` (pictures beside it) and returns them.

    Each problem gives `corruptions` corrupted solutions, and `samples` sampled ones if there is a policy.
    """
    output = Path(output)
    if not corruptions and (policy is None or not samples):
        raise InputError("nothing to make: set corruptions to 1 or more, or give a policy and samples of 1 or more")
    problems = problems or make_problems(worlds, split, n, seed, output.parent)
    sampled: list[list[str]] = [[] for _ in problems]
    if policy is not None and samples:
        sampled = policy_solutions(problems, policy, samples, seed, temperature)
    records: list[StepRecord | None] = []
    for problem, solutions in zip(problems, sampled, strict=True):
        world, scene = truth_of(problem)
        for k in range(corruptions):
            rng = random.Random(f"{seed} {problem.id} corruption {k}")
            text = format_solution(corrupted(world, scene, rng))
            records.append(step_record(problem, text, f"{problem.id}-c{k}", f"{world.name}/corrupted"))
        for k, text in enumerate(solutions):
            records.append(step_record(problem, text, f"{problem.id}-s{k}", f"{world.name}/sampled"))
    kept = [record for record in records if record is not None]
    write_records(output, kept)
    return kept
