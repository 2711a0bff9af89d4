"""Sets of pictures: a grid picture in its parts, the pairs of a set, and what their scores come to. No model, no engine.

Layouts are "AxB": A rows of B columns, as in the prompts of T2IS-Bench (the released code of arXiv 2512.04784 calls them grids).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from ..types import InputError


def parse_layout(layout: str) -> tuple[int, int]:
    """(rows, columns) of "2x2", also "2 X 2" or "2*2"."""
    found = re.fullmatch(r"\s*(\d+)\s*[xX*]\s*(\d+)\s*", layout) if isinstance(layout, str) else None
    if not found or not int(found[1]) or not int(found[2]):
        raise InputError(f'a layout is written "ROWSxCOLUMNS", such as "2x2", got {layout!r}')
    return int(found[1]), int(found[2])


def grid_boxes(width: int, height: int, layout: str) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of every part, row by row. All parts have one size: where the picture cannot be divided evenly, the
    pixels left over at the right and at the bottom belong to none."""
    rows, columns = parse_layout(layout)
    w, h = width // columns, height // rows
    if not w or not h:
        raise InputError(f"a picture of {width}x{height} pixels has no {layout} grid; check the layout")
    return [(c * w, r * h, (c + 1) * w, (r + 1) * h) for r in range(rows) for c in range(columns)]


def split_grid(image: Any, layout: str) -> list[Any]:
    """The sub-figures of a grid picture (path, PIL image or bytes), row by row, as PIL images."""
    from ..serving.images import open_image

    picture = open_image(image)
    return [picture.crop(box) for box in grid_boxes(*picture.size, layout)]


def all_pairs(count: int) -> list[tuple[int, int]]:
    """The C(n, 2) unordered pairs of n pictures."""
    return list(combinations(range(count), 2))


def set_reward(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[float, dict[str, float]]:
    """The reward of a set from {dimension: {criterion: one score for each pair}}, and the mean of each dimension.

    The mean over pairs for each criterion, over the criteria of a dimension, over dimensions: every dimension counts the same, however
    many criteria it has.
    """
    dimensions = {
        dimension: math.fsum(math.fsum(pairs) / len(pairs) for pairs in criteria.values()) / len(criteria)
        for dimension, criteria in scores.items()
    }
    return math.fsum(dimensions.values()) / len(dimensions), dimensions


def edit_reward(consistency: float, following: float) -> float:
    """sqrt(SC * PF): the geometric mean, 0 where either is."""
    return math.sqrt(consistency * following)
