"""Dialogues of checking: a user states one thing at a time, the assistant says + or what is true in its place.

A base model that has learnt these can be trained into a step verifier in minutes. Whether a statement is right, asked
as one bit, teaches a small model nothing for a long time: it must find out by itself that its own reading of the picture is wanted
in that place. Here every wrong statement asks for that very reading, and telling right from wrong comes with it.
"""

from __future__ import annotations

import random
import re
from types import ModuleType

from .corrupt import corrupted
from .worlds import sample_scene
from .worlds.base import Scene

RIGHT, WRONG = "+", "-"
CHECK = "Check each fact."  # what is asked of statements about a picture
Dialogue = list[tuple[str, str]]  # what the user states, what the assistant answers


def check_facts(world: ModuleType, scene: Scene, rng: random.Random, signs: bool = False) -> Dialogue:
    """Every fact of the picture, its lines in random order; some take their value from another picture.

    With `signs` a wrong one is answered with - alone: a short step from the other form, and all that a verdict is."""
    lines, others = world.facts(scene), world.facts(sample_scene(world, "train", rng))
    share, order = rng.choice([0.3, 0.5, 0.8]), rng.sample(range(len(lines)), len(lines))
    turns = []
    for i in order:
        for (head, true), (_, other) in zip(lines[i], others[i], strict=True):
            value = near_value(true, other, rng) if rng.random() < share else true
            turns.append((f"{head} {value}.", RIGHT if value == true else WRONG if signs else f" {true}"))
    return turns


def near_value(true: str, other: str, rng: random.Random) -> str:
    """The other value, or, of two words, one of each: near misses are what a checker meets."""
    ours, theirs = true.split(), other.split()
    if len(ours) != 2 or len(theirs) != 2 or rng.random() < 0.5:
        return other
    return f"{ours[0]} {theirs[1]}" if rng.random() < 0.5 else f"{theirs[0]} {ours[1]}"


def check_steps(world: ModuleType, scene: Scene, rng: random.Random) -> Dialogue:
    """The steps of a corrupted solution; the answer to a wrong one is the true value of its first wrong claim."""
    steps = corrupted(world, scene, rng, heavy=0.8, single=0.12, struck=0.8)
    turns = []
    for step, truth in zip(steps, world.check(scene, steps), strict=True):
        wrong = next((claim.true for claim in truth.claims if not claim.right), None)
        turns.append((step, RIGHT if wrong is None else f" {wrong}"))
    return turns


def check_claims(world: ModuleType, scene: Scene, rng: random.Random) -> Dialogue:
    """The same, each step cut after every claim that stands in it, so that a turn holds one claim."""
    steps = corrupted(world, scene, rng, heavy=0.8, single=0.12, struck=0.8)
    turns = []
    for step, truth in zip(steps, world.check(scene, steps), strict=True):
        start, waiting = 0, []
        for k, claim in enumerate(truth.claims):
            waiting.append(claim)
            last = k == len(truth.claims) - 1
            found = re.compile(rf"(?<!Row )\b{re.escape(claim.stated)}\b").search(step, start)  # the number of a row is no claim
            if found or last:
                end = len(step) if last else found.end()
                wrong = next((one.true for one in waiting if not one.right), None)
                turns.append((step[start:end], RIGHT if wrong is None else f" {wrong}"))
                start, waiting = end, []
    return turns
