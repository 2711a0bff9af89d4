"""What a world is: a picture, a question, the exact solution step by step, and an exact judge of any other solution.

A world writes its solutions through `say`, a function that is handed every stated fact and may replace it. With `truthful`
the result is the right solution; with another `say` it is a wrong one whose later steps follow from what was stated, as a
model's would. So one method makes solutions, single errors and heavy corruption, and `check` tells what each step of any
text claims, what is true, and of which kind an error is. A step is judged given the steps before it: a sum of misread
numbers that adds them up rightly is a right step.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...types import Kind

Scene = dict[str, Any]
# say(step index, kind of claim, true value, other values it might be mistaken for) -> the value stated
Say = Callable[[int, Kind, str, Sequence[str]], str]

SIZE = 96  # pixels, both ways
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 79, 210),
    "yellow": (240, 200, 20),
    "purple": (150, 50, 190),
    "orange": (255, 127, 14),
}


@dataclass(frozen=True)
class Claim:
    """One stated fact beside what is true of it."""

    kind: Kind
    stated: str
    true: str

    @property
    def right(self) -> bool:
        return self.stated == self.true


@dataclass(frozen=True)
class StepTruth:
    """The truth about one step: its claims, whether image and logic hold, and the right step in its place.

    `working` is what a careful checker writes down before it judges the logic, where a comparison alone will not do.
    """

    intent: str
    claims: tuple[Claim, ...]
    corrected: str
    readable: bool = True
    working: str = ""

    def _right(self, kind: Kind) -> bool:
        return all(claim.right for claim in self.claims if claim.kind == kind)

    @property
    def image_right(self) -> bool:
        return self._right("perception")

    @property
    def logic_right(self) -> bool:
        return self.readable and self._right("reasoning")

    @property
    def right(self) -> bool:
        return self.image_right and self.logic_right

    @property
    def kind(self) -> Kind | None:
        """The kind of the step's claims; None where they are of both kinds, or the step could not be read."""
        kinds = {claim.kind for claim in self.claims}
        return kinds.pop() if len(kinds) == 1 and self.readable else None

    @property
    def error(self) -> Kind | None:
        """The kind of the error: a misreading counts as perception even where the logic is wrong too."""
        if self.right:
            return None
        return "reasoning" if self.image_right else "perception"


class World(Protocol):
    """A family of problems whose truth is known. Every method is a pure function of its arguments."""

    name: str
    rules: str

    def scene(self, rng: random.Random) -> Scene: ...

    def picture_key(self, scene: Scene) -> Any:
        """What the picture shows, without the question: splits are disjoint in it."""

    def draw(self, scene: Scene, rng: random.Random) -> Any: ...

    def question(self, scene: Scene) -> str: ...

    def describe(self, scene: Scene) -> str:
        """A caption that names everything in the picture."""

    def facts(self, scene: Scene) -> list[list[tuple[str, str]]]:
        """The caption's lines cut into facts: how each begins, and the value that the picture gives it."""

    def write(self, scene: Scene, say: Say) -> list[str]:
        """The bodies of the steps; the last one ends with a line `Answer: ...`."""

    def check(self, scene: Scene, steps: Sequence[str]) -> list[StepTruth]: ...


def truthful(step: int, kind: Kind, value: str, domain: Sequence[str]) -> str:
    return value


class Misstate:
    """A `say` that replaces facts: at step `i` each with probability `rates[i]`, and fact `single[1]` of step `single[0]` surely."""

    def __init__(self, rng: random.Random, rates: Mapping[int, float] | None = None, single: tuple[int, int] | None = None):
        self.rng, self.rates, self.single = rng, rates or {}, single
        self.seen: Counter[int] = Counter()

    def __call__(self, step: int, kind: Kind, value: str, domain: Sequence[str]) -> str:
        here, self.seen[step] = (step, self.seen[step]), self.seen[step] + 1
        if here == self.single or self.rng.random() < self.rates.get(step, 0.0):
            return self.rng.choice([other for other in domain if other != value] or [value])
        return value


def format_solution(steps: Sequence[str]) -> str:
    """`Step 1: ...` lines, as every policy and critic here writes them."""
    return "\n".join(f"Step {i}: {body}" for i, body in enumerate(steps, 1))


def right_solution(world: World, scene: Scene) -> list[str]:
    return world.write(scene, truthful)


def answer_of(steps: Sequence[str]) -> str:
    return steps[-1].rsplit("Answer: ", 1)[1]


SPLITS = {"train": (0, 88), "dev": (88, 92), "test": (92, 100)}


def split_of(world: World, scene: Scene) -> str:
    """The split a scene belongs to, by a hash of what its picture shows: no picture is in two splits."""
    key = json.dumps([world.name, world.picture_key(scene)], sort_keys=True).encode()
    bucket = int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 100
    return next(name for name, (low, high) in SPLITS.items() if low <= bucket < high)


def sample_scene(world: World, split: str, rng: random.Random) -> Scene:
    while True:
        scene = world.scene(rng)
        if split_of(world, scene) == split:
            return scene


def canvas(rng: random.Random) -> Any:
    """A nearly white picture; its shade varies a little."""
    from PIL import Image

    shade = rng.randint(244, 252)
    return Image.new("RGB", (SIZE, SIZE), (shade, shade, shade))


def tint(colour: str, rng: random.Random, spread: int = 8) -> tuple[int, int, int]:
    """A colour, off its standard by up to `spread` in each channel."""
    red, green, blue = (max(0, min(255, c + rng.randint(-spread, spread))) for c in COLOURS[colour])
    return red, green, blue


def speckle(image: Any, rng: random.Random, sigma: float = 16.0) -> Any:
    """Sensor noise: each channel of each pixel off by a normal deviate of `sigma`."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image, dtype=np.float32)
    noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(values.shape, dtype=np.float32)
    return Image.fromarray(np.clip(values + sigma * noise, 0, 255).astype(np.uint8))
