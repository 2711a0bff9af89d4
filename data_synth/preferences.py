"""Preferences from the worlds: a right solution and a wrong one of the same problem, the error's kind and place known; or a true
statement about the picture and a wrong one.

    vlrm synth preferences --n 4000 --output runs/pairs

The wrong solution is corrupted by the world's own writer, or sampled from a policy; either way the two are held to nearly the same length,
so that length tells nothing. The two statements are of the same place of the picture, as long as each other.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..prm.steps import split_steps
from ..rm.rows import append_jsonl, drop_torn_line, read_rows, write_jsonl
from ..serving.engine import Engine
from ..types import InputError, Problem
from .checks import CHECK, near_value
from .corrupt import heavy_corruption, single_error
from .problems import make_problems, truth_of
from .step_records import judge_steps, policy_solutions
from .worlds import sample_scene
from .worlds.base import format_solution, right_solution

TRIES = 20  # corruptions looked at for one that is wrong and of like length
OF = ("solutions", "statements")


def make_preferences(
    worlds: str | Sequence[str],
    split: str,
    n: int,
    seed: int,
    output: str | os.PathLike[str],
    *,
    of: str = "solutions",
    statements: int = 4,
    policy: Engine | None = None,
    samples: int = 4,
    heavy: float = 0.5,
    length_gap: int = 2,
    temperature: float = 1.0,
    chunk: int = 256,
) -> dict[str, int]:
    """Writes preferences for each of `n` problems to `output/preferences.jsonl`, with problems.jsonl and images/; returns counts.

    `of` "statements": `statements` pairs of each picture, a fact of it against the same with a value from another picture. "solutions": one
    pair of each problem. Without a policy the chosen one is the world's own solution and the rejected one has an error (with probability
    `heavy` many of them). With a policy both are its own samples, of `samples` for each problem; where none of them is right or none wrong,
    the world's writer stands in, and the sources say so. Words may differ by `length_gap` at most; a problem without such a pair is left
    out and counted. A solution is right if all its steps are. Run again after an interruption, it goes on behind the last whole chunk.

    Columns beside those that trainers take: `group` the world, `kind` perception or reasoning and `first_error` the index of the first
    wrong step, `chosen_source` and `rejected_source` sampled, written or corrupted, and the answer.
    """
    if length_gap < 0 or samples < 1 or statements < 1 or not 0 <= heavy <= 1:
        got = f"{length_gap}, {samples}, {statements}, {heavy}"
        raise InputError(f"length_gap must be at least 0, samples and statements at least 1, heavy in [0, 1]; got {got}")
    if of not in OF or (of == "statements" and policy is not None):
        raise InputError(f"of must be solutions or statements, got {of!r}; a policy samples solutions alone")
    out = Path(output)
    problems = make_problems(worlds, split, n, seed, out)
    part, whole = out / "preferences.part.jsonl", out / "preferences.jsonl"
    stamp = {"settings": [list(worlds), split, n, seed, policy and policy.name, samples, heavy, length_gap, temperature]}
    if of == "statements":
        stamp = {"settings": [list(worlds), split, n, seed, of, statements]}
    drop_torn_line(part)
    kept = [row for _, row in read_rows(part, "preferences")] if part.exists() else []
    if kept and kept[0] != stamp:
        raise InputError(f"{part} holds preferences of other settings; choose another folder or delete it")
    rows, done = [row for row in kept[1:] if "id" in row], sum(row.get("done", 0) for row in kept[1:])
    if not kept:
        append_jsonl(part, [stamp])
    for start in range(done, len(problems), chunk):
        batch = problems[start : start + chunk]
        sampled: list[list[str]] = [[] for _ in batch]
        if policy is not None:
            sampled = policy_solutions(batch, policy, samples, seed, temperature)
        if of == "statements":
            made = [row for p in batch for row in statement_rows(p, statements, split, seed, out)]
        else:
            found = [preference_row(p, texts, seed, out, heavy, length_gap) for p, texts in zip(batch, sampled, strict=True)]
            made = [row for row in found if row is not None]
        append_jsonl(part, [*made, {"done": len(batch)}])
        rows += made
    write_jsonl(whole, rows)
    part.unlink()
    kinds = Counter(f"{row['kind']} errors" for row in rows) + Counter(f"rejected {row['rejected_source']}" for row in rows)
    dropped = {} if of == "statements" else {"dropped: no pair of like length": len(problems) - len(rows)}
    return {"problems": len(problems), "preferences": len(rows), **dropped, **kinds}


def preference_row(problem: Problem, sampled: Sequence[str], seed: int, root: Path, heavy: float, length_gap: int) -> dict[str, Any] | None:
    """The preference of one problem, None where no two solutions are of like length."""
    world, scene = truth_of(problem)
    rng = random.Random(f"{seed} {problem.id} preference")
    right = [text for text in sampled if _first_error(problem, text) is None]
    wrong = [text for text in sampled if _first_error(problem, text) is not None]
    sources = "sampled" if right else "written", "sampled" if wrong else "corrupted"
    right = right or [format_solution(right_solution(world, scene))]
    if not wrong:
        corrupt = heavy_corruption if rng.random() < heavy else single_error
        made = [format_solution(corrupt(world, scene, rng)) for _ in range(TRIES)]
        wrong = [text for text in made if _first_error(problem, text) is not None]
    rng.shuffle(wrong)
    pairs = [(good, bad) for bad in wrong for good in right if abs(len(good.split()) - len(bad.split())) <= length_gap]
    if not pairs:
        return None
    chosen, rejected = pairs[0]
    first, kind = _first_error(problem, rejected)
    return {
        "id": problem.id,
        "prompt": problem.question,
        "chosen": chosen,
        "rejected": rejected,
        "images": [os.path.relpath(path, root) for path in problem.images],
        "group": world.name,
        "kind": kind,
        "first_error": first,
        "chosen_source": sources[0],
        "rejected_source": sources[1],
        "answer": problem.answer,
    }


def statement_rows(problem: Problem, count: int, split: str, seed: int, root: Path) -> list[dict[str, Any]]:
    """Pairs of statements about the problem's picture: a line of its facts up to one of them, against the same with that fact's value as
    another picture has it (of two words sometimes one alone)."""
    world, scene = truth_of(problem)
    rng = random.Random(f"{seed} {problem.id} statements")
    pairs = []
    for ours, theirs in zip(world.facts(scene), world.facts(sample_scene(world, split, rng)), strict=True):
        said = ""
        for (head, true), (_, value) in zip(ours, theirs, strict=True):
            said += head
            if value != true and len(value.split()) == len(true.split()):
                pairs.append((f"{said} {true}.", f"{said} {near_value(true, value, rng)}."))
            said += f" {true}"
    images = [os.path.relpath(path, root) for path in problem.images]
    rest = {"images": images, "group": world.name, "kind": "perception", "first_error": 0}
    return [
        {"id": f"{problem.id}-{k}", "prompt": CHECK, "chosen": chosen, "rejected": rejected, **rest, "chosen_source": "written",
         "rejected_source": "corrupted"}
        for k, (chosen, rejected) in enumerate(rng.sample(pairs, min(count, len(pairs))))
        if chosen != rejected  # of two words, the one taken from the other picture may be the same
    ]  # fmt: skip


def _first_error(problem: Problem, solution: str) -> tuple[int, str] | None:
    """Place and kind of a solution's first wrong step; None where it is right. A text without steps is wrong at once."""
    steps = [step.text for step in split_steps(solution)]
    truths = judge_steps(problem, steps) if steps else []
    if not truths:
        return 0, "reasoning"
    return next(((i, str(truth.error)) for i, truth in enumerate(truths) if not truth.right), None)
