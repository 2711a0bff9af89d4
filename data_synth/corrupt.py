"""Wrong solutions of known kind and place, from a world's own writer: single realistic errors and heavy corruption.

Heavy corruption replaces a fact in two at many steps, so that what a step claims can only be known by reading it: a critic
trained on single errors alone learns to repeat its own reading of the picture and never looks at the claim.
"""

from __future__ import annotations

import random
from types import ModuleType

from .worlds.base import Misstate, Scene, right_solution


def single_error(world: ModuleType, scene: Scene, rng: random.Random) -> list[str]:
    """The right solution with one fact misstated at a step drawn evenly; later steps follow from what was stated."""
    truths = world.check(scene, right_solution(world, scene))
    step = rng.randrange(len(truths))
    fact = rng.randrange(max(1, len(truths[step].claims)))
    return world.write(scene, Misstate(rng, single=(step, fact)))


def heavy_corruption(world: ModuleType, scene: Scene, rng: random.Random, struck: float = 0.6) -> list[str]:
    """Each step is struck with probability `struck`; a struck step has each fact replaced with probability 0.5 or 0.15."""
    steps = len(right_solution(world, scene))
    rates = {i: rng.choice([0.5, 0.5, 0.15]) for i in range(steps) if rng.random() < struck}
    return world.write(scene, Misstate(rng, rates))


def corrupted(
    world: ModuleType, scene: Scene, rng: random.Random, heavy: float = 0.6, single: float = 0.2, struck: float = 0.6
) -> list[str]:
    """A solution to be judged: heavily corrupted, with a single error, or right."""
    draw = rng.random()
    if draw < heavy:
        return heavy_corruption(world, scene, rng, struck)
    return single_error(world, scene, rng) if draw < heavy + single else right_solution(world, scene)
