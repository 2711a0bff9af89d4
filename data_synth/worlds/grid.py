"""Grid look-up: nine coloured shapes, each worth its colour plus its form; two rows are read, valued and added.

Every fact that a solution reads counts: a misread colour or form changes the value of its cell, hence the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from .base import Claim, Say, Scene, StepTruth, canvas, speckle, tint

name = "grid"
rules = (
    "A cell is worth its colour (red 0, green 1, blue 2, yellow 3) plus its form (circle 1, square 2, triangle 3, cross 4). "
    "Add up the two rows that the question names."
)
COLOUR_WORTH = {"red": 0, "green": 1, "blue": 2, "yellow": 3}
FORM_WORTH = {"circle": 1, "square": 2, "triangle": 3, "cross": 4}
CELLS = [f"{colour} {form}" for colour in COLOUR_WORTH for form in FORM_WORTH]
NUMBERS = [str(n) for n in range(43)]

ROW = re.compile(r"Row (\d) is (.+?)\.?$")
SUM = re.compile(r"Row (\d) makes (\d+) \+ (\d+) \+ (\d+) = (\d+)\.?$")
TOTAL = re.compile(r"(\d+) \+ (\d+) = (\d+)\.?\s*Answer: (\S+)$")


def worth(cell: str) -> int | None:
    colour, _, form = cell.partition(" ")
    if colour in COLOUR_WORTH and form in FORM_WORTH:
        return COLOUR_WORTH[colour] + FORM_WORTH[form]
    return None


def scene(rng: random.Random) -> Scene:
    return {"cells": [[rng.choice(CELLS) for _ in range(3)] for _ in range(3)], "rows": rng.sample([1, 2, 3], 2)}


def picture_key(scene: Scene) -> Any:
    return scene["cells"]


def draw(scene: Scene, rng: random.Random) -> Any:
    from PIL import ImageDraw

    image = canvas(rng)
    pen = ImageDraw.Draw(image)
    for k in (1, 2):
        pen.line((32 * k, 2, 32 * k, 93), fill=(205, 205, 205))
        pen.line((2, 32 * k, 93, 32 * k), fill=(205, 205, 205))
    for row in range(3):
        for column in range(3):
            colour, form = scene["cells"][row][column].split()
            x, y = 32 * column + 16 + rng.randint(-5, 5), 32 * row + 16 + rng.randint(-5, 5)
            r, fill = rng.randint(6, 8), tint(colour, rng, 30)
            if form == "circle":
                pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
            elif form == "square":
                pen.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=fill)
            elif form == "triangle":
                pen.polygon([(x, y - r), (x - r, y + r - 1), (x + r, y + r - 1)], fill=fill)
            else:
                pen.line((x - r, y - r, x + r, y + r), fill=fill, width=4)
                pen.line((x - r, y + r, x + r, y - r), fill=fill, width=4)
    return speckle(image, rng)


def question(scene: Scene) -> str:
    return "Grid: add row {} and row {}.".format(*scene["rows"])


def describe(scene: Scene) -> str:
    return "\n".join(f"Row {i} is {' '.join(cells)}." for i, cells in enumerate(scene["cells"], 1))


def facts(scene: Scene) -> list[list[tuple[str, str]]]:
    return [list(zip((f"Row {i} is", "", ""), cells, strict=True)) for i, cells in enumerate(scene["cells"], 1)]


def write(scene: Scene, say: Say) -> list[str]:
    steps: list[str] = []
    read = []
    for row in scene["rows"]:
        read.append([say(len(steps), "perception", cell, mistakable(cell)) for cell in scene["cells"][row - 1]])
        steps.append(f"Row {row} is {' '.join(read[-1])}.")
    sums = []
    for row, cells in zip(scene["rows"], read, strict=True):
        values = [say(len(steps), "reasoning", str(worth(cell)), NUMBERS[1:8]) for cell in cells]
        total = sum(map(int, values))
        sums.append(say(len(steps), "reasoning", str(total), near(total)))
        steps.append(f"Row {row} makes {' + '.join(values)} = {sums[-1]}.")
    a, b = (say(len(steps), "reasoning", s, near(int(s))) for s in sums)
    total = say(len(steps), "reasoning", str(int(a) + int(b)), near(int(a) + int(b)))
    steps.append(f"{a} + {b} = {total}.\nAnswer: {total}")
    return steps


def mistakable(cell: str) -> list[str]:
    """Cells worth something else, so that a misreading always counts."""
    return [other for other in CELLS if worth(other) != worth(cell)]


def near(value: int) -> list[str]:
    """Numbers that a sum is mistaken for."""
    return [str(v) for v in range(max(0, value - 4), value + 5)]


def check(scene: Scene, steps: Sequence[str]) -> list[StepTruth]:
    truths: list[StepTruth] = []
    read: dict[int, list[str]] = {}
    sums: dict[int, str] = {}
    for index, step in enumerate(steps):
        # What a right solution does at this place; a text that does something else is not readable as a step of it.
        row = scene["rows"][index % 2] if index < 4 else 0
        if index < 2:
            true_cells = scene["cells"][row - 1]
            match = ROW.match(step)
            stated = re.findall(r"\S+ \S+", match[2]) if match and int(match[1]) == row else []
            readable = len(stated) == 3 and all(cell in CELLS for cell in stated)
            read[row] = stated if readable else true_cells
            claims = [Claim("perception", s, t) for s, t in zip(stated, true_cells, strict=False)]
            truths.append(StepTruth(f"read row {row}", tuple(claims), f"Row {row} is {' '.join(true_cells)}.", readable))
        elif index < 4:
            cells = read.get(row, scene["cells"][row - 1])
            values = [str(worth(cell)) for cell in cells]
            true = [*values, str(sum(map(int, values)))]
            match = SUM.match(step)
            stated = list(match.groups()[1:]) if match and int(match[1]) == row else []
            sums[row] = stated[3] if stated else true[3]
            claims = [Claim("reasoning", s, t) for s, t in zip(stated, true, strict=False)]
            text = f"Row {row} makes {' + '.join(true[:3])} = {true[3]}."
            truths.append(StepTruth(f"value row {row}", tuple(claims), text, bool(stated)))
        else:
            a, b = (sums.get(r, "0") for r in scene["rows"])
            true = [a, b, str(int(a) + int(b)), str(int(a) + int(b))]
            match = TOTAL.match(step) if index == 4 else None
            stated = list(match.groups()) if match else []
            claims = [Claim("reasoning", s, t) for s, t in zip(stated, true, strict=False)]
            truths.append(StepTruth("add the rows", tuple(claims), f"{a} + {b} = {true[2]}.\nAnswer: {true[2]}", bool(stated)))
    return truths
