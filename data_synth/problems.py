"""Problems from the worlds: `vlrm synth --what problems`. Pictures as PNG files, problems as JSONL that `datasets` reads too.

Problem `i` of a (world, split, seed) is always the same one, whatever else is made, so a longer file begins with a shorter.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..rm.rows import write_jsonl
from ..types import InputError, Problem
from .worlds import WORLDS, get_world, sample_scene
from .worlds.base import SPLITS, Scene, answer_of, right_solution


def scene_problem(world: str, split: str, seed: int, number: int) -> tuple[Problem, Any]:
    """Problem `number` and its picture (PIL). `meta` holds the world's name and the scene, the ground truth of everything."""
    family = get_world(world)
    rng = random.Random(f"{world} {split} {seed} {number}")
    scene = sample_scene(family, split, rng)
    answer = answer_of(right_solution(family, scene))
    name = f"{world}-{split}-{seed}-{number:05d}"
    return Problem(name, family.question(scene), [], answer, {"world": world, "scene": scene}), family.draw(scene, rng)


def make_problems(worlds: str | Sequence[str], split: str, n: int, seed: int, output_dir: str | os.PathLike[str]) -> list[Problem]:
    """Writes `n` problems, shared evenly by the worlds, to `output_dir/problems.jsonl` with `images/`; returns them.

    Columns: id, question, images (paths relative to the file), answer, world, scene.
    """
    names = [worlds] if isinstance(worlds, str) else list(worlds or WORLDS)
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    out = Path(output_dir)
    (out / "images").mkdir(parents=True, exist_ok=True)
    problems = []
    for i in range(n):
        problem, picture = scene_problem(names[i % len(names)], split, seed, i // len(names))
        path = out / "images" / f"{problem.id}.png"
        if not path.exists():
            picture.save(path.with_suffix(".tmp"), format="PNG")
            os.replace(path.with_suffix(".tmp"), path)
        problems.append(Problem(problem.id, problem.question, [str(path)], problem.answer, problem.meta))
    write_jsonl(out / "problems.jsonl", [problem_row(problem, out) for problem in problems])
    return problems


def problem_row(problem: Problem, root: Path) -> dict[str, Any]:
    images = [os.path.relpath(path, root) for path in problem.images]
    return {"id": problem.id, "question": problem.question, "images": images, "answer": problem.answer, **problem.meta}


def load_problems(path: str | os.PathLike[str]) -> list[Problem]:
    """Problems that `make_problems` wrote, with their scenes."""
    path = Path(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        Problem(
            r["id"], r["question"], [str(path.parent / i) for i in r["images"]], r["answer"], {"world": r["world"], "scene": r["scene"]}
        )
        for r in rows
    ]


def of_world(problem: Problem) -> bool:
    """Whether the truth about the problem is known."""
    return "scene" in problem.meta and isinstance(world := problem.meta.get("world"), str) and world in WORLDS


def truth_of(problem: Problem) -> tuple[Any, Scene]:
    """The world and the scene behind a problem; a problem from elsewhere has none."""
    if not of_world(problem):
        raise InputError(f"problem {problem.id} does not come from a world of vlrm, so the truth about its steps is unknown")
    return get_world(problem.meta["world"]), problem.meta["scene"]
