"""Errors put into right solutions at a known step: perception misreadings and reasoning slips (URSA's misinterpretation insertion).

For a world's problem the world writes the wrong solution, so that later steps follow from what was misstated and its place and kind are
exact. In any other text one word or number is swapped by `SWAPS` and `slip`; the steps before it are taken to be right, as the whole
reached the gold answer, and those after it are not labelled.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...prm.steps import without_answer
from ...types import Kind, Problem
from ..corrupt import single_error
from ..problems import truth_of

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white", "brown", "pink", "grey", "gray")
# word -> what it may be misread as. All are perception errors: what is seen, not what follows from it.
SWAPS: dict[str, tuple[str, ...]] = {
    **{colour: tuple(c for c in COLOURS if c != colour and {c, colour} != {"grey", "gray"}) for colour in COLOURS},
    **{a: (b,) for pair in (("left", "right"), ("above", "below"), ("top", "bottom"), ("upper", "lower"), ("inside", "outside"),
                            ("north", "south"), ("east", "west"), ("clockwise", "counterclockwise"), ("horizontal", "vertical"))
       for a, b in (pair, pair[::-1])},
    **{a: (b,) for pair in (("larger", "smaller"), ("bigger", "smaller"), ("taller", "shorter"), ("longer", "shorter"), ("more", "fewer"),
                            ("higher", "lower"), ("highest", "lowest"), ("largest", "smallest"), ("most", "fewest"), ("greater", "less"))
       for a, b in (pair, pair[::-1])},
}  # fmt: skip
_WORD = re.compile(r"(?<![\w-])(" + "|".join(sorted(SWAPS, key=len, reverse=True)) + r")(?![\w-])", re.IGNORECASE)
# A number that is read off: not part of an equation, a longer number, a name such as x2, or a step's own number.
_READ = re.compile(r"(?<![\w.,/=+*^-])(?<![=+*/\u00d7\u00f7\u00b7-] )\d{1,4}(?![\w/%^]|[.,]\d|\s*[=+*/\u00d7\u00f7\u00b7^-])")
_RESULT = re.compile(r"(?<==)\s*(\d+(?:\.\d+)?)(?![\w.,]*\d|\s*[+*/\u00d7\u00f7\u00b7^=-]|\\)")


@dataclass(frozen=True)
class Inserted:
    """A solution with one error: its steps, the first wrong step (0-based), the error's kind, what was swapped for what, by which rule."""

    steps: tuple[str, ...]
    step: int
    kind: Kind
    original: str
    swapped: str
    rule: str


@dataclass(frozen=True)
class _Swap:
    step: int
    start: int
    end: int
    text: str
    kind: Kind
    rule: str


def insert_into_world(problem: Problem, rng: random.Random) -> Inserted | None:
    """A world's own solution with one misstated fact; None where the draw left it right."""
    world, scene = truth_of(problem)
    steps = single_error(world, scene, rng)
    truths = world.check(scene, steps)
    step = next((i for i, truth in enumerate(truths) if not truth.right), None)
    if step is None:
        return None
    wrong = next(claim for claim in truths[step].claims if not claim.right)
    return Inserted(tuple(steps), step, truths[step].error or "reasoning", wrong.true, wrong.stated, "world")


def insert_into_text(steps: Sequence[str], rng: random.Random, kinds: Sequence[Kind | None] = ()) -> Inserted | None:
    """One swap at a step drawn evenly among those that offer any, then a kind among the step's, then a place; None where nothing can be
    swapped.

    `kinds` (S,), where known: a perception step takes misreadings only, a reasoning step slips only.
    """
    places = [swap for index, text in enumerate(steps) for swap in candidates(index, text, kinds[index] if kinds else None)]
    if not places:
        return None
    step = rng.choice(sorted({swap.step for swap in places}))
    kind = rng.choice(sorted({swap.kind for swap in places if swap.step == step}))
    swap = rng.choice([swap for swap in places if (swap.step, swap.kind) == (step, kind)])
    old = steps[step][swap.start : swap.end]
    new = swap.text or _other(old, rng)
    changed = steps[step][: swap.start] + new + steps[step][swap.end :]
    return Inserted((*steps[:step], changed, *steps[step + 1 :]), step, kind, old, new, swap.rule)


def candidates(index: int, text: str, kind: Kind | None = None) -> list[_Swap]:
    """What may be swapped in a step, its `Answer:` line left out. An empty `text` of a swap: a near number is drawn."""
    body, found = without_answer(f"\n{text}")[1:], []  # the line break, so that an answer line may be all that there is
    if kind != "reasoning":
        for match in _WORD.finditer(body):
            found += [_Swap(index, *match.span(), _like(match[0], word), "perception", "word") for word in SWAPS[match[0].casefold()]]
        found += [_Swap(index, *match.span(), "", "perception", "number") for match in _READ.finditer(body)]
    if kind != "perception":
        found += [_Swap(index, *match.span(1), "", "reasoning", "result") for match in _RESULT.finditer(body)]
    return found


def slip(number: float, rng: random.Random) -> float:
    """A near number that is not below 0 unless the number is: off by 1 to 3, or by 10."""
    return rng.choice([n for n in (number + d for d in (-10, -3, -2, -1, 1, 2, 3, 10)) if n >= 0 or number < 0])


def _other(old: str, rng: random.Random) -> str:
    places = len(old.partition(".")[2])
    return f"{slip(float(old), rng):.{places}f}"


def _like(old: str, new: str) -> str:
    return new.upper() if old.isupper() else new.capitalize() if old[0].isupper() else new
