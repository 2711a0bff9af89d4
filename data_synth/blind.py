"""The text-only baseline: what can be had of a world's problems without ever looking at a picture."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from ..types import Problem
from .worlds import get_world, sample_scene
from .worlds.base import answer_of, right_solution


def blind_accuracy(problems: Sequence[Problem], samples: int = 6000, seed: int = 0) -> float:
    """Accuracy of the commonest training answer to each question, on problems of one world. `samples` training scenes are seen."""
    world, rng = get_world(problems[0].meta["world"]), random.Random(seed)
    answers: dict[str, Counter[str]] = {}
    for _ in range(samples):
        scene = sample_scene(world, "train", rng)
        answers.setdefault(world.question(scene), Counter())[answer_of(right_solution(world, scene))] += 1
    guesses = {question: counts.most_common(1)[0][0] for question, counts in answers.items()}
    return sum(guesses.get(problem.question) == problem.answer for problem in problems) / len(problems)
