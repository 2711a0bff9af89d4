"""Dialogues about two pictures of the consistency world: asked dimension by dimension, the assistant says + or what the second shows.

As in `checks.py`, a pair that does not agree asks for a reading of the picture and not for one bit, so that comparing is learnt with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from .checks import RIGHT, WRONG, Dialogue
from .consistency_world import DIMENSIONS, SubFigure, draw, make_story

Shown = tuple[Dialogue, list[SubFigure]]


def two_figures(rng: random.Random, split: str = "train") -> list[SubFigure]:
    """Sub-figures of two grids of a story; in each dimension half of such pairs agree."""
    story = make_story(rng.randrange(10**9), split, -1, grids=2)
    return [rng.choice(grid) for grid in story.grids]


def read_pair(rng: random.Random, split: str = "train") -> Shown:
    """What the first picture shows in each dimension, then the same of the second."""
    figures, order = two_figures(rng, split), rng.sample(DIMENSIONS, len(DIMENSIONS))
    return [(f"{which} {d}:", f" {f.values[d]}") for which, f in zip(("first", "second"), figures, strict=True) for d in order], figures


def compare_pair(rng: random.Random, split: str = "train", signs: bool = False) -> Shown:
    """Whether the second picture agrees with the first in each dimension: + or what the second shows; with `signs`, + or - alone."""
    figures, order = two_figures(rng, split), rng.sample(DIMENSIONS, len(DIMENSIONS))
    turns = []
    for d in order:
        ours, theirs = (figure.values[d] for figure in figures)
        turns.append((f"{d}?", RIGHT if ours == theirs else WRONG if signs else f" {theirs}"))
    return turns, figures


def pair_pictures(figures: list[SubFigure], rng: random.Random) -> list[Any]:
    return [draw(figure, rng) for figure in figures]


PAIR_DIALOGUES: dict[str, Callable[..., Shown]] = {
    "pair readings": read_pair,
    "pairs": compare_pair,
    "pair signs": partial(compare_pair, signs=True),
}
