"""Routes on a ladder map: five lanes run down, rungs join neighbours, one lane ends at a star; which route leads there?

Whoever walks down a lane and meets a rung crosses it. A solution names its start first and then walks: finding the start
means following four rows at once before the first word, while a claimed start is checked by walking back from the star.
So answers are easier to check than to find. The answer is the whole route, so every rung that is read counts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from .base import Claim, Say, Scene, StepTruth, canvas, tint

name = "ladder"
rules = (
    "Lanes 1 to 5 run from top to bottom. Walking down, whoever meets a rung crosses it to the neighbouring lane. "
    "Find the walk that ends at the star, and give the lane it starts at and the lane it is on after each row."
)
LANES = ["1", "2", "3", "4", "5"]
ROWS = 4
MOVES = {"left": -1, "straight": 0, "right": 1}
# Rungs of a row, by the lane at their left end; two rungs never touch.
RUNG_SETS = [[], [1], [2], [3], [4], [1, 3], [1, 4], [2, 4]]

STAR = re.compile(r"The star is under lane (\d)\.?$")
START = re.compile(r"Start at lane (\d)\.?$")
WALK = re.compile(r"Row (\d) goes (left|straight|right) to lane (\d)\.?$")
ARRIVE = re.compile(r"Lane (\d) has the star\.?\s*Answer: (.+)$")


def move(rungs: Sequence[int], lane: int) -> str:
    """Which way a walker on `lane` leaves a row."""
    if lane in rungs:
        return "right"
    return "left" if lane - 1 in rungs else "straight"


def walk_back(scene: Scene, star: int) -> list[int]:
    """The lanes passed from the star up to the start, the star's own first. A row undoes itself."""
    lanes = [star]
    for rungs in reversed(scene["rungs"]):
        lanes.append(lanes[-1] + MOVES[move(rungs, lanes[-1])])
    return lanes


def scene(rng: random.Random) -> Scene:
    # Rows with two rungs come more often, so that few walks are straight.
    return {"rungs": rng.choices(RUNG_SETS, weights=[1, 2, 2, 2, 2, 4, 4, 4], k=ROWS), "star": rng.randint(1, 5)}


def picture_key(scene: Scene) -> Any:
    return [scene["rungs"], scene["star"]]


def draw(scene: Scene, rng: random.Random) -> Any:
    from PIL import ImageDraw

    image = canvas(rng)
    pen = ImageDraw.Draw(image)
    shift, grey = rng.randint(-1, 1), rng.randint(70, 110)
    x = [8 + 20 * k + shift for k in range(5)]
    for lane in x:
        pen.line((lane, 8, lane, 80), fill=(grey, grey, grey), width=3)
    for row, rungs in enumerate(scene["rungs"]):
        y = 24 + 16 * row + rng.randint(-2, 2)
        for left in rungs:
            pen.line((x[left - 1], y, x[left], y), fill=tint("blue", rng), width=4)
    star = x[scene["star"] - 1]
    pen.ellipse((star - 6, 82, star + 6, 94), fill=tint("red", rng))
    return image


def question(scene: Scene) -> str:
    return "Ladder: which route leads to the star?"


def describe(scene: Scene) -> str:
    rows = [f"Row {i} has rungs {' '.join(map(str, rungs)) or 'none'}." for i, rungs in enumerate(scene["rungs"], 1)]
    return "\n".join([*rows, f"The star is under lane {scene['star']}."])


def facts(scene: Scene) -> list[list[tuple[str, str]]]:
    rows = [[(f"Row {i} has rungs", " ".join(map(str, rungs)) or "none")] for i, rungs in enumerate(scene["rungs"], 1)]
    return [*rows, [("The star is under lane", str(scene["star"]))]]


def write(scene: Scene, say: Say) -> list[str]:
    star = say(0, "perception", str(scene["star"]), LANES)
    start = say(1, "reasoning", str(walk_back(scene, int(star))[-1]), LANES)
    steps, lane = [f"The star is under lane {star}.", f"Start at lane {start}."], start
    route = [start]
    for row, rungs in enumerate(scene["rungs"]):
        way = move(rungs, int(lane))
        way = say(row + 2, "perception", way, [other for other in MOVES if step_to(lane, other) != step_to(lane, way)])
        lane = say(row + 2, "reasoning", step_to(lane, way), LANES)
        steps.append(f"Row {row + 1} goes {way} to lane {lane}.")
        route.append(lane)
    last = say(ROWS + 2, "reasoning", lane, LANES)
    answer = [say(ROWS + 2, "reasoning", passed, LANES) for passed in route]
    steps.append(f"Lane {last} has the star.\nAnswer: {' '.join(answer)}")
    return steps


def step_to(lane: str, way: str) -> str:
    """The lane after a move; the outermost lanes have no further neighbour."""
    return str(min(5, max(1, int(lane) + MOVES[way])))


def check(scene: Scene, steps: Sequence[str]) -> list[StepTruth]:
    truths: list[StepTruth] = []
    star, lane, route = str(scene["star"]), "", []
    for index, step in enumerate(steps):
        if index == 0:
            match = STAR.match(step)
            claims = (Claim("perception", match[1], star),) if match else ()
            truths.append(StepTruth("find the star", claims, f"The star is under lane {star}.", bool(match)))
            goal = match[1] if match and match[1] in LANES else star
        elif index == 1:
            back = walk_back(scene, int(goal))
            match = START.match(step)
            claims = (Claim("reasoning", match[1], str(back[-1])),) if match else ()
            working = "back " + " ".join(map(str, back))
            truths.append(StepTruth("choose the start", claims, f"Start at lane {back[-1]}.", bool(match), working))
            lane = match[1] if match and match[1] in LANES else str(back[-1])
            route = [lane]
        elif index < ROWS + 2:
            row = index - 1
            way = move(scene["rungs"][row - 1], int(lane))
            match = WALK.match(step)
            readable = bool(match) and match[1] == str(row) and match[3] in LANES
            stated_way = match[2] if readable else way
            reached = step_to(lane, stated_way)
            claims = (Claim("perception", stated_way, way), Claim("reasoning", match[3], reached)) if readable else ()
            truths.append(StepTruth(f"walk row {row}", claims, f"Row {row} goes {way} to lane {step_to(lane, way)}.", readable))
            lane = match[3] if readable else reached
            route.append(lane)
        else:
            match = ARRIVE.match(step) if index == ROWS + 2 else None
            claims, whole = (), " ".join(route)
            if match:
                claims = (Claim("perception", match[1], star), Claim("reasoning", match[1], lane), Claim("reasoning", match[2], whole))
            truths.append(StepTruth("arrive", claims, f"Lane {lane} has the star.\nAnswer: {whole}", bool(match)))
    return truths
