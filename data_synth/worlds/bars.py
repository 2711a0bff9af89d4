"""Bar charts: five coloured bars on a scale of 1 to 9; three of them are read and combined.

Only the bars that the question names are read, so a misreading always changes the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from .base import Claim, Say, Scene, StepTruth, canvas, tint

name = "bars"
rules = "Each bar stands on a scale of 1 to 9. Compute what the question asks from the heights of the bars that it names."
BAR_COLOURS = ["red", "green", "blue", "yellow", "purple"]
HEIGHTS = [str(h) for h in range(1, 10)]
UNIT = 9  # pixels a unit of height

READ = re.compile(r"The (\w+) bar is (\d+)\.?$")
TIMES = re.compile(r"(\d+) \* (\d+) = (\d+)\.?$")
PLUS = re.compile(r"(\d+) \+ (\d+) = (\d+)\.?\s*Answer: (\S+)$")


def scene(rng: random.Random) -> Scene:
    order = rng.sample(BAR_COLOURS, 5)
    return {"order": order, "heights": {c: rng.randint(1, 9) for c in order}, "terms": rng.sample(BAR_COLOURS, 3)}


def picture_key(scene: Scene) -> Any:
    return [scene["order"], [scene["heights"][c] for c in scene["order"]]]


def draw(scene: Scene, rng: random.Random) -> Any:
    from PIL import ImageDraw

    image = canvas(rng)
    pen = ImageDraw.Draw(image)
    base = 92
    for unit in range(1, 10):
        pen.line((2, base - UNIT * unit, 93, base - UNIT * unit), fill=(216, 216, 216))
    for place, colour in enumerate(scene["order"]):
        left = 10 + 16 * place + rng.randint(-1, 1)
        top = base - UNIT * scene["heights"][colour] + rng.randint(-1, 1)
        pen.rectangle((left, top, left + 11, base), fill=tint(colour, rng))
    pen.line((2, base, 93, base), fill=(60, 60, 60))
    return image


def question(scene: Scene) -> str:
    return "Bars: {} times {} plus {}.".format(*scene["terms"])


def describe(scene: Scene) -> str:
    # By name, not from left to right: a bar is to be found by its colour.
    return "\n".join(f"The {colour} bar is {scene['heights'][colour]}." for colour in BAR_COLOURS)


def facts(scene: Scene) -> list[list[tuple[str, str]]]:
    return [[(f"The {colour} bar is", str(scene["heights"][colour]))] for colour in BAR_COLOURS]


def write(scene: Scene, say: Say) -> list[str]:
    steps: list[str] = []
    read = []
    for colour in scene["terms"]:
        read.append(say(len(steps), "perception", str(scene["heights"][colour]), HEIGHTS))
        steps.append(f"The {colour} bar is {read[-1]}.")
    a, b = (say(3, "reasoning", value, HEIGHTS) for value in read[:2])
    product = say(3, "reasoning", str(int(a) * int(b)), near(int(a) * int(b)))
    steps.append(f"{a} * {b} = {product}.")
    p = say(4, "reasoning", product, near(int(product)))
    c = say(4, "reasoning", read[2], HEIGHTS)
    total = say(4, "reasoning", str(int(p) + int(c)), near(int(p) + int(c)))
    steps.append(f"{p} + {c} = {total}.\nAnswer: {total}")
    return steps


def near(value: int) -> list[str]:
    """Numbers that a result is mistaken for."""
    return [str(v) for v in (value - 10, value - 3, value - 2, value - 1, value + 1, value + 2, value + 3, value + 10) if v >= 0]


def check(scene: Scene, steps: Sequence[str]) -> list[StepTruth]:
    truths: list[StepTruth] = []
    read = [str(scene["heights"][c]) for c in scene["terms"]]
    product = ""
    for index, step in enumerate(steps):
        if index < 3:
            colour, true_height = scene["terms"][index], str(scene["heights"][scene["terms"][index]])
            match = READ.match(step)
            readable = bool(match) and match[1] == colour and match[2] in HEIGHTS
            read[index] = match[2] if readable else true_height
            claims = (Claim("perception", match[2], true_height),) if readable else ()
            truths.append(StepTruth(f"read {colour}", claims, f"The {colour} bar is {true_height}.", readable))
        elif index == 3:
            true = [read[0], read[1], str(int(read[0]) * int(read[1]))]
            match = TIMES.match(step)
            stated = list(match.groups()) if match else []
            product = stated[2] if stated else true[2]
            claims = tuple(Claim("reasoning", s, t) for s, t in zip(stated, true, strict=False))
            truths.append(StepTruth("multiply", claims, f"{true[0]} * {true[1]} = {true[2]}.", bool(stated)))
        else:
            total = str(int(product) + int(read[2]))
            true = [product, read[2], total, total]
            match = PLUS.match(step) if index == 4 else None
            stated = list(match.groups()) if match else []
            claims = tuple(Claim("reasoning", s, t) for s, t in zip(stated, true, strict=False))
            truths.append(StepTruth("add", claims, f"{product} + {read[2]} = {total}.\nAnswer: {total}", bool(stated)))
    return truths
