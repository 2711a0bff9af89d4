"""A world of picture sets whose consistency is known: sub-figures of a story, each with an identity, a style and a logic of its own.

A prompt names a character (form and colour: identity), a way of painting (style) and a number of balls that neither appear nor vanish
(logic: what the story says stays). Like an image generator with several seeds, a grid paints the prompt four times; each sub-figure
strays in none, one or more of the three dimensions, always to the prompt's own other value. So two sub-figures of a prompt agree in a
dimension iff both strayed or neither did. The four sub-figures of a grid stray in four different ways, hence no two of them are equally
consistent with any sub-figure of another grid: every ranking is strict. Poses and places differ freely and count for nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..types import InputError
from .worlds.base import SIZE, SPLITS, tint

DIMENSIONS = ("identity", "style", "logic")
WEIGHTS = {
    "identity": 4,
    "style": 2,
    "logic": 1,
}  # what a dimension counts for in the consistency of a pair: ours, distinct for every subset
FORMS, COLOURS = ("circle", "square", "triangle", "cross"), ("red", "green", "blue", "yellow")
STYLES = ("plain", "lines", "frame", "tint")
VALUES = {
    "identity": tuple(f"{colour} {form}" for colour in COLOURS for form in FORMS),
    "style": STYLES,
    "logic": ("1", "2", "3"),
}
CRITERIA = {
    "identity": "identity: the same character",
    "style": "style: painted the same way",
    "logic": "logic: as many balls",
}
LAYOUT = (2, 2)
WAYS = tuple(product((False, True), repeat=len(DIMENSIONS)))  # in which dimensions a sub-figure strays


@dataclass(frozen=True)
class SubFigure:
    """What a sub-figure shows: a value for each dimension, and the pose, which is free."""

    values: Mapping[str, str]
    pose: tuple[int, ...]


@dataclass(frozen=True)
class Story:
    """A prompt with its grids: `grids[g][s]` is a sub-figure. `canon` is what the prompt asks for, `other` what strays."""

    id: str
    canon: Mapping[str, str]
    other: Mapping[str, str]
    grids: Sequence[Sequence[SubFigure]] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        c = self.canon
        return f"a story of a {c['identity']}, painted {c['style']}, with {c['logic']} ball{'' if c['logic'] == '1' else 's'}"


def split_of(figure: SubFigure) -> str:
    """The split that a picture belongs to, by a hash of what it shows, pose included: no picture is in two splits."""
    key = json.dumps([dict(figure.values), figure.pose], sort_keys=True).encode()
    bucket = int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 100
    return next(name for name, (low, high) in SPLITS.items() if low <= bucket < high)


def make_story(number: int, split: str, seed: int, grids: int = 4) -> Story:
    """Story `number` of a split and seed: always the same one; more grids leave the first as they are."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if grids < 2:
        raise InputError(f"a story needs at least 2 grids to pair their sub-figures, got {grids}")
    rng = random.Random(f"consistency {split} {seed} {number}")
    canon, other = {}, {}
    for dimension in DIMENSIONS:
        canon[dimension], other[dimension] = rng.sample(VALUES[dimension], 2)
    if rng.random() < 0.7:  # a stray character mostly changes its colour or its form, not both
        colour, form = canon["identity"].split()
        near = [f"{c} {form}" for c in COLOURS if c != colour] if rng.random() < 0.5 else [f"{colour} {f}" for f in FORMS if f != form]
        other["identity"] = rng.choice(near)
    painted = []
    for _ in range(grids):
        ways = rng.sample(WAYS, LAYOUT[0] * LAYOUT[1])
        painted.append([_figure(canon, other, way, split, rng) for way in ways])
    return Story(f"{split}-{seed}-{number:05d}", canon, other, painted)


def _figure(canon: Mapping[str, str], other: Mapping[str, str], way: Sequence[bool], split: str, rng: random.Random) -> SubFigure:
    values = {d: (other if stray else canon)[d] for d, stray in zip(DIMENSIONS, way, strict=True)}
    while True:
        # Where the character stands (x, y), its size, and the x of each ball, in pixels.
        balls = sorted(rng.sample(range(6), int(values["logic"])))
        pose = (rng.randint(26, 69), rng.randint(24, 46), rng.randint(12, 16), *(14 * place + 13 + rng.randint(-2, 2) for place in balls))
        figure = SubFigure(values, pose)
        if split_of(figure) == split:
            return figure


def agreement(first: SubFigure, second: SubFigure) -> dict[str, bool]:
    """For each dimension whether two sub-figures agree in it."""
    return {d: first.values[d] == second.values[d] for d in DIMENSIONS}


def consistency(first: SubFigure, second: SubFigure) -> float:
    """In [0, 1]: the weight of the dimensions in which they agree."""
    return sum(WEIGHTS[d] for d, same in agreement(first, second).items() if same) / sum(WEIGHTS.values())


def reasons(first: SubFigure, second: SubFigure) -> str:
    """What there is to say of a pair: in each dimension whether they agree, then both values. The judgement comes first here too, so that
    a small model learns to compare pictures and not the words that it has just written."""
    said = (f"{d} {'ok' if same else 'no'}: {first.values[d]} | {second.values[d]}" for d, same in agreement(first, second).items())
    return "\n".join(said)


def draw(figure: SubFigure, rng: random.Random) -> Any:
    """The sub-figure as a 96x96 PIL image. `rng` gives what no picture key holds: shades."""
    from PIL import Image, ImageDraw

    style, (x, y, r, *balls) = figure.values["style"], figure.pose
    shade = rng.randint(244, 252)
    paper = (shade - 50, shade - 20, shade) if style == "tint" else (shade, shade, shade)
    image = Image.new("RGB", (SIZE, SIZE), paper)
    pen = ImageDraw.Draw(image)
    if style == "lines":
        for line in range(4, SIZE, 8):
            pen.line((0, line, SIZE, line), fill=(190, 190, 190))
    if style == "frame":
        pen.rectangle((0, 0, SIZE - 1, SIZE - 1), outline=(60, 60, 60), width=5)
    colour, form = figure.values["identity"].split()
    fill = tint(colour, rng, 24)
    if form == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif form == "square":
        pen.rectangle((x - r + 2, y - r + 2, x + r - 2, y + r - 2), fill=fill)
    elif form == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r - 1), (x + r, y + r - 1)], fill=fill)
    else:
        pen.line((x - r, y - r, x + r, y + r), fill=fill, width=7)
        pen.line((x - r, y + r, x + r, y - r), fill=fill, width=7)
    for place in balls:
        pen.ellipse((place - 5, 76, place + 5, 86), fill=(40, 40, 40))
    return image


def draw_grid(figures: Sequence[SubFigure], rng: random.Random) -> Any:
    """The sub-figures as one picture of `LAYOUT` rows and columns."""
    from PIL import Image

    rows, columns = LAYOUT
    grid = Image.new("RGB", (columns * SIZE, rows * SIZE))
    for index, figure in enumerate(figures):
        grid.paste(draw(figure, rng), (index % columns * SIZE, index // columns * SIZE))
    return grid
