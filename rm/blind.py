"""The blind controls: the same preferences without their pictures, or with another item's. A scorer that is as good then does not look."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ..types import Problem

Blind = Literal["removed", "other"]


def blinded(problems: Sequence[Problem], how: Blind, seed: int = 0) -> list[Problem | None]:
    """The problems without pictures ("removed"), or each with the pictures of another problem that has as many ("other"). None where that
    cannot be had: no pictures to begin with, or nobody to change with."""
    if how == "removed":
        return [without_images(problem) if problem.images else None for problem in problems]
    result: list[Problem | None] = [None] * len(problems)
    alike: dict[int, list[int]] = defaultdict(list)
    for i, problem in enumerate(problems):
        if problem.images:
            alike[len(problem.images)].append(i)
    for members in alike.values():
        random.Random(seed).shuffle(members)
        # Shifted round the circle, so that nobody keeps its own; pictures that are the same file are no change.
        for at, i in enumerate(members):
            turn = [members[(at + k) % len(members)] for k in range(1, len(members))]
            other = next((j for j in turn if list(problems[j].images) != list(problems[i].images)), None)
            result[i] = None if other is None else replace(problems[i], images=problems[other].images)
    return result


def without_images(problem: Problem) -> Problem:
    """The problem with its text alone."""
    meta = dict(problem.meta)
    if "messages" in meta:
        meta["messages"] = [
            {**message, "content": [part for part in message["content"] if part["type"] != "image"]} for message in meta["messages"]
        ]
    return replace(problem, images=(), meta=meta)
